"""Results of older and later versions are converted or refused with a remedy; changed ones are refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from softh_probe import ProbeResult
from softh_probe.errors import InputError
from softh_probe.estimators.soft_entropy import entropy
from softh_probe.report.page import run_page, write_report
from softh_probe.result_files import (
    FORMAT,
    LAYERS_PARQUET,
    OF_DIRECTIONS,
    OF_DOCUMENTS,
    OF_LABELS,
    RESULT_JSON,
    SHAPES,
    SUMS,
)
from softh_probe.sweep.folder import is_intact
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, save, sweep_folder

LATER = ("entropy_document_sd", "null_information", "corrected_information")


@pytest.fixture
def result(model):
    return result_of(model, labels=NAMES[:2])


def rewrite(folder, version, change=lambda head, tensors: None):
    """The folder's result as a version without checksums would have written it."""
    head, tensors = json.loads((folder / RESULT_JSON).read_text()), load_file(folder / SUMS)
    for name in ("sha256", "files"):
        del head[name]
    change(head, tensors)
    (folder / RESULT_JSON).write_text(json.dumps({**head, "format": version}))
    save_file(tensors, folder / SUMS)


def edit(folder, change):
    """Change what result.json says, and nothing else."""
    head = json.loads((folder / RESULT_JSON).read_text())
    change(head)
    (folder / RESULT_JSON).write_text(json.dumps(head))


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        ProbeResult.load(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def without_later(head, tensors):
    for name in LATER:
        del tensors[name]


def as_first(head, tensors):
    """Labels one by one had their sums."""
    without_later(head, tensors)
    head["kept"] = head.pop("labels")
    tensors["kept_positions"] = tensors.pop("label_positions")
    n_rows, n_labels, n_sets = tensors.pop("label_entropy").shape
    shape = (n_rows, n_labels, n_sets, tensors["mass"].shape[-1])
    tensors["kept_mass"] = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("version", "change", "unknown"),
    [(2, lambda head, tensors: None, ()), (2, without_later, LATER), (1, as_first, LATER)],
)
def test_results_of_older_versions_load(result, tmp_path, version, change, unknown):
    def as_older(head, tensors):
        for name in (*OF_DIRECTIONS, *OF_DOCUMENTS, *OF_LABELS):
            del tensors[name]
        change(head, tensors)

    rewrite(save(result, tmp_path), version, as_older)
    again, written = ProbeResult.load(tmp_path), load_file(tmp_path / SUMS)
    assert again.tensors.keys() == SHAPES.keys()
    assert again.labels == result.labels
    assert again.info == json.loads(json.dumps(result.info))
    for name, tensor in again.tensors.items():
        if name in unknown:
            assert tensor.isnan().all()
        elif name in written:
            assert torch.equal(tensor, written[name])
    if version == 1:
        assert torch.equal(again.tensors["label_entropy"], entropy(written["kept_mass"]))
        assert torch.equal(again.tensors["label_positions"], result.tensors["label_positions"])
    known = ["entropy", "conditional_entropy", "mutual_information", "coverage", "optimality"]
    old, new = (t[t.metric.isin(known)].reset_index(drop=True) for t in (again.to_pandas(), result.to_pandas()))
    pd.testing.assert_frame_equal(old, new.drop(columns="p_value"))
    page = run_page(again)
    assert "nan%" not in page
    assert ("by chance alone" in page) == (not unknown)
    again.save(tmp_path / "converted")
    assert json.loads((tmp_path / "converted" / RESULT_JSON).read_text())["format"] == FORMAT
    assert ProbeResult.load(tmp_path / "converted").to_pandas().equals(again.to_pandas())


def test_results_of_later_versions_are_refused_by_version(result, tmp_path):
    result.info["versions"] = {"softh-probe": "7.1"}
    edit(save(result, tmp_path), lambda head: head.update(format=9))
    text = refusal(tmp_path)
    assert f"is of format 9, this version of softh_probe reads formats 1 to {FORMAT}" in text
    assert "install the version that wrote it (7.1), or a later one" in text


@pytest.mark.parametrize("version", [0, -1, True, None, "2", 2.0, [3], 10**400])
def test_a_format_that_there_never_was(result, tmp_path, version):
    edit(save(result, tmp_path), lambda head: head.update(format=version))
    assert ("damaged" in refusal(tmp_path)) == (version != 10**400)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head["label_sets"].reverse(),
        lambda head: head["rows"].reverse(),
        lambda head: head["labels"].reverse(),
        lambda head: head.update(positions=head["positions"] + 1),
        lambda head: head["settings"].update(seed=1),
        lambda head: head.pop("sha256"),
        lambda head: head.update(note="added by hand"),
    ],
)
def test_a_result_whose_json_was_changed_is_refused(result, tmp_path, change):
    edit(save(result, tmp_path), lambda head: None)
    ProbeResult.load(tmp_path)  # spaces do not matter
    edit(tmp_path, change)
    assert "result.json was changed after it was written; copy it again" in refusal(tmp_path)


def test_sums_and_tables_that_were_changed_are_refused(result, tmp_path):
    tensors = load_file(save(result, tmp_path) / SUMS)
    assert is_intact(tmp_path)
    (tmp_path / LAYERS_PARQUET).write_bytes(table := (tmp_path / LAYERS_PARQUET).read_bytes())
    result.to_pandas().assign(value=0.5).to_parquet(tmp_path / LAYERS_PARQUET)
    assert not is_intact(tmp_path)
    (tmp_path / LAYERS_PARQUET).write_bytes(table)
    assert is_intact(tmp_path)
    tensors["conditional_entropy"][1, 0, 0] += 1e-9
    save_file(tensors, tmp_path / SUMS)
    assert not is_intact(tmp_path)
    assert "sums.safetensors was changed after it was written" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head, t: t.pop("positions"), "positions: expected torch.float64 [5], got nothing"),
        (lambda head, t: t.pop("mass"), "holds no mass"),
        (lambda head, t: t.update(positions=t["positions"].float()), "got torch.float32 [5]"),
        (lambda head, t: t.update(mass=-t["mass"]), "negative or not finite"),
        (lambda head, t: t["mass"].fill_(np.nan), "negative or not finite"),
        (lambda head, t: head["rows"].pop(), "expected torch.float64 [4"),
        (lambda head, t: head["label_sets"].append("more"), "got torch.float64 [5, 3"),
        (lambda head, t: head["label_sets"].append("topic"), "expected a list of different names"),
        (lambda head, t: head.update(rows=[]), "rows: expected at least one"),
        (lambda head, t: head.update(rows="abc"), "rows: expected a list"),
        (lambda head, t: head.update(labels=[["none", "x"]]), "expected a label set and a name"),
        (lambda head, t: head.update(labels=[["topic"]]), "expected a label set and a name"),
        (lambda head, t: head.update(labels={}), "labels: expected a list"),
    ],
)
def test_names_and_tensors_that_do_not_fit_each_other_are_refused(result, tmp_path, change, said):
    rewrite(save(result, tmp_path), 2, change)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"model": "tiny"}, "model of the result: expected dict, got 'tiny'"),
        ({"anchors": [{"dim": 3}]}, "anchors: temperature of the result: expected int or float, got None"),
        ({"warnings": [3]}, "warnings of the result: expected str, got 3"),
        ({"positions": "many"}, "positions of the result: expected int or float, got 'many'"),
    ],
)
def test_what_a_page_cannot_show_is_named(result, tmp_path, info, said):
    result.info.update(info)
    with pytest.raises(InputError) as caught:
        write_report([save(result, tmp_path)], tmp_path)
    assert said in str(caught.value)
    assert "change it in ProbeResult.info" in str(caught.value)


def test_a_path_that_is_no_utf8_is_written_all_the_same(result, tmp_path):
    result.info["config"] = {"data": "caf\udce9.txt"}
    assert ProbeResult.load(save(result, tmp_path)).info["config"] == {"data": "caf\udce9.txt"}


def test_a_sweep_of_another_version_says_how_it_is_made_anew(tmp_path):
    folder = sweep_folder(tmp_path / "sweep", n_checkpoints=2)
    head = json.loads((folder / "sweep.json").read_text())
    for change, said in (
        ({"version": 9}, "expected a sweep.json of version 1, got 9"),
        ({"parquet_sha256": "0" * 64}, "sweep.parquet is not the one that sweep.json tells of"),
        ({"checkpoints": [3]}, "expected checkpoints with checkpoint, model, status, got 3"),
    ):
        (folder / "sweep.json").write_text(json.dumps({**head, **change}))
        with pytest.raises(InputError) as caught:
            write_report([folder], folder)
        assert said in str(caught.value)
        assert f"`softh-probe collect {folder}` makes them anew" in str(caught.value)
