"""Damaged files: each is skipped with its reason and leaves nothing in the sums; what nobody tells is asked for."""

import fcntl
import json
import random
import zipfile
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from softh_probe.errors import InputError
from softh_probe.ingest import ingest
from softh_probe.ingest.damage import DamagedFileError
from softh_probe.ingest.feeding import feed_file
from softh_probe.ingest.files import ListedFile
from softh_probe.ingest.spec import Spec
from tests.helpers.fed_states import documents, random_states
from tests.helpers.stored_states import ROWS, assert_same, metered, store, store_all

LENGTHS = (23, 17, 12)


@pytest.fixture
def whole(tmp_path):
    """Three whole files, req-00 to req-02; the damaged one stands between them."""
    docs = documents(*LENGTHS)
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states)
    return docs, states


def changed(states, **tensors):
    return {**{name: state.clone() for name, state in states.items()}, **tensors}


def truncated(path, ids, states):
    store(path, states, ids)
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path, ids, states):
    store(path, states, ids)
    path.write_bytes(path.read_bytes()[:40])


def empty(path, ids, states):
    path.touch()


def with_nan(path, ids, states):
    bad = changed(states)
    bad["layer.2"][len(ids) - 1, 3] = float("nan")
    store(path, bad, ids)


def with_zeros(path, ids, states):
    bad = changed(states)
    bad["layer.1"][4] = 0
    store(path, bad, ids)


def with_integers(path, ids, states):
    store(path, {name: (10 * state).int() for name, state in states.items()}, ids)


def with_float_ids(path, ids, states):
    store(path, states, [float(i) for i in ids])


def with_bools(path, ids, states):
    store(path, states, [True for _ in ids])


def in_eight_bits(path, ids, states):
    store(path, {name: state.to(torch.float8_e8m0fnu) for name, state in states.items()}, ids)


def with_fewer_ids(path, ids, states):
    store(path, states, ids[:-1])


def with_foreign_ids(path, ids, states):
    store(path, states, [*ids[:-1], 10_000])


def with_negative_ids(path, ids, states):
    store(path, states, [-1, *ids[1:]])


def without_ids(path, ids, states):
    save_file({"hidden_states": torch.stack(list(states.values()), dim=1)}, path)


def without_states(path, ids, states):
    save_file({"token_ids": torch.tensor(ids)}, path)


def without_tokens(path, ids, states):
    store(path, {name: state[:0] for name, state in states.items()}, torch.zeros(0, dtype=torch.long))


def of_another_width(path, ids, states):
    store(path, {name: state[:, :5].contiguous() for name, state in states.items()}, ids)


def of_more_layers(path, ids, states):
    store(path, {**states, "layer.3": states["layer.1"]}, ids)


def of_other_layers(path, ids, states):
    store(path, states, ids, layers="3,4")


def of_another_layout(path, ids, states):
    store(path, states, ids, layout="plain")


def of_two_axes(path, ids, states):
    save_file({"hidden_states": states["layer.1"].clone(), "token_ids": torch.tensor(ids)}, path)


DAMAGES = [
    (truncated, "unreadable", "it cannot be read: "),
    (cut_in_the_header, "unreadable", "it cannot be read: "),
    (empty, "empty", "it is empty"),
    (with_nan, "not finite", "layer.2: the hidden state is not finite at position 19, and so has no direction"),
    (with_zeros, "zero", "layer.1: the hidden state is zero at position 4, and so has no direction"),
    (with_integers, "dtype", "hidden_states: expected floating point numbers, got others"),
    (in_eight_bits, "dtype", "hidden_states: expected floating point numbers, got others"),
    (with_bools, "dtype", "token_ids: expected integers, got other numbers"),
    (with_float_ids, "dtype", "token_ids: expected integers, got other numbers"),
    (with_fewer_ids, "shape", "hidden_states: expected [T, L, D] with T = 19, as token_ids has, got [20, 2, 8]"),
    (with_foreign_ids, "token_ids", "token_ids: expected ids from 0 to "),
    (with_negative_ids, "token_ids", "token_ids: expected ids from 0 to "),
    (without_ids, "missing array", "it holds no token_ids"),
    (without_states, "missing array", "it holds no hidden_states"),
    (without_tokens, "empty", "it holds no tokens"),
    (of_another_width, "width", "layer.1: expected width 8, got 5"),
    (of_more_layers, "layers", "hidden_states: expected the 2 layers layer.1, layer.2, got 3"),
    (of_other_layers, "layers", "it says that its layers are layer.3, layer.4, expected layer.1, layer.2"),
    (of_another_layout, "shape", "got [2, 20, 8]; the other layout would fit"),
    (of_two_axes, "shape", "hidden_states: expected [T, L, D], got [20, 8]"),
]


@pytest.mark.parametrize("piece", [None, 8])
@pytest.mark.parametrize(("damage", "kind", "reason"), DAMAGES, ids=[damage.__name__ for damage, *_ in DAMAGES])
def test_a_damaged_file_is_skipped_with_its_reason_and_leaves_nothing(
    configured,
    tmp_path,
    whole,
    damage,
    kind,
    reason,
    piece,
):
    (ids,), (states,) = documents(20), random_states(documents(20), ROWS, seed=9)
    damage(tmp_path / "states" / "req-00-damaged.safetensors", ids, states)
    result = ingest(configured(tokens_per_batch=piece), progress=False)
    assert_same(result, metered(*whole, piece=piece))
    found = result.info["ingest"]
    assert (found["skipped"], found["skipped_by_kind"]) == (1, {kind: 1})
    assert [one["file"] for one in found["skipped_files"]] == ["req-00-damaged.safetensors"]
    assert reason in found["skipped_files"][0]["reason"]
    assert any(reason in text for text in result.info["warnings"])


def test_a_file_that_does_not_say_what_the_others_say_is_skipped(configured, tmp_path):
    docs = documents(*LENGTHS)
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states, layout="plain", layers="1,2")
    store(tmp_path / "states" / "req-00-damaged.safetensors", states[0], docs[0], layout="plain")
    result = ingest(configured(layout="plain", layers=None), progress=False)
    assert_same(result, metered(docs, states))
    assert "does not say which layers" in result.info["ingest"]["skipped_files"][0]["reason"]


# --- NPZ --------------------------------------------------------------------------------------------------------


def npz(path, **arrays):
    states = {"hidden_states": np.ones((20, 2, 8), np.float32), "token_ids": np.ones(20, np.int64)}
    np.savez(path, **{**states, **arrays})


def pickled(path):
    npz(path, hidden_states=np.array([{"a": 1}], dtype=object))


def no_zip(path):
    path.write_bytes(b"PK\x03\x04 and no more")


def flipped_bit(path):
    npz(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\x80\x3f") + 400] ^= 1
    path.write_bytes(bytes(content))


def short_array(path):
    npz(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content[:-8] if name.startswith("hidden") else content)


def of_bfloat16(path):
    npz(path, hidden_states=np.ones((20, 2, 8), np.float32).view(np.uint32).astype(np.uint16).view("V2"))


@pytest.mark.parametrize(
    ("damage", "kind", "reason"),
    [
        (pickled, "pickled", "hidden_states.npy holds pickled objects, which are never loaded"),
        (no_zip, "unreadable", "it cannot be read: File is not a zip file"),
        (flipped_bit, "unreadable", "it cannot be read: Bad CRC-32"),
        (short_array, "unreadable", "hidden_states.npy is not as long as its header says"),
        (of_bfloat16, "dtype", "as numpy stores bfloat16"),
    ],
)
def test_a_damaged_npz_is_skipped_with_its_reason(configured, tmp_path, whole, damage, kind, reason):
    damage(tmp_path / "states" / "req-00-damaged.npz")
    result = ingest(configured(), progress=False)
    assert_same(result, metered(*whole))
    assert result.info["ingest"]["skipped_by_kind"] == {kind: 1}
    assert reason in result.info["ingest"]["skipped_files"][0]["reason"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2"])
def test_compressed_and_other_orders_of_bytes_are_read(configured, tmp_path, whole, dtype, order):
    docs, states = whole
    for path in (tmp_path / "states").iterdir():
        path.unlink()
    exact = [{name: state.half().float() for name, state in of_doc.items()} for of_doc in states]
    for i, (ids, of_doc) in enumerate(zip(docs, exact, strict=True)):
        hidden = np.asarray(torch.stack(list(of_doc.values())).numpy().astype(dtype), order=order)
        save = np.savez_compressed if i == 1 else np.savez
        save(tmp_path / "states" / f"{i}.npz", hidden_states=hidden, token_ids=np.array(ids, dtype=">u2"))
    fed = exact if dtype != "<f2" else [{name: s.half() for name, s in of_doc.items()} for of_doc in exact]
    result = ingest(configured(layout="plain", layers="1,2", tokens_per_batch=9), progress=False)
    assert_same(result, metered(docs, fed, piece=9))


def damaged_at_random(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    kind = rng.choice(["cut", "flip", "header", "splice"])
    if kind == "cut":
        return bytes(changed[: rng.randrange(len(changed))])
    if kind == "splice":
        begin, end = sorted(rng.randrange(len(changed)) for _ in range(2))
        return bytes(changed[:begin] + changed[end:] + bytes(rng.randrange(40)))
    for _ in range(rng.choice([1, 3, 30])):
        changed[rng.randrange(200 if kind == "header" else len(changed))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("layout", ["vllm", "rows"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_whatever_the_bytes_are_a_file_is_added_whole_or_skipped(tmp_path, suffix, layout):
    content = store(tmp_path / f"whole{suffix}", random_states(documents(20), ROWS)[0], range(20), layout).read_bytes()
    widths = dict.fromkeys(ROWS, 8)
    spec = Spec(layout=layout, rows=ROWS, widths=widths, first="", layout_is_told=True, layers_are_told=True)
    rng, outcomes = random.Random(7), set()
    for i in range(300):
        path = tmp_path / f"{i}{suffix}"
        path.write_bytes(damaged_at_random(content, rng))
        file = ListedFile(name=path.name, path=path, size=path.stat().st_size, mtime_ns=path.stat().st_mtime_ns)
        meter = mock.Mock()
        try:
            with spec.open(file) as states:
                feed_file(meter, states, name="a", labels={}, n_vocabulary=50, piece=rng.choice([7, 100]))
        except DamagedFileError as error:
            outcomes.add(error.kind)
            assert not meter.update.called
        else:
            assert sum(len(call.kwargs["input_ids"]) for call in meter.update.call_args_list) == 20
    assert "unreadable" in outcomes


# --- files that others write --------------------------------------------------------------------------------------


def test_a_file_whose_lock_vllm_holds_is_being_written(configured, tmp_path, whole):
    docs, states = whole
    with (tmp_path / "states" / "req-01.safetensors.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = ingest(configured(), progress=False)
    assert_same(result, metered([docs[0], docs[2]], [states[0], states[2]]))
    assert result.info["ingest"]["skipped_by_kind"] == {"locked": 1}


def test_locks_that_nobody_holds_and_hidden_files_are_passed_over(configured, tmp_path, whole):
    for name in ("req-01.safetensors.lock", ".req-07.safetensors", "notes.txt"):
        (tmp_path / "states" / name).touch()
    assert_same(ingest(configured(), progress=False), metered(*whole))


def test_a_file_that_changes_while_it_is_read_is_skipped_whole(configured, tmp_path, whole, monkeypatch):
    from softh_probe.ingest import feeding

    docs, states = whole
    path, original = tmp_path / "states" / "req-01.safetensors", feeding._check

    def check(piece, begin):
        original(piece, begin)
        if piece["layer.1"][0].equal(states[1]["layer.1"][0]):
            path.touch()

    monkeypatch.setattr(feeding, "_check", check)
    result = ingest(configured(), progress=False)
    assert_same(result, metered([docs[0], docs[2]], [states[0], states[2]]))
    assert result.info["ingest"]["skipped_by_kind"] == {"changed": 1}


# --- what is an error -------------------------------------------------------------------------------------------


def test_where_all_files_are_damaged_is_an_error_and_no_results(configured, tmp_path):
    for i in range(4):
        store(
            tmp_path / "states" / f"{i}.safetensors",
            {"layer.1": torch.zeros(5, 8), "layer.2": torch.ones(5, 8)},
            range(5),
        )
    with pytest.raises(
        InputError, match=r"none of 4 files can be measured: 0.safetensors: layer.1: .* zero .* and 1 more"
    ):
        ingest(configured(), progress=False)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_none_are_errors(configured, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ingest(configured(), progress=False)
    (tmp_path / "states").mkdir()
    with pytest.raises(InputError, match=r"holds no \.safetensors or \.npz files"):
        ingest(configured(), progress=False)


def test_results_may_not_lie_among_the_files(configured, tmp_path, whole):
    with pytest.raises(InputError, match="in the folder that is read"):
        ingest(configured(out=str(tmp_path / "states" / "out")), progress=False)


def test_layout_and_layers_that_nobody_tells_are_asked_for(configured, tmp_path):
    ids = list(range(2))  # as many tokens as layers: shapes tell nothing
    store(tmp_path / "states" / "a.safetensors", {row: torch.ones(2, 8) for row in ROWS}, ids)
    with pytest.raises(InputError, match=r"\[2, 2, 8\], and nobody says whether that is \[T, L, D\] \(--layout vllm\)"):
        ingest(configured(layout=None, layers="1,2"), progress=False)
    with pytest.raises(InputError, match=r"has 2 layers, and nobody says which .* --layers 2,18,33"):
        ingest(configured(layout="vllm", layers=None), progress=False)


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        ("2,1", "vLLM stores layers in the order of the model, whatever the order of its layer ids"),
        ("1,1", "layer.1 stands twice"),
        ("-1,1", "expected 0 .embeddings. or the number of a block"),
        ("3-1", "expected at least one"),
        ("1:2", "expected numbers, ranges as 1-3, embeddings, layer.1"),
        ("layer_1,2", "expected numbers, ranges as 1-3, embeddings, layer.1, …, or final_norm, got 'layer_1'"),
    ],
)
def test_layers_that_vllm_cannot_have_stored_are_refused(configured, whole, layers, error):
    with pytest.raises(InputError, match=error):
        ingest(configured(layout="vllm", layers=layers), progress=False)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['{"file": "req-00.safetensors"}', '{"file": "./req-00.safetensors"}'], "line 2: .* stands in line 1, too"),
        (['{"file": "../secret.safetensors"}'], "line 1: expected a file below the folder"),
        (['{"file": "/secret.safetensors"}'], "line 1: expected a file below the folder"),
        (['{"name": "req-00.safetensors"}'], "line 1: expected a field 'file'"),
        (["", "{"], "line 2 is no JSON"),
        (["[1]"], "line 1: expected an object"),
        (['{"file": "req-00.safetensors", "layers": 1.5}'], "line 1: layers: expected names or numbers"),
        ([], "it lists no files"),
    ],
)
def test_a_manifest_that_is_none_is_refused(configured, tmp_path, whole, lines, error):
    (tmp_path / "states" / "manifest.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=error):
        ingest(configured(), progress=False)


def test_columns_that_no_manifest_has_are_refused(configured, tmp_path, whole):
    with pytest.raises(InputError, match=r"column:language is a column of a manifest, and there is no manifest\.jsonl"):
        ingest(configured(labels="column:language"), progress=False)
    (tmp_path / "states" / "manifest.jsonl").write_text(json.dumps({"file": "req-00.safetensors", "topic": "a"}))
    with pytest.raises(InputError, match=r"no column 'language' in manifest\.jsonl; it has topic"):
        ingest(configured(labels="column:language"), progress=False)


def test_a_column_without_any_label_is_refused(configured, tmp_path, whole):
    line = json.dumps({"file": "req-00.safetensors", "language": None})
    (tmp_path / "states" / "manifest.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"column:language is null in every line of manifest\.jsonl; leave it out"):
        ingest(configured(labels="column:language"), progress=False)


def test_a_file_that_a_manifest_names_and_that_is_missing_is_skipped(configured, tmp_path, whole):
    docs, states = whole
    names = ["req-02.safetensors", "gone.safetensors", "req-00.safetensors"]
    (tmp_path / "states" / "manifest.jsonl").write_text("\n".join(json.dumps({"file": name}) for name in names))
    result = ingest(configured(), progress=False)
    assert_same(result, metered([docs[2], docs[0]], [states[2], states[0]]))
    assert result.info["ingest"]["skipped_files"][0]["reason"] == "it cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"layout": "vllm", "layers": "0-30"},
            "none of 4 files can be read: .*expected the 31 layers embeddings, .* got 2",
        ),
        ({"layout": "plain", "layers": "1,2"}, "none of 4 files can be read: .*; the other layout would fit"),
        ({"layout": "rows"}, "none of 4 files can be read: .*it holds no arrays of rows, as layer.1; hidden_states is"),
    ],
)
def test_what_no_file_holds_is_an_error_that_says_what_files_hold(configured, tmp_path, changes, error):
    docs = documents(23, 7, 41, 5)
    store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    with pytest.raises(InputError, match=error):
        ingest(configured(**changes), progress=False)
