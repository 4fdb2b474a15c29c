"""Sweeps with intervals: columns, courses in words from files of influences, and figures."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from softh_probe.analysis.course import course
from softh_probe.report import sweep_course
from softh_probe.report.figures import FIGURES, compared_by_depth
from softh_probe.report.sweep_figures import metric_by_step
from softh_probe.report.sweep_files import read_sweep
from tests.helpers.influences import documents, planted, result_of_documents, subset, values_of
from tests.helpers.sweeps import collected_folder

CORPUS = {"corpus": {"sha256": "0" * 64, "texts_sha256": "1" * 64, "data": "texts.jsonl"}}


def checkpoint(change=0.0, strength=0.0):
    of = documents(200, change=change)
    for layer in range(4):
        of = planted(of, layer, strength)
    return of


def written(folder, checkpoints, **options):
    return collected_folder(
        folder, {("m", step): result_of_documents(of, **CORPUS, **options) for step, of in checkpoints.items()}
    )


def test_the_table_of_a_sweep_keeps_standard_errors(tmp_path):
    folder = written(tmp_path, {1: checkpoint(), 2: checkpoint(0.2)})
    table = pd.read_parquet(folder / "sweep.parquet")
    own = result_of_documents(checkpoint(0.2), **CORPUS).to_pandas()
    pd.testing.assert_series_equal(table[table.step == 2].se.reset_index(drop=True), own.se)
    assert "se" in pd.read_csv(folder / "sweep.csv").columns


def test_a_sweep_of_which_some_have_intervals_has_the_column(tmp_path):
    results = {
        ("m", step): result_of_documents(checkpoint(), with_intervals=with_intervals, **CORPUS)
        for step, with_intervals in ((1, False), (2, True))
    }
    table = pd.read_parquet(collected_folder(tmp_path, results) / "sweep.parquet")
    assert table[table.step == 1].se.isna().all()
    assert table[(table.step == 2) & (table.metric == "entropy")].se.notna().all()


def test_changes_are_judged_on_the_same_documents(tmp_path):
    """The change is far below the checkpoints' own standard errors, and beyond the paired noise."""
    folder = written(tmp_path, {step: checkpoint(strength=s) for step, s in ((1, 0.0), (2, 0.002), (3, 0.005))})
    said = read_sweep(folder).courses
    assert said["entropy|"] == ["The mean over 4 layers rises from step 1 to 3; changes beyond noise: 1 → 3."]
    assert {key.split("|")[0] for key in said} == {"entropy", "mutual_information", "regularity", "optimality"}
    for step in (2, 3):  # the first result tells of the anchors
        (folder / "checkpoints" / f"ofm-step{step}" / "documents.parquet").unlink()
    assert read_sweep(folder).courses["entropy|"] == [
        "The mean over 4 layers does not change beyond noise from step 1 to 3 (unpaired, which overstates noise)."
    ]


def test_the_noise_of_a_change_is_that_of_a_paired_bootstrap(tmp_path):
    one, other = checkpoint(), checkpoint(0.4, 0.05)
    results = [result_of_documents(of, **CORPUS) for of in (one, other)]
    folder = written(tmp_path, {1: one, 2: other})
    sweep = read_sweep(folder)
    (mean,) = [
        m
        for m in sweep_course.layer_means(sweep.table, [c["checkpoint"] for c in sweep.done])
        if m.name[1] == "entropy"
    ]
    influences = sweep_course._Influences(sweep.done, folder, {mean.name: mean.layers}, results[0].n_anchors)
    random = np.random.default_rng(0)
    samples = []
    for _ in range(600):
        chosen = random.integers(0, 200, 200)
        a, b = (values_of(subset(of, chosen))["", "entropy"].mean() for of in (one, other))
        samples.append((b - a) / math.log(results[0].n_anchors))
    assert influences.error_of_change(mean.name, 0, 1) == pytest.approx(np.std(samples), rel=0.1)


def test_few_files_are_read(tmp_path, monkeypatch):
    folder = written(tmp_path, {step: checkpoint(strength=0.03 * step) for step in range(9)})
    read = []
    original = sweep_course.read_influence
    monkeypatch.setattr(sweep_course, "read_influence", lambda path: read.append(path.name) or original(path))
    assert read_sweep(folder).courses["entropy|"][0].startswith("The mean over 4 layers rises from step 0 to 8;")
    assert len(read) == len({*read}) <= 5
    monkeypatch.setattr(sweep_course, "MOST_FILES", 1)
    assert read_sweep(folder).courses["entropy|"][0].endswith("(unpaired, which overstates noise).")


def test_without_intervals_the_words_say_so(tmp_path):
    folder = written(tmp_path, {1: checkpoint(), 2: checkpoint(strength=0.2)}, with_intervals=False)
    sweep = read_sweep(folder)
    assert not sweep.has_intervals
    assert sweep.courses["entropy|"] == [
        "The mean over 4 layers rises from step 1 to 2; noise over documents was not measured."
    ]


def test_one_checkpoint_has_no_course_and_models_have_one_each(tmp_path):
    assert read_sweep(written(tmp_path / "one", {1: checkpoint()})).courses == {}
    results = {(m, s): result_of_documents(checkpoint(strength=0.1 * s), **CORPUS) for m in "xy" for s in (1, 2)}
    said = read_sweep(collected_folder(tmp_path / "two", results)).courses["entropy|"]
    assert [line.split(":")[0] for line in said] == ["ofx", "ofy"]
    assert course(["1"], [0.5]) == ""


def test_figures_draw_the_interval_with_its_key(tmp_path):
    result = result_of_documents(documents(100), **CORPUS)
    table = result.to_pandas("nats", means=False)
    entropy = table[table.metric == "entropy"]
    figure = FIGURES["entropy"](result, "nats")
    edges = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.9 and len(line.get_xdata())]
    for line, sign in zip(edges, (-1, 1), strict=True):
        np.testing.assert_allclose(line.get_ydata(), entropy.value + sign * 1.96 * entropy.se)
    for made in (
        figure,
        *(FIGURES[name](result) for name in ("overview", "information", "chance", "optimality")),
        compared_by_depth([result, result], ["a", "b"]),
    ):
        (legend,) = made.legends
        assert "95% interval over documents\n(± 1.96 standard errors)" in [t.get_text() for t in legend.get_texts()]
    bare = replace(result, influence=None, tensors={k: v for k, v in result.tensors.items() if not k.startswith("se_")})
    assert not FIGURES["entropy"](bare).legends
    steps = table.assign(checkpoint="a", step=1)
    figure = metric_by_step(pd.concat([steps, steps.assign(checkpoint="b", step=2)]), "entropy")
    assert any(line.get_linewidth() == 0.9 and len(line.get_xdata()) for line in figure.axes[0].lines)
    plt.close("all")
