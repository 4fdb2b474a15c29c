"""Labels of whole documents: chance and correction keep documents whole, in probes and in runs."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.accumulators.states import VERSION_WITH_DOCUMENTS
from softh_probe.result import ProbeResult
from softh_probe.run import run as run_checkpoint
from tests.helpers import references
from tests.helpers.corpora import documents
from tests.helpers.models import tiny_llama
from tests.helpers.probes import batches, reference, value

ROW, M = "layer.2", 20


@dataclass
class Sums:
    """Sums of soft assignments S [D, M] and positions n [D] of each document, by brute force."""

    mass: np.ndarray
    n: np.ndarray

    def information(self, labels: np.ndarray) -> float:
        whole = references.entropy(self.mass.sum(axis=0))
        parts = [labels == x for x in np.unique(labels)]
        return whole - sum(self.n[p].sum() / self.n.sum() * references.entropy(self.mass[p].sum(axis=0)) for p in parts)

    def permuted(self, labels: np.ndarray, groups: np.ndarray | None = None, n: int = 1500) -> np.ndarray:
        """Informations of n random relabelings, within groups where there are any."""
        random = np.random.default_rng(1)
        found = []
        for _ in range(n):
            drawn = labels.copy()
            for group in [np.arange(len(labels))] if groups is None else [groups == g for g in np.unique(groups)]:
                drawn[group] = random.permutation(labels[group])
            found.append(self.information(drawn))
        return np.array(found)

    def joined(self, units: np.ndarray) -> "Sums":
        """The sums of units of several documents, in the order of their numbers."""
        distinct = np.unique(units)
        return Sums(
            np.stack([self.mass[units == u].sum(axis=0) for u in distinct]),
            np.array([self.n[units == u].sum() for u in distinct]),
        )


def sums_of(model, docs) -> Sums:
    q = [reference(model, [doc], label_sets=[]).q[ROW] for doc in docs]
    return Sums(np.stack([x.sum(axis=0) for x in q]), np.array([len(x) for x in q]))


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def measure(probe, model, docs, size=4, **labels):
    """Run documents in batches; labels are one for each document."""
    with probe, torch.no_grad():
        for start, batch in zip(range(0, len(docs), size), batches(docs, size), strict=True):
            of_batch = {name: torch.as_tensor(values[start : start + size]) for name, values in labels.items()}
            with probe.labelled(**of_batch):
                model(**batch)
    return probe


def assert_chance(result: ProbeResult, label_set: str, information: float, permuted: np.ndarray) -> None:
    """The information is the brute force's, and what the result says of chance is that of its relabelings."""
    found = result.to_pandas("nats").set_index(["name", "label_set", "metric"]).loc[ROW, label_set]
    assert found.value["mutual_information"] == pytest.approx(information, rel=1e-3, abs=1e-6)
    assert found.value["mutual_information_null"] == pytest.approx(permuted.mean(), rel=0.05)
    assert found.value["mutual_information_null_sd"] == pytest.approx(permuted.std(), rel=0.1)
    share = (permuted >= information * (1 - 1e-9)).mean()
    assert found.p_value["mutual_information"] == pytest.approx(share, abs=0.04)
    assert found.p_value.drop("mutual_information").isna().all()


@pytest.mark.parametrize("n_labels", [2, 5])
def test_an_attached_probe_permutes_sequences(model, n_labels):
    docs = documents(40)
    labels = np.random.default_rng(0).integers(0, n_labels, len(docs))
    probe = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, kind=labels)
    sums = sums_of(model, docs)
    assert_chance(probe.result(), "kind", sums.information(labels), sums.permuted(labels))
    of_set = probe.result().info["document_labels"]["kind"]
    assert of_set == {"labels": n_labels, "documents": 40, "sampled": 40, "alone": 0, "exchangeable": 40}


def test_labels_that_say_nothing_have_no_corrected_information_and_any_p(model):
    docs = documents(60, seed=1)
    random = np.random.default_rng(0)
    coins = {f"coin{i}": random.integers(0, 2, len(docs)) for i in range(12)}
    result = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, **coins).result()
    table = result.to_pandas("nats").query("name == @ROW")
    corrected, null = (
        table[table.metric == f"mutual_information_{name}"].value.to_numpy() for name in ("corrected", "null")
    )
    sd = table[table.metric == "mutual_information_null_sd"].value.mean()
    assert abs(corrected.mean()) < 3 * sd / np.sqrt(12)
    assert abs(corrected.mean()) < 0.4 * null.mean()
    p_values = table.p_value.dropna()
    assert len(p_values) == 12
    assert p_values.min() < 0.5 < p_values.max()


def test_a_label_that_tells_documents_apart_is_significant(model):
    docs = [[1 + (d % 2) * 6 + t % 6 for t in range(d, d + 8)] for d in range(30)]
    labels = np.arange(30) % 2
    result = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, half=labels).result()
    table = result.to_pandas().query("label_set == 'half'")
    assert (table.p_value.dropna() == 0.001).all()
    kept = table[table.metric == "mutual_information_corrected"].value.to_numpy()
    raw = table[table.metric == "mutual_information"].value.to_numpy()
    assert (kept > 0.8 * raw).all()


def test_labels_of_positions_and_labels_that_differ_within_a_sequence_are_not_of_documents(model):
    docs = [doc for doc in documents(24) if len(doc) > 4][:12]
    probe = SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1)
    with probe, torch.no_grad():
        for i, batch in enumerate(batches(docs, 4)):
            whole = torch.arange(4)
            by_position = whole[:, None].expand(batch["input_ids"].shape)
            sometimes = by_position if i == 1 else whole
            with probe.labelled(whole=whole % 2, by_position=by_position, sometimes=sometimes):
                model(**batch)
    result = probe.result()
    assert list(result.info["document_labels"]) == ["whole"]
    assert set(result.to_pandas().dropna(subset="p_value").label_set) == {"whole"}


def test_a_cached_sequence_is_one_document_however_it_is_fed(model):
    docs = [doc for doc in documents(40) if len(doc) >= 6][:16]
    labels = torch.arange(16) % 3
    whole = measure(
        SoftEntropyProbe(model, labels=("output_unigram",), n_anchors=M, anchor_sets=1), model, docs, 1, kind=labels
    )
    pieces = SoftEntropyProbe(model, labels=("output_unigram",), n_anchors=M, anchor_sets=1)
    with pieces, torch.no_grad():
        for doc, label in zip(docs, labels, strict=True):
            cache = None
            for start, end in ((0, 4), (4, 5), (5, len(doc))):
                with pieces.labelled(kind=label.reshape(1)):
                    out = model(input_ids=torch.tensor([doc[start:end]]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
    one, other = (probe.result() for probe in (whole, pieces))
    assert one.info["document_labels"] == other.info["document_labels"]
    # Keys are of the tokens that were fed first, so that documents have another order, and other relabelings.
    a, b = (
        result.to_pandas("nats").query("label_set == 'kind'").set_index(["name", "metric"]) for result in (one, other)
    )
    by_chance = a.index.get_level_values("metric").isin(["mutual_information_null", "mutual_information_null_sd"])
    np.testing.assert_allclose(b.value[by_chance], a.value[by_chance], rtol=0.1)
    corrected = a.index.get_level_values("metric") == "mutual_information_corrected"
    np.testing.assert_allclose(b.value[corrected], a.value[corrected], atol=4e-3)
    raw = ~(by_chance | corrected)
    np.testing.assert_allclose(b.value[raw], a.value[raw], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(b.p_value, a.p_value, atol=0.05)


def test_parts_that_are_merged_and_states_that_are_loaded_are_as_the_whole(model):
    docs, labels = documents(40), np.arange(40) % 3
    whole = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, kind=labels)
    first, second = (SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1) for _ in range(2))
    measure(first, model, docs[:20], kind=labels[:20])
    measure(second, model, docs[20:], kind=labels[20:])
    again = first.new_like()
    again.load_state_dict(first.state_dict())
    again.merge(second)
    one, other = whole.result(), again.result()
    assert one.info["document_labels"] == other.info["document_labels"]
    np.testing.assert_allclose(other.to_pandas().value, one.to_pandas().value, rtol=1e-5, atol=1e-7)
    assert other.to_pandas().p_value.equals(one.to_pandas().p_value)
    measure(again, model, docs[:4], kind=labels[:4])  # goes on
    assert again.result().info["document_labels"]["kind"]["documents"] == 44


def test_an_earlier_state_says_that_documents_were_not_sampled(model):
    docs, labels = documents(12), np.arange(12) % 3
    probe = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, kind=labels)
    state = {**probe.state_dict(), "version": VERSION_WITH_DOCUMENTS - 1}
    new = probe.new_like()
    new.load_state_dict(state)
    measure(new, model, docs, kind=labels)
    result = new.result()
    assert "document_labels" not in result.info
    (choice,) = result.info["choices"]
    assert choice["about"] == "chance of labels of documents"
    assert not choice["certain"]


def test_documents_that_each_have_their_own_label_are_told(model):
    docs = documents(12)
    with pytest.warns(UserWarning, match="chance of identity: all of its information .each document has a label of"):
        result = measure(
            SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, identity=np.arange(12)
        ).result()
    table = result.to_pandas("nats").set_index(["name", "label_set", "metric"]).value.loc[ROW, "identity"]
    assert table["mutual_information_null"] == pytest.approx(table["mutual_information"], rel=1e-4)
    assert np.isnan(table["mutual_information_corrected"])
    assert (result.to_pandas().p_value.dropna() == 1).all()


def test_a_sample_has_no_p_value_of_more_labels_than_it_tells_of(model, monkeypatch):
    monkeypatch.setattr("softh_probe.accumulators.document_sample.MAX_DOCUMENTS", 20)
    monkeypatch.setattr("softh_probe.accumulators.document_labels.MOST_LABELS_OF_SAMPLE", 4)
    docs, numbers = documents(40), np.arange(40)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1)
    measure(probe, model, docs, few=numbers % 4, many=numbers % 5)
    with pytest.warns(
        UserWarning, match="p_value of many: not known .a sample of 20 of 40 documents says too little of"
    ):
        result = probe.result()
    table = result.to_pandas()
    assert set(table.dropna(subset="p_value").label_set) == {"few"}
    null = table[(table.label_set == "many") & (table.metric == "mutual_information_null")].value
    assert (null > 0).all()


@pytest.mark.parametrize("most", [12, 24])
def test_a_sample_of_documents_is_close_to_all_and_bounded(model, monkeypatch, most):
    monkeypatch.setattr("softh_probe.accumulators.document_sample.MAX_DOCUMENTS", most)
    docs, labels = documents(60), np.random.default_rng(0).integers(0, 3, 60)
    probe = measure(SoftEntropyProbe(model, labels=(), n_anchors=M, anchor_sets=1), model, docs, kind=labels)
    sums = probe._sums[ROW].documents
    assert len(sums) >= most
    of_all = sums_of(model, docs)
    numbers, slots = zip(*probe._source.rows.documents._sample._slots.items(), strict=True)
    assert len(slots) == most
    np.testing.assert_allclose(sums[list(slots), :M], of_all.mass[list(numbers)], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sums[list(slots), -1], of_all.n[list(numbers)])
    keys = probe._source.rows.documents._sample._keys.keys
    result = probe.result()
    assert result.info["document_labels"]["kind"]["documents"] == 60
    assert result.info["document_labels"]["kind"]["sampled"] == most == len(keys)
    assert any("sample of" in choice["chosen"] for choice in result.info["choices"])
    permuted = of_all.permuted(labels, n=400).mean()
    assert value(result, ROW, "mutual_information_null", "kind") == pytest.approx(permuted, rel=0.6)


# --- runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Rows of two answers to one prompt, with a language and a source; one answer is missing."""
    random = np.random.default_rng(0)
    words = "the cat sat on mat and dog ran over hill red blue one two three".split()  # noqa: SIM905

    def text() -> str:
        return " ".join(random.choice(words, size=random.integers(4, 20)))

    rows = []
    for i in range(40):
        prompt = text()
        row = {"chosen": f"{prompt} {text()}", "rejected": f"{prompt} {text()}", "language": "ab"[i % 2]}
        rows.append({**row, "source": f"source {i % 3}", "number": i})
    rows[7]["rejected"] = ""
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path, rows


SETTINGS = {
    "labels": ["column:text_column", "column:language"],
    "text_column": "chosen,rejected",
    "tokens_per_batch": 128,
    "cache": "none",
    "anchor_sets": 1,
}


def read_sums(checkpoint, rows, max_length=512):
    """Sums of each document of each row, with the row and the column it comes from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, of_run = AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    found = [
        (i, name, tokenizer(row[name])["input_ids"])
        for i, row in enumerate(rows)
        for name in ("chosen", "rejected")
        if row[name]
    ]
    sums = sums_of(of_run.eval(), [ids for _, _, ids in found])
    return sums, np.array([i for i, _, _ in found]), np.array([name for _, name, _ in found])


@pytest.mark.parametrize("stream", [False, True])
def test_pairs_are_exchanged_within_rows_and_rows_as_wholes(config, pairs, checkpoint, stream):
    path, rows = pairs
    result = run_checkpoint(config(**SETTINGS, data=str(path), stream=stream), progress=False)
    sums, row, column = read_sums(checkpoint, rows)
    assert_chance(result, "column:text_column", sums.information(column), sums.permuted(column, row))
    of_rows, language = sums.joined(row), np.array([r["language"] for r in rows])
    assert_chance(result, "column:language", of_rows.information(language), of_rows.permuted(language))
    described = result.info["document_labels"]
    assert described["column:text_column"]["documents"] == 79
    assert described["column:text_column"]["exchangeable"] == 78
    assert described["column:language"]["documents"] == 40


@pytest.mark.parametrize("stream", [False, True])
def test_labels_are_exchanged_within_the_groups_that_are_named(config, pairs, checkpoint, stream):
    path, rows = pairs
    settings = {**SETTINGS, "labels": ["column:language"], "permute_within": "source", "stream": stream}
    result = run_checkpoint(config(**settings, data=str(path)), progress=False)
    sums, row, _ = read_sums(checkpoint, rows)
    of_rows = sums.joined(row)
    language, source = (np.array([r[name] for r in rows]) for name in ("language", "source"))
    permuted = of_rows.permuted(language, source)
    assert_chance(result, "column:language", of_rows.information(language), permuted)


def test_labels_that_cannot_be_exchanged_are_told(config, pairs):
    path, _ = pairs
    settings = {**SETTINGS, "labels": ["column:language"], "permute_within": "number", "data": str(path)}
    result = run_checkpoint(config(**settings), progress=False)
    assert any("chance of column:language: all of its information" in text for text in result.info["warnings"])
    assert (result.to_pandas().p_value.dropna() == 1).all()


def test_splits_share_their_document_and_a_sample_holds_whole_rows(config, pairs, monkeypatch):
    path, _ = pairs
    whole = run_checkpoint(config(**SETTINGS, data=str(path), max_length=8, overflow="split"), progress=False)
    assert whole.info["document_labels"]["column:text_column"]["documents"] == 79
    monkeypatch.setattr("softh_probe.planned.document_sample.MAX_DOCUMENTS", 21)
    monkeypatch.setattr("softh_probe.accumulators.document_sample.MAX_DOCUMENTS", 21)
    found = [
        run_checkpoint(
            config(**SETTINGS, data=str(path), max_length=8, overflow="split", stream=stream, out=f"{path}.{stream}"),
            progress=False,
        )
        for stream in (False, True)
    ]
    for result in found:
        described = result.info["document_labels"]
        assert described["column:text_column"]["sampled"] == 21
        assert described["column:text_column"]["exchangeable"] == 20
        assert described["column:language"]["documents"] == 40
    a, b = (result.to_pandas("nats") for result in found)
    np.testing.assert_allclose(b.value, a.value, rtol=1e-4, atol=1e-6)
    assert a.p_value.equals(b.p_value)


@pytest.mark.parametrize("most", [21, 30])
def test_a_stream_ends_wherever_the_sample_cuts_a_row(config, pairs, monkeypatch, most):
    monkeypatch.setattr("softh_probe.accumulators.document_sample.MAX_DOCUMENTS", most)
    path, rows = pairs
    for row in rows[8:28]:  # copies
        row["chosen"] = "the cat sat on mat"
    rows[5]["chosen"] = ""
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {**SETTINGS, "labels": ["column:text_column"], "stream": True, "max_length": 12, "overflow": "split"}
    result = run_checkpoint(config(**settings, data=str(path)), progress=False)
    assert result.info["document_labels"]["column:text_column"]["documents"] == 78


@pytest.mark.parametrize("text_column", ["chosen", "chosen,rejected"])
def test_a_sample_has_its_share_of_the_copies_of_a_text(config, pairs, checkpoint, monkeypatch, text_column):
    monkeypatch.setattr("softh_probe.planned.document_sample.MAX_DOCUMENTS", 21)
    monkeypatch.setattr("softh_probe.accumulators.document_sample.MAX_DOCUMENTS", 21)
    path, rows = pairs
    for row in rows[::2]:
        row["chosen"] = row["rejected"] = rows[0]["chosen"]
    for i, row in enumerate(rows):
        row["coin"] = i // 2 % 2
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {**SETTINGS, "text_column": text_column, "labels": ["column:language", "column:coin"], "data": str(path)}
    found = [
        run_checkpoint(config(**settings, max_length=8, overflow="split", stream=stream, out=out), progress=False)
        for stream, out in ((False, f"{path}.planned"), (True, f"{path}.stream"))
    ]
    for result in found:  # half of the rows of each language, and copies are of one language
        assert result.info["document_labels"]["column:language"]["exchangeable"] > 0
    a, b = (result.to_pandas("nats") for result in found)
    np.testing.assert_allclose(b.value, a.value, rtol=1e-4, atol=1e-6)
    assert a.p_value.equals(b.p_value)
    raw, null = (value(found[0], ROW, f"mutual_information{of}", "column:coin") for of in ("", "_null"))
    assert raw < 5 * null  # a coin; a sample of copies would say that there is no chance


def test_a_column_of_many_values_is_corrected_where_all_documents_are_sampled(config, tmp_path, monkeypatch):
    monkeypatch.setattr("softh_probe.planned.row_allocation.KEPT_LABELS", 3)
    rows = [{"text": f"the cat sat {'again ' * (i % 5)}on {i}", "id": f"{i // 2}"} for i in range(20)]
    path = tmp_path / "ids.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = {"labels": ["column:id"], "data": str(path), "cache": "none"}
    few = run_checkpoint(config(**settings), progress=False)
    monkeypatch.setattr("softh_probe.planned.row_allocation.KEPT_LABELS", 100)
    kept = run_checkpoint(config(**settings, out=str(tmp_path / "kept")), progress=False)
    np.testing.assert_allclose(few.to_pandas().value, kept.to_pandas().value, rtol=1e-5, atol=1e-7)
