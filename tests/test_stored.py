"""Files that an earlier version wrote load to the same numbers; public paths import. See tests/stored/README.md."""

import gzip
import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import softh_probe
from softh_probe import Anchors
from softh_probe.accumulators.document_sample import DocumentSample
from softh_probe.accumulators.states import STATE_VERSION, VERSION_WITHOUT_RECIPE
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.result_files import sealed
from softh_probe.run import run
from softh_probe.sweep import collect
from tests.stored import make

STORED = Path(make.__file__).parent
#: Computed again from the same float64 sums.
SAME = {"rtol": 0, "atol": 1e-12}
#: Forward passes in float32, on a machine that may round differently.
SAME_MODEL = {"rtol": 0, "atol": 1e-5}
#: Kinds of anchors by the names that the stored files have for them.
KIND_TODAY = {"iid": "published", "antithetic": "published_antithetic"}
#: What the stored run says today: the draw has another name, and the default length depends on the model.
RUN = {**make.RUN, "anchors": "published", "max_length": 512}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A copy of the files as the working directory, because paths in them are relative."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


@pytest.fixture(scope="module")
def stored_model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(STORED / "checkpoint").eval()


def new_probe(name: str, model: LlamaForCausalLM) -> SoftEntropyProbe:
    """A probe with the settings of a stored state, whose anchors have another name today."""
    settings = make.PROBES[name]
    return SoftEntropyProbe(model, **{**settings, "anchors": KIND_TODAY[settings.get("anchors", "iid")]})


_OF_DOCUMENTS = {
    "about": "chance of labels of documents",
    "chosen": "that of positions",
    "reason": "the state is of an earlier version, which took positions as drawn one by one; measure again",
    "certain": False,
}


def as_today(state: dict[str, Any]) -> dict[str, Any]:
    """A stored state as this version writes it: another name of its anchors, no choices, and what is new of labels."""
    assert state["version"] == VERSION_WITHOUT_RECIPE
    settings = {**state["settings"], "anchors": KIND_TODAY[state["settings"]["anchors"]], "label_rows": 65_536}
    settings |= {"positions": "all", "skip_special_tokens": [], "sites": ["residual"], "center": False}
    head = {name: value for name, value in state.items() if name != "layers"}
    rows = {**state["rows"], **followed_labels(state["rows"], state["layers"]["layer.1"]["open"][:, -1])}
    choices = [_OF_DOCUMENTS] if rows["own"] else []
    rows |= {"documents": DocumentSample().state_dict(), "position_sets": sorted(rows["own"])}
    rows["texts"] = unknown_texts(rows["sequences"], distinct=settings["count"] == "unique_prefix")
    changed = {"version": STATE_VERSION, "settings": settings, "rows": rows, "choices": choices}
    layers = {
        name: {
            **layer,
            "documents": torch.zeros(0, len(layer["total"])),
            "direction": torch.full((layer["dim"],), torch.nan, dtype=torch.float64),
        }
        for name, layer in state["layers"].items()
    }
    return {**head, **changed, "layers": layers}


def unknown_texts(n_sequences: int, *, distinct: bool) -> dict[str, Any]:
    """What states say of sequences that an earlier version counted, and did not digest."""
    none = {name: torch.zeros(32, dtype=torch.uint8) for name in ("total", "ordered")}
    found = {"n": 0, "unknown": n_sequences, **none}
    return {**found, "distinct": torch.zeros(0, 32, dtype=torch.uint8)} if distinct else found


def followed_labels(rows: dict[str, Any], positions: torch.Tensor) -> dict[str, Any]:
    """What version 6 says of labels that are all followed; `positions` of each live row."""
    starts = [sum(map(len, rows["rows"][:i])) for i in range(len(rows["rows"]))]
    return {
        "numbers": [torch.arange(len(part)) + start for part, start in zip(rows["rows"], starts, strict=True)],
        "counts": [
            torch.tensor([1 if shared else int(positions[row]) for row, shared in zip(*pair, strict=True)])
            for pair in zip(rows["rows"], rows["shared"], strict=True)
        ],
        **{
            name: [torch.zeros(len(part), dtype=torch.int64) for part in rows["rows"]]
            for name in ("missing", "crossing")
        },
        "probability": [torch.ones(len(part), dtype=torch.float64) for part in rows["rows"]],
        "threshold": 1.0,
        "sketch": torch.zeros(0, 0, dtype=torch.int32),
    }


def read_state(name: str) -> dict[str, Any]:
    content = gzip.decompress((STORED / "states" / f"{name}.pt.gz").read_bytes())
    return torch.load(io.BytesIO(content), weights_only=True)


def read_numbers(name: str) -> dict[str, Any]:
    return json.loads((STORED / "states" / f"{name}.json").read_text())


def assert_same_tables(found: pd.DataFrame, expected: dict[str, list], **tolerance: float) -> None:
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), check_dtype=False, **tolerance)


def assert_same_numbers(probe: SoftEntropyProbe, expected: dict[str, Any], *, exact: bool) -> None:
    tolerance = SAME if exact else SAME_MODEL
    found = make.numbers(probe)
    assert found["positions"] == expected["positions"]
    assert found["layers"] == expected["layers"]
    expected_sums = torch.tensor(expected["sums"], dtype=torch.float64)
    torch.testing.assert_close(probe.sums, expected_sums, rtol=0, atol=0 if exact else 1e-5)
    assert_same_tables(as_before(pd.DataFrame(found["table"])), expected["table"], **tolerance)
    assert found["labels"].keys() == expected["labels"].keys()
    for name, table in expected["labels"].items():
        assert_same_tables(pd.DataFrame(found["labels"][name]), table, **tolerance)


#: Metrics that later versions compute of the same tensors; tables of before have none.
LATER_METRICS = ["information_share", "information_share_corrected", "residual", "residual_corrected"]

#: Those that need what only later versions measure.
LATER_MEASURED = ["label_entropy", "anisotropy"]


def as_before(table: pd.DataFrame) -> pd.DataFrame:
    """Leave the metrics of later versions and the mean over layers out of a table, which has all of them."""
    assert {*LATER_METRICS} <= {*table.metric}
    assert "mean" in {*table.name}
    table = table[table.name != "mean"].astype({"layer": "int64"})
    return table[~table.metric.isin([*LATER_METRICS, *LATER_MEASURED])].reset_index(drop=True)


def chance_left_out(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out what earlier versions took to be of positions where labels are of whole documents, or did not know."""
    null = table.metric.isin(["mutual_information_null", "mutual_information_null_sd", "mutual_information_corrected"])
    of_documents = null & table.label_set.str.startswith("column:")
    return table[~(of_documents | table.metric.isin(LATER_MEASURED))].reset_index(drop=True)


def assert_same_values(found: Any, expected: Any, where: str = "state") -> None:
    """Equal keys in the same order, equal types, equal tensors bit for bit. Prefixes seen have no order, nor kinds of
    facts about rows."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected) or (where == "state.rows" and found.keys() == expected.keys()), where
        for key in expected:
            assert_same_values(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same_values(one, other, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        if where.endswith(".seen"):
            found, expected = (torch.tensor(sorted(tensor.tolist())) for tensor in (found, expected))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert found == expected, where


# --- results --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "labelled"])
def test_a_result_loads_to_the_same_numbers_and_is_saved_as_the_same_files(name, tmp_path):
    result = ProbeResult.load(STORED / name)
    expected = load_file(STORED / name / "sums.safetensors")
    assert result.tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(result.tensors[key], tensor), key
    pd.testing.assert_frame_equal(
        as_before(result.to_pandas()), pd.read_parquet(STORED / name / "layers.parquet"), **SAME
    )
    numbers = json.loads((STORED / "run.json").read_text()) if name == "run" else read_numbers("labelled")
    assert_same_tables(as_before(result.to_pandas()), numbers["table"], **SAME)
    for label_set, table in numbers["labels"].items():
        assert_same_tables(result.conditional_entropy(label_set), table, **SAME)
    result.save(tmp_path)
    assert (tmp_path / "sums.safetensors").read_bytes() == (STORED / name / "sums.safetensors").read_bytes()
    written, before = (json.loads((path / "result.json").read_text()) for path in (tmp_path, STORED / name))
    kind = KIND_TODAY[before["settings"]["anchors"]]
    before["settings"]["anchors"] = kind
    before["anchors"] = [{**anchors, "recipe": kind} for anchors in before["anchors"]]
    if "config" in before:
        before["config"]["anchors"] = kind
    differing = {key for key in written.keys() | before.keys() if written.get(key) != before.get(key)}
    assert differing <= {"files", "sha256"}  # a table may differ in its last digit, or by the version of pyarrow
    assert written["files"].keys() == before["files"].keys()


@pytest.mark.parametrize(("name", "kind"), [("run", "published"), ("labelled", "published_antithetic")])
def test_a_result_says_which_draw_its_anchors_are_of(name, kind, folder):
    info = ProbeResult.load(name).info
    assert info["settings"]["anchors"] == kind
    assert info.get("config", {"anchors": kind})["anchors"] == kind
    for anchors in info["anchors"]:
        settings = {key: info["settings"][key] for key in ("n_anchors", "seed", "calibration")}
        drawn = Anchors.sample(dim=anchors["dim"], n_sets=anchors["sets"], kind=kind, **settings)
        assert anchors["recipe"] == kind
        assert anchors["sha256"] == drawn.sha256
    assert main(["report", name, "--out", "page"]) == 0
    assert f"<dt>kind</dt><dd>{kind}</dd>" in (folder / "page" / "report.html").read_text()


def test_the_configuration_of_a_result_is_one_today(folder, capsys):
    assert main(["run", "--config", "run/config.yaml", "--out", "again", "--anchors", "published"]) == 0
    assert "warning" not in capsys.readouterr().err
    again, before = ProbeResult.load("again"), ProbeResult.load("run")
    later = dict.fromkeys(again.info["config"])  # fields of later versions are null where they change nothing
    later |= {"label_rows": 65_536, "stream": False, "intervals": False, "interval_documents": 2048}
    later |= {"positions": "all", "skip_special_tokens": False, "sites": ["residual"], "by_position": False}
    later |= {"center": False, "tensor_parallel": 1}
    assert again.info["config"] == {**later, **before.info["config"], "out": "again"}
    assert again.info["anchors"] == before.info["anchors"]
    found, expected = (chance_left_out(result.to_pandas()) for result in (again, before))
    pd.testing.assert_frame_equal(found[list(expected)], expected, **SAME_MODEL)
    assert found.p_value.notna().sum() == 4


def test_a_configuration_with_the_earlier_name_of_its_anchors_is_warned_of(folder, capsys):
    assert main(["run", "--config", "run/config.yaml", "--out", "again"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: anchors"))
    assert "named published today, not of iid; --anchors published repeats them" in line
    assert ProbeResult.load("again").info["anchors"][0]["recipe"] == "iid"
    assert main(["run", "--config", "again/config.yaml", "--out", "third"]) == 0  # no result of an earlier version
    assert main(["run", "--config", "run/config.yaml", "--out", "pairs", "--anchors", "antithetic"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_results_of_an_earlier_and_of_todays_draw_are_not_compared(folder, capsys):
    assert main(["run", "--config", "run/config.yaml", "--out", "iid"]) == 0
    assert main(["run", "--config", "run/config.yaml", "--out", "published", "--anchors", "published"]) == 0
    capsys.readouterr()
    assert main(["report", "run", "published", "--out", "page"]) == 0
    assert main(["report", "run", "iid", "--out", "page"]) == 2
    assert "differ in their anchors (anchors published and iid); add" in capsys.readouterr().err
    assert main(["report", "run", "iid", "--out", "page", "--allow-different"]) == 0
    assert "differ in their anchors (anchors published and iid)" in (folder / "page" / "report.html").read_text()


def test_a_report_is_written_of_a_stored_result(folder, capsys):
    assert main(["report", "run", "labelled", "--out", "page", "--allow-different"]) == 0
    assert (folder / "page" / "report.html").is_file()


# --- states ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", make.PROBES)
def test_a_state_gives_the_same_numbers_and_is_written_the_same(name, stored_model):
    probe, state, expected = new_probe(name, stored_model), read_state(name), read_numbers(name)
    probe.load_state_dict(state)
    assert_same_numbers(probe, expected, exact=False)
    assert_same_values(probe.state_dict(), as_today(read_state(name)))
    assert_same_values(state, read_state(name))  # the argument is left as it was
    again = new_probe(name, stored_model)
    again.load_state_dict(probe.state_dict())
    assert_same_numbers(again, expected, exact=False)


@pytest.mark.parametrize("name", make.PROBES)
def test_a_state_does_not_go_on_with_anchors_of_another_draw(name, stored_model):
    earlier = make.PROBES[name].get("anchors", "iid")
    probe, kind = make.new_probe(name, stored_model), KIND_TODAY[earlier]  # iid, or antithetic, of today
    message = (
        f"state: expected anchors='{earlier}', got '{kind}'; earlier versions called these anchors {earlier}: "
        f"anchors={kind} continues with them"
    )
    with pytest.raises(InputError, match=f"^{message}$"):
        probe.load_state_dict(read_state(name))
    measured = new_probe(name, stored_model)
    measured.load_state_dict(read_state(name))
    with pytest.raises(InputError, match="merge: expected anchors="):
        measured.merge(probe)
    with pytest.raises(InputError, match="merge: expected anchors="):
        probe.merge(measured)


def test_a_state_of_one_set_is_not_added_to_a_probe_of_the_default(stored_model):
    probe = SoftEntropyProbe(stored_model, **{k: v for k, v in make.PROBES["labelled"].items() if k != "anchor_sets"})
    with pytest.raises(
        InputError, match=r"expected anchor_sets=8, got 1; earlier versions .*: anchor_sets=1 continues"
    ):
        probe.load_state_dict(read_state("labelled"))


@pytest.mark.parametrize("name", make.PROBES)
def test_a_probe_goes_on_from_a_state_as_before(name, stored_model):
    probe, expected = new_probe(name, stored_model), read_numbers(name)
    probe.load_state_dict(read_state(name))
    make.measure_more(name, probe, stored_model)
    assert_same_numbers(probe, expected["more"], exact=False)


@pytest.mark.parametrize("name", ["forwarded", "unique_prefix"])  # label sets of `labelled` come in no fixed order
def test_a_state_is_what_the_same_forward_passes_give_today(name, stored_model):
    """Down to the keys, the rows of label tables and the sampled positions; sums up to float32 rounding."""
    probe, before = new_probe(name, stored_model), as_today(read_state(name))
    make.measure(name, probe, stored_model)
    today = probe.state_dict()
    assert_same_numbers(probe, read_numbers(name), exact=False)
    assert {key: value for key, value in today.items() if key not in ("rows", "layers")} == {
        key: value for key, value in before.items() if key not in ("rows", "layers")
    }
    numbers = torch.cat(today["rows"]["numbers"])  # in the order of their first batch, which earlier states do not have
    assert torch.equal(numbers.sort().values, torch.arange(len(numbers)))
    since = {name: today["rows"][name] for name in ("numbers", "texts")}
    assert_same_values(today["rows"], {**before["rows"], **since}, "state.rows")
    assert list(today["layers"]) == list(before["layers"])
    for layer, expected in before["layers"].items():
        assert list(today["layers"][layer]) == list(expected)
        assert today["layers"][layer].pop("direction").isfinite().all()
        assert expected.pop("direction").isnan().all()  # what an earlier state lacks is not known
        torch.testing.assert_close(today["layers"][layer], expected, rtol=1e-5, atol=1e-5)


# --- snapshots ------------------------------------------------------------------------------------------------


def test_an_unfinished_run_goes_on_to_the_result_of_the_uninterrupted_one(folder):
    """Bit for bit where this machine computes the batches as the one that wrote the files did."""
    resumed = run(RunConfig(**RUN, out="stopped"), progress=False)
    assert resumed.info["interruptions"] == 1
    assert not (folder / "stopped" / "unfinished").exists()
    before, today = ProbeResult.load("run"), run(RunConfig(**RUN, out="today"), progress=False)
    of_chance = ("null_information", "corrected_information")  # of labels of documents: another one today
    same_machine = all(
        torch.equal(today.tensors[key], tensor) for key, tensor in before.tensors.items() if key not in of_chance
    )
    tolerance = {"rtol": 0.0, "atol": 0.0} if same_machine else SAME_MODEL
    for result in (resumed, today, ProbeResult.load("stopped")):
        assert result is today or result.tensors.keys() == before.tensors.keys() | {"entropy_of_labels"}
        for key, tensor in before.tensors.items():
            if result is not today or key not in of_chance:
                torch.testing.assert_close(result.tensors[key], tensor, **tolerance)
    assert _OF_DOCUMENTS in resumed.info["choices"]
    new = {"null_information_sd", "p_value", "entropy_of_labels", "anisotropy"}
    assert today.tensors.keys() - before.tensors.keys() == new
    assert resumed.labels == before.labels
    assert resumed.label_sets == before.label_sets


def test_a_stored_snapshot_of_another_configuration_is_refused(folder):
    with pytest.raises(InputError, match=r"unfinished run of another configuration \(seed: expected 0, got 1\)"):
        run(RunConfig(**RUN, seed=1, out="stopped"), progress=False)


def test_a_stored_snapshot_does_not_go_on_with_the_draw_of_today(folder):
    what = r"unfinished run of another configuration \(anchors: expected 'published', got 'iid'\); .*"
    with pytest.raises(InputError, match=what + "earlier versions called these anchors iid: --anchors published"):
        run(RunConfig(**{**RUN, "anchors": "iid"}, out="stopped"), progress=False)
    anew = run(RunConfig(**{**RUN, "anchors": "iid"}, out="stopped", resume=False), progress=False)
    assert anew.info["interruptions"] == 0
    assert anew.info["anchors"][0]["recipe"] == "iid"


# --- sweeps ---------------------------------------------------------------------------------------------------


def test_the_status_of_a_stored_sweep(folder, capsys):
    assert main(["status", "sweep"]) == 0
    counts, failed = capsys.readouterr().out.strip().splitlines()
    assert counts == "2 done, 0 running, 1 failed, 0 waiting"
    assert failed.startswith("failed   checkpoint-3: model ")
    assert "has no config.json" in failed


def test_a_stored_sweep_is_collected_to_the_same_table(folder):
    before = json.loads((folder / "sweep" / "sweep.json").read_text())
    found = collect("sweep")
    assert [found.count(status) for status in ("done", "failed", "waiting")] == [2, 1, 0]
    expected = pd.read_parquet(STORED / "sweep" / "sweep.parquet")
    table = pd.read_parquet("sweep/sweep.parquet")
    known = table[table.layer.notna() & table.metric.isin(expected.metric)]  # there are more metrics since then
    pd.testing.assert_frame_equal(known.reset_index(drop=True).astype({"layer": "int64"}), expected, rtol=1e-9)
    assert {*table.name[table.layer.isna()]} == {"mean"}  # since then
    today = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert today.keys() == before.keys()
    before["config"]["anchors"] = "published"
    for checkpoint in before["checkpoints"]:
        checkpoint["log"] = None  # logs are not among the files
    for checkpoint in today["checkpoints"]:
        for name in ("model_type", "n_parameters"):  # since then
            checkpoint.pop(name, None)
    for key in before.keys() - {"parquet_sha256"}:
        assert today[key] == before[key], key


def test_a_report_is_written_of_a_stored_sweep(folder):
    assert main(["report", "sweep", "--out", "page"]) == 0
    html = (folder / "page" / "report.html").read_text()
    assert "checkpoint-2" in html
    assert "<dt>anchors</dt><dd>published</dd>" in html


def test_a_stored_sweep_goes_on_with_its_configuration_alone(folder, capsys):
    settings = {**make.SWEEP, "model": "checkpoint", "out": "sweep", "anchors": "published", "max_length": 512}
    options = [f"--{key}={value}" for key, value in settings.items() if key not in ("labels", "device_map")]
    options = [option.replace("_", "-") for option in options] + ["--labels=input_unigram,output_unigram"]
    assert main(["sweep", *options, "--dry-run"]) == 0
    assert "from 2 done" in capsys.readouterr().out
    assert main(["sweep", *options, "--seed=1", "--dry-run"]) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


def test_a_stored_sweep_of_one_set_does_not_go_on_with_the_default_of_today(folder, capsys):
    settings = {**make.SWEEP, "model": "checkpoint", "out": "sweep", "anchors": "published", "max_length": 512}
    del settings["anchor_sets"], settings["labels"], settings["device_map"]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    assert main(["sweep", *options, "--labels=input_unigram,output_unigram", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "anchor_sets was 1, is 8" in error
    assert "earlier versions measured one set by default: --anchor-sets 1 continues with it" in error


def test_a_stored_sweep_does_not_go_on_with_the_draw_of_today(folder, capsys):
    for options in (["--out", "sweep"], []):
        assert main(["sweep", "--config", "sweep/config.yaml", "--model", "checkpoint", "--dry-run", *options]) == 2
        error = capsys.readouterr().err
        assert "anchors was 'published', is 'iid'" in error
        assert "earlier versions called these anchors iid: --anchors published continues with them" in error
    options = ["--config", "sweep/config.yaml", "--model", "checkpoint", "--dry-run", "--out", "new"]
    assert main(["sweep", *options]) == 0
    assert "named published today, not of iid; --anchors published repeats them" in capsys.readouterr().err


def test_results_of_two_draws_in_one_sweep_are_warned_of(folder, capsys):
    """As when workers of two versions measured it at once."""
    path = next((folder / "sweep" / "checkpoints").glob("checkpoint-2-*/result.json"))
    head = json.loads(path.read_text())
    head["anchors"] = [{**anchors, "sha256": "0" * 64, "recipe": "iid"} for anchors in head["anchors"]]
    head = {key: value for key, value in head.items() if key not in ("format", "sha256")}
    path.write_text(json.dumps(sealed(head)))
    assert main(["collect", "sweep"]) == 0
    printed = capsys.readouterr().out
    assert "warning: anchors are of several draws (iid, published): values are not comparable between them" in printed
    assert "several widths" not in printed


def test_every_checkpoint_of_a_stored_sweep_is_a_result(folder):
    table = pd.read_parquet("sweep/sweep.parquet")
    for checkpoint in json.loads((folder / "sweep" / "sweep.json").read_text())["checkpoints"]:
        if checkpoint["status"] == "done":
            result = as_before(ProbeResult.load(folder / "sweep" / checkpoint["folder"]).to_pandas())
            own = table[table.checkpoint == checkpoint["checkpoint"]].reset_index(drop=True)
            pd.testing.assert_frame_equal(own[result.columns], result, check_dtype=False, **SAME)


# --- paths ----------------------------------------------------------------------------------------------------

PATHS = [
    *(f"softh_probe.{name}" for name in ("Anchors", "ProbeResult", "SoftEntropyMeter", "SoftEntropyProbe")),
    *(f"softh_probe.{name}" for name in ("sample_anchors", "soft_entropy", "soft_mutual_information", "temperature")),
    "softh_probe.cli.main",
    "softh_probe.config.RunConfig",
    "softh_probe.distributed.gather",
    "softh_probe.integrations.trainer.SoftEntropyCallback",
    "softh_probe.result.ProbeResult",
    "softh_probe.run.run",
    "softh_probe.sweep.SweepConfig",
    "softh_probe.sweep.sweep",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_public_name_imports_from_its_path(path):
    module, _, name = path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("path", ["softh_probe.labels", "softh_probe.report.figures"])
def test_a_public_module_imports(path):
    assert importlib.import_module(path).__name__ == path


def test_the_lm_eval_model_imports():
    pytest.importorskip("lm_eval")
    assert callable(importlib.import_module("softh_probe.integrations.lm_eval_model").main)


def test_soft_entropy_of_the_package_is_the_function():
    """Importing the module of the same name does not replace it."""
    importlib.import_module("softh_probe.estimators.soft_entropy")
    one_direction = torch.ones(5, 8)
    assert 0 < softh_probe.soft_entropy(one_direction, n_anchors=10).item() < 1
    assert set(softh_probe.__all__) == {path.split(".")[1] for path in PATHS[:8]}
