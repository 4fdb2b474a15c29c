"""`softh-probe compare`: text, CSV, JSON, and what is refused."""

import json

import pandas as pd
import pytest

from softh_probe.analysis.paired import compare_results
from softh_probe.cli import main
from tests.helpers.influences import documents, planted, result_of_documents

CORPUS = {"sha256": "0" * 64, "data": "texts.jsonl"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two checkpoints whose layer 1 differs; the first again without intervals."""
    folder = tmp_path_factory.mktemp("compared")
    base = documents(200)
    for name, of, with_intervals in (
        ("a", base, True),
        ("b", planted(base, 1, 0.1), True),
        ("bare", base, False),
    ):
        model = {"model": f"org/{name}", "revision": None}
        result_of_documents(of, with_intervals=with_intervals, corpus=CORPUS, model=model).save(folder / name)
    return {name: str(folder / name) for name in ("a", "b", "bare")}


def test_the_table_is_printed_with_a_sentence_for_each_metric_and_label_set(folders, capsys):
    assert main(["compare", folders["a"], folders["b"]]) == 0
    text = capsys.readouterr().out
    assert text.startswith("b minus a; ± is the standard error over documents")
    assert text.count("1 of 4 layers differs beyond noise: layer.1 (") == 5  # entropy, information, regularity
    lines = [line for line in text.splitlines() if line.startswith("layer.1")]
    assert all(line.endswith("beyond noise") for line in lines[:5])
    assert not any("beyond noise" in line for line in text.splitlines() if line.startswith(("layer.2", "final_norm")))
    assert max(len(line) for line in text.splitlines()[1:] if line.startswith(("layer", "final"))) < 90


def test_metrics_and_units_are_chosen(folders, capsys):
    words = ["compare", folders["a"], folders["b"], "--metric", "entropy", "optimality", "--unit", "bits"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "entropy (bits)" in text
    assert "optimality · unigram (ratio)" in text
    assert "information" not in text


def test_json_is_for_machines(folders, capsys, tmp_path):
    assert main(["compare", folders["a"], folders["b"], "--json", "--out", str(tmp_path / "x" / "table.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "x" / "table.json").read_text()) == printed
    assert {key: printed[key] for key in ("a", "b", "unit", "notes")} == {
        "a": "a",
        "b": "b",
        "unit": "efficiency",
        "notes": [],
    }
    assert {
        "layer",
        "name",
        "label_set",
        "metric",
        "a",
        "b",
        "difference",
        "se",
        "p_value",
        "p_holm",
        "significant",
    } == {*printed["records"][0]}
    assert printed["sentences"]["entropy|"].startswith("1 of 4 layers differs beyond noise")


def test_csv_holds_the_table(folders, capsys, tmp_path):
    assert main(["compare", folders["a"], folders["b"], "--out", str(tmp_path / "table.csv")]) == 0
    base = documents(200)
    expected = compare_results(result_of_documents(base), result_of_documents(planted(base, 1, 0.1)))
    read = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read, expected.sort_values(by=[], kind="stable"), check_dtype=False)


def test_without_intervals_the_remedy_is_told(folders, capsys):
    assert main(["compare", folders["bare"], folders["b"], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert all(record["se"] is None and not record["significant"] for record in printed["records"])
    (note,) = printed["notes"]
    assert note.startswith("bare has no intervals")
    assert "`softh-probe run --intervals`" in note


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--unit", "dits"], "unit: expected one of efficiency, nats, bits, got 'dits'"),
        (["--metric", "coverage"], "metric: expected any of entropy, mutual_information, regularity, optimality"),
        (["--out", "table.xlsx"], "out: expected a name that ends in .csv or .json, got 'table.xlsx'"),
        (["--uni", "bits"], "uni: no such field (did you mean --unit?)"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(folders, words, answer, capsys):
    assert main(["compare", folders["a"], folders["b"], *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"softh-probe: {answer}")
    assert len(error.splitlines()) == 1


def test_folders_without_results_and_other_anchors_are_refused(folders, capsys, tmp_path):
    assert main(["compare", folders["a"], str(tmp_path)]) == 2
    assert "holds no result" in capsys.readouterr().err
    assert main(["compare", folders["a"]]) == 2
    assert "required: B" in capsys.readouterr().err
    other = result_of_documents(documents(200), model={"model": "other"})
    other.info["settings"] |= {"seed": 3}
    other.save(tmp_path / "other")
    assert main(["compare", folders["a"], str(tmp_path / "other")]) == 2
    assert "a and other differ in their anchors (seed 0 and 3)" in capsys.readouterr().err
