"""Stored hidden states: equal to a meter that is fed them, to a probe of the model, and to a float64 reference."""

import json
import warnings

import numpy as np
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyMeter, SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import InputError
from softh_probe.ingest import IngestConfig, ingest
from tests.helpers import references
from tests.helpers.fed_states import documents, random_states
from tests.helpers.models import tiny_llama
from tests.helpers.probes import value
from tests.helpers.stored_states import FEW, LABELS, ROWS, assert_same, metered, store, store_all

LENGTHS = (23, 7, 41, 5, 18, 30)


@pytest.fixture
def docs():
    return documents(*LENGTHS)


# --- equal to what else there is --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["vllm", "plain", "rows"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_every_layout_gives_the_sums_of_a_meter_bit_for_bit(configured, tmp_path, docs, layout, suffix):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states, suffix, layout=layout)
    config = configured(layout=layout, layers=None if layout == "rows" else "1,2")
    assert_same(ingest(config, progress=False), metered(docs, states))
    assert ProbeResult.load(config.out).to_pandas().equals(ingest_again(config).to_pandas())


def ingest_again(config: IngestConfig) -> ProbeResult:
    return ingest(IngestConfig(**{**vars(config), "overwrite": True}), progress=False)


@pytest.mark.parametrize("layout", ["vllm", "plain"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_long_sequences_are_read_in_pieces(configured, tmp_path, docs, layout, suffix):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states, suffix, layout=layout)
    result = ingest(configured(layout=layout, layers="1,2", tokens_per_batch=10), progress=False)
    assert_same(result, metered(docs, states, piece=10))
    assert result.tensors["mass"].numpy() == pytest.approx(metered(docs, states).result().tensors["mass"].numpy(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_other_float_types_are_measured_as_a_meter_measures_them(configured, tmp_path, docs, dtype):
    states = [{row: state.to(dtype) for row, state in of_doc.items()} for of_doc in random_states(docs, ROWS)]
    store_all(tmp_path / "states", docs, states)
    assert_same(ingest(configured(), progress=False), metered(docs, states))


def test_entropy_and_information_are_those_of_a_float64_reference(configured, tmp_path, docs):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states)
    result = ingest(configured(labels=("input_unigram",), anchor_sets=1), progress=False)
    anchors, epsilon = sample_anchors(12, 8).numpy(), temperature(12, 8)
    for row in ROWS:
        q = references.assignments(torch.cat([of_doc[row] for of_doc in states]).numpy(), anchors, epsilon)
        labels = [token for ids in docs for token in ids]
        expected = references.entropy(q.mean(axis=0)), references.mutual_information(q, labels)
        found = [
            value(result, row, name, of, unit="nats")
            for name, of in [("entropy", ""), ("mutual_information", "input_unigram")]
        ]
        assert found == pytest.approx(expected, abs=1e-6)


def test_files_of_vllm_give_what_a_probe_of_the_model_gives(configured, tmp_path, docs):
    """Its layer id k is the residual stream after block k, the last one before the final norm; 0 is the embeddings."""
    model = tiny_llama().eval()
    probe = SoftEntropyProbe(model, labels=LABELS, **FEW)
    blocks, names = len(model.model.layers), ["embeddings", "layer.1", "layer.3"]
    assert blocks == 3
    with probe, torch.no_grad():
        for ids in docs:
            model(torch.tensor([ids]))
    for i, ids in enumerate(docs):
        found = references.hidden_states(model, ids)
        store(tmp_path / "states" / f"{i}.safetensors", {n: torch.tensor(found[n]).float() for n in names}, ids)
    result = ingest(configured(layout="vllm", layers="0,1,3"), progress=False)
    assert result.rows == names
    assert result.info["n_blocks"] == blocks
    theirs = probe.result().to_pandas().query("layer in [0, 1, 3] and name != 'mean'")
    ours = result.to_pandas().query("name != 'mean'").set_index(["name", "label_set", "metric"])["value"]
    expected = theirs.set_index(["name", "label_set", "metric"])["value"]
    assert len(ours) == len(expected)
    assert ours.to_numpy() == pytest.approx(expected[ours.index].to_numpy(), abs=1e-6, nan_ok=True)


# --- labels and positions ---------------------------------------------------------------------------------------


def test_columns_of_a_manifest_are_labels_of_whole_sequences(configured, tmp_path, docs):
    states, languages = random_states(docs, ROWS), ["de", "en", None, "en", "de", "en"]
    files = store_all(tmp_path / "states", docs, states, ".npz", layout="plain", layers="1,2")
    order = [3, 0, 1, 2, 5, 4]
    lines = [{"file": files[d].name, "layout": "plain", "language": languages[d], "note": d} for d in order]
    (tmp_path / "states" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ingest(configured(layout=None, layers=None, labels=(*LABELS, "column:language")), progress=False)
        meter = SoftEntropyMeter(labels=LABELS, **FEW)
        for d in order:
            meter.update(states[d], input_ids=docs[d], language=languages[d])
    assert result.label_sets == [*LABELS, "column:language"]
    ours, theirs = result.to_pandas(), meter.result().to_pandas()
    assert ours.replace("column:language", "language").equals(theirs)


def test_policies_of_positions_hold(configured, tmp_path, docs):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states)
    short = ingest(configured(positions="skip:3", tokens_per_batch=10), progress=False)
    assert short.info["positions"] == sum(max(0, n - 3 - 2) for n in LENGTHS)
    last = ingest(
        configured(positions="last", labels="input_unigram", tokens_per_batch=10, overwrite=True), progress=False
    )
    assert last.info["positions"] == len(LENGTHS)


def test_special_tokens_of_the_tokenizer_are_skipped(configured, tmp_path, docs):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states)
    special = {0, 1, 2}  # of the small tokenizer
    result = ingest(configured(skip_special_tokens=True, labels=()), progress=False)
    assert result.info["positions"] <= sum(token not in special for ids in docs for token in ids)
    assert result.info["positions"] < sum(LENGTHS)


# --- what a result says -----------------------------------------------------------------------------------------


def test_a_result_names_tokenizer_layers_and_folder(configured, tmp_path, docs, checkpoint):
    store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    result = ingest(configured(name="a model", notes="vLLM 0.22"), progress=False)
    info = ProbeResult.load(tmp_path / "out").info
    assert info["tokenizer"]["tokenizer"] == str(checkpoint)
    assert len(info["tokenizer"]["sha256"]) == 32
    assert info["ingest"]["rows"] == list(ROWS)
    assert info["ingest"]["layout"] == "vllm"
    assert info["corpus"]["documents"] == len(docs) == info["corpus"]["documents_read"]
    assert (info["name"], info["notes"]) == ("a model", "vLLM 0.22")
    said = {choice["about"]: choice["chosen"] for choice in info["choices"]}
    assert said["layers"] == "layer.1, layer.2"
    assert said["width"] == "8"
    assert [text.split(":")[0] for text in result.info["warnings"]] == ["n_blocks"]


def test_the_page_is_written_and_names_what_was_skipped(configured, tmp_path, docs):
    files = store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    files[2].write_bytes(b"no safetensors")
    result = ingest(configured(report=True), progress=False)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "req-02.safetensors" in page
    assert result.info["warnings"][0].startswith(
        "1 of 6 files was skipped (unreadable 1): req-02.safetensors: it cannot"
    )


def test_the_first_files_alone_are_read_where_asked(configured, tmp_path, docs):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states)
    assert_same(ingest(configured(max_documents=2), progress=False), metered(docs[:2], states[:2]))


def test_sequences_too_short_for_a_position_are_counted(configured, tmp_path):
    docs = documents(12, 2, 1)
    store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    result = ingest(configured(), progress=False)
    assert result.info["corpus"]["documents_too_short"] == 2
    assert any(text.startswith("2 of 3 sequences are shorter than the 3 tokens") for text in result.info["warnings"])


def test_a_folder_of_short_sequences_alone_is_an_error(configured, tmp_path):
    docs = documents(2, 1)
    store_all(tmp_path / "states", docs, random_states(docs, ROWS))
    with pytest.raises(InputError, match="every sequence is too short: one position needs 3 tokens"):
        ingest(configured(), progress=False)
    assert not (tmp_path / "out").exists()


def test_states_of_an_array_are_read_in_pieces_of_bounded_memory(configured, tmp_path, monkeypatch):
    from softh_probe.ingest import layouts

    docs = documents(500)
    store_all(tmp_path / "states", docs, random_states(docs, ROWS), ".npz", layout="plain")
    sizes = []
    original = layouts._Stacked.piece

    def piece(self, begin, end):
        sizes.append(end - begin)
        return original(self, begin, end)

    monkeypatch.setattr(layouts._Stacked, "piece", piece)
    ingest(configured(layout="plain", layers="1,2", tokens_per_batch=64), progress=False)
    assert max(sizes) == 64
    assert sum(sizes) == 2 * 500
    assert np.load(next((tmp_path / "states").iterdir()))["hidden_states"].shape == (2, 500, 8)


def test_files_may_say_their_layers_in_json_and_hold_other_arrays(configured, tmp_path, docs):
    states = random_states(docs, ROWS)
    store_all(tmp_path / "states", docs, states, layout="vllm", layers='[1, "layer.2"]')
    assert_same(ingest(configured(layout="vllm", layers=None), progress=False), metered(docs, states))
    more = [{**of_doc, "logits": torch.randn(len(ids), 3)} for ids, of_doc in zip(docs, states, strict=True)]
    store_all(tmp_path / "more", docs, more, ".npz", layout="rows")
    config = configured(layout="rows", layers=None, folder=str(tmp_path / "more"), out=str(tmp_path / "other"))
    assert_same(ingest(config, progress=False), metered(docs, states))


def test_the_depth_of_a_model_is_never_certain_unless_it_is_told(configured, tmp_path, docs):
    """transformers' last hidden states are normed, so the last block's are not among them."""
    store_all(tmp_path / "states", docs, random_states(docs, ("layer.1", "layer.2", "final_norm")), layout="plain")
    told = {"layout": "plain", "layers": "1,2,final_norm"}
    (warning,) = [w for w in ingest(configured(**told), progress=False).info["warnings"] if w.startswith("n_blocks")]
    assert warning.startswith("n_blocks: 2 (the last block that was fed")
    result = ingest(configured(**told, n_blocks=3, out=str(tmp_path / "known")), progress=False)
    assert result.places.indices == (1, 2, 4)
    assert not [w for w in result.info["warnings"] if w.startswith("n_blocks")]
