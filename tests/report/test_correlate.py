"""`correlate`: its table, groups and notes, the files, the command, and the page."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import softh_probe.report.correlate as command
from softh_probe.analysis.model_points import ModelPoint, PointValue
from softh_probe.analysis.point_correlation import correlate
from softh_probe.analysis.score_table import COLUMNS, Scores
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.report.correlation_page import correlations_page

HOSTILE = "<script>alert(1)</script>\"'$x$%{y}"


def points_of(n, *, seed=0, names="model", families=("llama", "qwen2")):
    """Models whose size drives `entropy`; `regularity` is noise, `coverage` does not vary."""
    random = np.random.default_rng(seed)
    size = 10 ** random.uniform(7, 10, n)
    noise = random.standard_normal((n, 2))
    return [
        ModelPoint(
            name=f"{names}-{i}",
            model=f"org/{names}-{i}",
            family=families[i % len(families)],
            n_parameters=int(size[i]),
            step=10 * i,
            values={
                ("", "entropy"): PointValue(value=0.05 * np.log(size[i]) + 0.02 * noise[i, 0], sd=0.1),
                ("input_unigram", "regularity"): PointValue(value=noise[i, 1]),
                ("input_unigram", "coverage"): PointValue(value=1.0),
                ("input_unigram", "label_entropy"): PointValue(value=noise[i, 0]),
                ("input_unigram", "mutual_information_null_sd"): PointValue(value=noise[i, 0]),
            },
        )
        for i in range(n)
    ]


def scores_for(points, *, missing=0, **more):
    """A benchmark that size drives, and another that is missing for the first models."""
    random = np.random.default_rng(9)
    rows = []
    for i, point in enumerate(points):
        rows.append((point.model, None, "BBH", np.log(point.n_parameters) + 0.3 * random.standard_normal()))
        if i >= missing:
            rows.append((point.model, None, "MUSR", random.standard_normal()))
        rows += [(point.model, None, name, value) for name, value in more.items()]
    return Scores(table=pd.DataFrame(rows, columns=[*COLUMNS]), source="scores.csv")


def line(found, benchmark, metric, group="all"):
    table = found.table
    (index,) = table.index[(table.benchmark == benchmark) & (table.metric == metric) & (table.group == group)]
    return table.loc[index]


def test_every_metric_that_varies_meets_every_benchmark():
    points = points_of(20)
    scores = scores_for(points, missing=3)
    found = correlate(points, scores)
    assert [*zip(found.table.benchmark, found.table.label_set, found.table.metric, found.table.n, strict=True)] == [
        ("BBH", "", "entropy", 20), ("BBH", "input_unigram", "regularity", 20),
        ("MUSR", "", "entropy", 17), ("MUSR", "input_unigram", "regularity", 17),
    ]  # fmt: skip
    assert found.kinds == ["spearman", "pearson"]
    assert "metrics that do not vary, left out: coverage input_unigram" in found.notes
    values = [point.values["", "entropy"].value for point in points[3:]]
    of_musr = scores.table.score[scores.table.benchmark == "MUSR"]
    at = line(found, "MUSR", "entropy")
    for kind, reference in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        expected = reference(values, of_musr)
        assert (at[kind], at[f"{kind}_p"]) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-9)
        p = found.table[f"{kind}_p"][found.table.benchmark == "MUSR"]
        np.testing.assert_allclose(
            found.table[f"{kind}_q"][found.table.benchmark == "MUSR"], stats.false_discovery_control(p)
        )


def test_a_planted_confounder_disappears_under_control():
    points = points_of(60)
    found = correlate(points, scores_for(points), control=["n_parameters"])
    at = line(found, "BBH", "entropy")
    assert at.spearman_q < 1e-6
    assert at.partial_spearman_p > 0.05
    assert at.partial_pearson_low < 0 < at.partial_pearson_high
    size = np.log([point.n_parameters for point in points])
    left = [
        np.subtract(y, np.polyval(np.polyfit(size, y, 1), size))
        for y in ([p.values["", "entropy"].value for p in points], found.matched.scores["BBH"])
    ]
    assert at.partial_pearson == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)
    assert "control: n_parameters enters as its logarithm" in found.notes


def test_families_of_five_are_shown_alone_and_smaller_ones_are_named():
    points = points_of(16, families=("llama", "llama", "qwen2"))
    points += points_of(2, names="few", families=("rare",))
    found = correlate(points, scores_for(points), by="family")
    assert dict(found.table.groupby("group", sort=False).n.max()) == {"all": 18, "llama": 11, "qwen2": 5}
    assert "families of fewer than 5 models, not shown alone: rare (2)" in found.notes
    members = [p for p in points if p.family == "llama"]
    alone = correlate(members, scores_for(points))
    for name in ("spearman", "spearman_low", "pearson_q"):
        assert line(found, "BBH", "entropy", "llama")[name] == pytest.approx(
            line(alone, "BBH", "entropy")[name], abs=1e-9
        )


def test_what_cannot_be_correlated_is_one_clear_line():
    points = points_of(7)
    found = correlate(points, scores_for(points, missing=4, flat=3.0))
    assert set(found.table.benchmark) == {"BBH"}
    assert "fewer than 5 models, left out: MUSR (3)" in found.notes
    assert "the same score for all models, left out: flat" in found.notes
    with pytest.raises(InputError, match=r"expected at least 5 with scores and controls, got 4 of 4 measured"):
        correlate(points[:4], scores_for(points))
    with pytest.raises(InputError, match=r"got 0 of 7 measured; without scores: model-0, .* not measured: org/x-0"):
        correlate(points, scores_for(points_of(7, names="x")))
    flat = Scores(table=pd.DataFrame([(p.model, None, "BBH", 1.0) for p in points], columns=[*COLUMNS]))
    with pytest.raises(InputError, match=r"nothing can be correlated: .*the same score for all models, left out: BBH"):
        correlate(points, flat)


def test_controls_are_checked():
    points = points_of(8)
    with pytest.raises(InputError, match=r"control: expected one of n_parameters, tokens, step, BBH, MUSR, got 'size'"):
        correlate(points, scores_for(points), control=["size"])
    with pytest.raises(InputError, match="got 0 of 8 measured"):
        correlate(points, scores_for(points), control=["tokens"])
    with pytest.raises(InputError, match="control: same is the same for all matched models"):
        correlate(points, scores_for(points, same=2.0), control=["same"])
    found = correlate(points, scores_for(points), control=["MUSR", "step"])
    assert set(found.table.benchmark) == {"BBH"}
    with pytest.raises(InputError, match="by: expected family, got 'size'"):
        correlate(points, scores_for(points), by="size")


def test_unmatched_models_are_listed_on_both_sides():
    points = points_of(8)
    found = correlate([*points, *points_of(1, names="bare")], scores_for([*points, *points_of(2, names="other")]))
    assert found.unmatched == [
        "measured, without scores (1): bare-0",
        "with scores, not measured (2): org/other-0, org/other-1",
    ]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command over points that are given, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(points, *words):
        monkeypatch.setattr(command, "read_points", lambda folders, mean_over=None: points)
        return main(["correlate", "results", *words])

    return run


def test_the_command_prints_and_writes_table_json_and_page(run, tmp_path, capsys):
    points = points_of(12)
    scores = scores_for([*points, *points_of(1, names="other")]).table
    wide = scores.pivot(index="model", columns="benchmark", values="score")
    wide.assign(size=np.arange(13.0)).to_csv(tmp_path / "scores.csv")
    words = ["--scores", "scores.csv", "--control", "n_parameters", "--by", "family"]
    assert run(points, *words) == 0
    text = capsys.readouterr().out
    assert text.startswith("12 models; the 6 strongest of 6 correlations:\n")
    assert re.search(r"BBH +entropy +12 +\+0\.\d\d +\+0\.\d\d to \+\d\.\d\d", text)
    assert "note: control: n_parameters enters as its logarithm" in text
    assert "unmatched: with scores, not measured (1): org/other-0" in text
    assert "within llama: strongest" in text
    table = pd.read_csv(tmp_path / "correlate" / "correlations.csv", keep_default_na=False)
    assert set(table.group) == {"all", "llama", "qwen2"}
    assert run(points, *words, "--json", "--out", "elsewhere") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "elsewhere" / "correlations.json").read_text())
    assert printed["unmatched"] == {"results": [], "scores": ["org/other-0"]}
    assert len(printed["table"]) == len(table)
    assert (tmp_path / "elsewhere" / "correlations.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "scores"),
        (["--scores", "missing.csv"], "scores: missing.csv is no file and no folder"),
        (["--scores", "empty.csv"], "scores: empty.csv cannot be read"),
        (["--scores", "."], "no results_"),
        (["--scores", "empty.csv", "--sources", "x"], "sources: no such field"),
    ],
)
def test_the_command_refuses_in_a_line(run, tmp_path, capsys, words, message):
    (tmp_path / "empty.csv").touch()
    assert run(points_of(6), *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_null_stands_for_what_is_not_known():
    points = points_of(6)
    line_of = [
        ModelPoint(**{**vars(p), "values": {("", "entropy"): PointValue(value=float(i))}}) for i, p in enumerate(points)
    ]
    table = pd.DataFrame([(p.model, None, "BBH", 2.0 * i) for i, p in enumerate(line_of)], columns=[*COLUMNS])
    (record,) = correlate(line_of, Scores(table=table)).to_json()["table"]
    assert record["pearson"] == pytest.approx(1)
    assert record["pearson_low"] is None
    json.dumps(record, allow_nan=False)


def test_names_on_the_page_are_text():
    points = points_of(6, names=HOSTILE, families=(HOSTILE,))
    page = correlations_page(correlate(points, scores_for(points, **{HOSTILE: 1.0}), by="family"))
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>")


def test_a_page_of_200_models_is_below_8_megabytes():
    points = points_of(200)
    wide = {(f"column:{i}", "regularity"): PointValue(value=float(i)) for i in range(40)}
    random = np.random.default_rng(1)
    many = [
        ModelPoint(**{**vars(p), "values": {key: PointValue(value=random.standard_normal()) for key in wide}})
        for p in points
    ]
    page = correlations_page(correlate(many, scores_for(points), by="family"))
    assert len(page.encode()) < 8e6


def test_results_that_were_not_measured_alike_are_refused_unless_that_is_allowed(monkeypatch, tmp_path):
    points = points_of(8)
    measured = [{"n_anchors": "50" if i else "100", "texts": "SHA-256 abababab"} for i in range(8)]
    points = [replace(point, conditions=of) for point, of in zip(points, measured, strict=True)]
    monkeypatch.setattr(command, "read_points", lambda folders, mean_over=None: points)
    rows = [f"{point.model},{i}" for i, point in enumerate(points)]
    (tmp_path / "scores.csv").write_text("\n".join(["model,BBH", *rows]))
    given = (["a"], tmp_path / "scores.csv")
    with pytest.raises(InputError, match=r"got different n_anchors \(100, 50\); .*add --allow-different"):
        command.correlate_folders(*given, out=tmp_path / "out")
    said = command.correlate_folders(*given, out=tmp_path / "out", allow_different=True)
    assert "note: results differ in n_anchors (100, 50): their values may not be comparable" in said
