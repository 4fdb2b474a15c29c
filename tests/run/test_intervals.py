"""Intervals: influences of documents and their standard errors, from runs, against loops and a bootstrap."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import softh_probe.run.forward
from softh_probe import ProbeResult, sample_anchors, temperature
from softh_probe.cli import main
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, Interrupted
from softh_probe.planned.second_pass import SecondPass
from softh_probe.run import run
from softh_probe.run.dry_run import dry_run
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import LANGUAGES, TEXTS, real_documents
from tests.helpers.interruptions import stop_after_three_batches
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NGRAMS
from tests.helpers.sweeps import small_tokenizer
from tests.run.test_processes import pytestmark as needs_processes
from tests.run.test_processes import together

LABELS = ["input_unigram", "output_unigram", "input_bigram", "output_bigram", "output_trigram", "column:language"]
ORDERS = ["unigram", "bigram"]


def intervals(config, **changes):
    return config(**{"labels": LABELS, "intervals": True, "anchor_sets": 2, "tokens_per_batch": 60, **changes})


def expected_influences(checkpoint, row: str) -> dict:
    """ψ of each document by set and metric, averaged over two anchor sets, scaled to all positions; by loops."""
    model, tokenizer = (kind.from_pretrained(checkpoint) for kind in (AutoModelForCausalLM, AutoTokenizer))
    docs = tokenizer(TEXTS)["input_ids"]
    ngrams = [ngram for ngram in NGRAMS if ngram[0] in LABELS]
    document_of = [d for d, tokens in enumerate(docs) for _ in range(max(len(tokens) - 4, 0))]
    found: dict = {}
    for seed in (0, 1):
        anchors = sample_anchors(20, 24, seed).numpy()
        dense = references.measure(model, docs, ngrams, anchors, temperature(20, 24), {"column:language": LANGUAGES})
        q = dense.q[row]
        psi = {("", "entropy"): references.influences(q, document_of)["entropy"]}
        information = {}
        for name in LABELS:
            labels = dense.labels[name]
            scale = len(q) / sum(label is not None for label in labels)
            of_set = references.influences(q, document_of, labels)
            for metric in ("mutual_information", "regularity"):
                psi[name, metric] = {d: scale * value for d, value in of_set[metric].items()}
            known = [i for i, label in enumerate(labels) if label is not None]
            information[name] = references.mutual_information(q[known], [labels[i] for i in known])
        for order in ORDERS:
            output, given = f"output_{order}", f"input_{order}"
            ratio = information[output] / information[given]
            psi[order, "optimality"] = {
                d: (value - ratio * psi[given, "mutual_information"][d]) / information[given]
                for d, value in psi[output, "mutual_information"].items()
            }
        for name, of_documents in psi.items():
            for d, value in of_documents.items():
                found.setdefault(name, {}).setdefault(d, []).append(value)
    return {name: {d: np.mean(values) for d, values in of.items()} for name, of in found.items()}


@pytest.mark.parametrize("row", ["embeddings", "layer.2", "final_norm"])
def test_influences_are_those_of_loops_over_hidden_states(config, checkpoint, row):
    result = run(intervals(config, interval_documents=None), progress=False)
    influence, r = result.influence, result.rows.index(row)
    expected = expected_influences(checkpoint, row)
    assert list(influence.values) == list(expected)
    for name, of_documents in expected.items():
        psi_D = influence.values[name][r]
        want = [of_documents.get(d, 0.0) for d in influence.documents.tolist()]
        np.testing.assert_allclose(psi_D, want, atol=2e-5 * max(map(abs, want)), err_msg=str(name))


def test_influences_of_all_documents_add_up_to_nothing(config):
    influence = run(intervals(config, interval_documents=None), progress=False).influence
    assert len(influence.documents) == influence.n_documents
    assert influence.positions.sum() == influence.n_positions
    for name, psi_RD in influence.values.items():
        assert abs(psi_RD.sum(axis=1)).max() < 1e-6 * influence.n_positions, name
        assert abs(psi_RD).sum(axis=1).min() > 1e-3 * influence.n_positions, name


def test_values_stay_as_they_are_without_intervals(config, tmp_path):
    plain = run(intervals(config, intervals=False, out=str(tmp_path / "plain")), progress=False)
    result = run(intervals(config), progress=False)
    assert plain.influence is None
    assert "intervals" not in plain.info
    assert set(plain.info["seconds"]) == {"load", "tokenise", "plan", "forward", "finish"}
    assert set(result.info["seconds"]) == {*plain.info["seconds"], "intervals"}
    assert_same_values(result.to_pandas("nats").drop(columns="se"), plain.to_pandas("nats"))
    assert result.info["positions"] == plain.info["positions"]
    assert result.info["tokens"] == plain.info["tokens"]


def test_a_result_without_intervals_leaves_no_influences_of_an_earlier_one(config, tmp_path):
    run(intervals(config), progress=False)
    assert (tmp_path / "out" / "documents.parquet").is_file()
    run(intervals(config, intervals=False, overwrite=True), progress=False)
    assert not (tmp_path / "out" / "documents.parquet").exists()


def test_the_files_hold_errors_and_influences(config, tmp_path):
    result = run(intervals(config, interval_documents=None), progress=False)
    out = tmp_path / "out"
    loaded = ProbeResult.load(out)
    missing = dict.fromkeys(("layer", "sd", "se", "p_value"), "")
    table = pd.read_csv(out / "layers.csv", keep_default_na=False, na_values=missing, dtype={"layer": "Int64"})
    pd.testing.assert_frame_equal(table, result.to_pandas(), check_dtype=False)
    of_sets = {"mutual_information", "regularity", "optimality", "entropy"}
    of_means = {"regularity_mean_of_layers", "optimality_mean_of_layers"}
    assert set(table[table.se.notna()].metric) == of_sets | of_means
    unknown = table[table.metric.isin(of_sets) & table.se.isna()]  # of a column that some documents have no value of
    assert unknown[["name", "label_set", "metric"]].values.tolist() == [["mean", "column:language", "regularity"]]
    for name, psi_RD in result.influence.values.items():
        np.testing.assert_array_equal(loaded.influence.values[name], psi_RD)
        se_R = loaded.influence.standard_error(name)
        np.testing.assert_allclose(se_R, np.sqrt((psi_RD**2).sum(axis=1)) / loaded.info["positions"])
        np.testing.assert_allclose(se_R, loaded.standard_errors()[name])
    info = json.loads((out / "result.json").read_text())["intervals"]
    assert info.pop("seconds") > 0
    assert info == {"documents": 30, "of_documents": 30, "units": 30, "of_units": 30, "sets": LABELS}
    assert RunConfig(**{**loaded.info["config"], "out": "x"}).intervals


# --- a bootstrap of real documents -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """200 pieces of real text, a tokenizer of characters, and a tiny model."""
    folder = tmp_path_factory.mktemp("real")
    texts = real_documents(200)
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text, "kind": kind}) for text, kind in texts))
    characters = ["<unk>", *sorted({c for text, _ in texts for c in text})]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder / "model")
    tiny_llama(vocab_size=len(characters), max_position_embeddings=512).save_pretrained(folder / "model")
    return folder


def of_real(real, out, **changes) -> RunConfig:
    settings = {"labels": ["input_unigram", "output_unigram", "column:kind"], "n_anchors": 20, "anchor_sets": 1}
    paths = {"model": str(real / "model"), "data": str(real / "texts.jsonl"), "out": str(out)}
    return RunConfig(**{**paths, **settings, "intervals": True, "report": False, **changes})


def bootstrap(q, document_of, labels, n_replicates=2000) -> dict:
    """Standard deviations over resampled documents of H, and of I and I/H of each set, and of I(output)/I(input)."""
    generator = np.random.default_rng(0)
    n_documents = max(document_of) + 1
    weights = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=n_replicates)
    q, document_of = torch.from_numpy(q), torch.tensor(document_of)

    def by_document(label_N):
        """The sums of each label in each document."""
        pairs, where = torch.stack([document_of, label_N]).unique(dim=1, return_inverse=True)
        return pairs, torch.zeros(pairs.shape[1], q.shape[1], dtype=q.dtype).index_add_(0, where, q)

    def h(mass_LM):
        n_L = mass_LM.sum(dim=1)
        return (torch.xlogy(n_L, n_L) - torch.xlogy(mass_LM, mass_LM).sum(dim=1)).sum() / n_L.sum()

    codes = {name: torch.from_numpy(pd.factorize(pd.Series(of))[0]) for name, of in labels.items()}
    parts = {name: by_document(label_N) for name, label_N in codes.items()}
    _, of_documents = by_document(torch.zeros(len(q), dtype=torch.long))
    found: dict = {}
    for weight in torch.from_numpy(weights).double():
        whole = h((weight @ of_documents).unsqueeze(0)).item()
        values = {("", "entropy"): whole}
        for name, ((document, label), sums) in parts.items():
            mass = sums.new_zeros(int(label.max()) + 1, sums.shape[1])
            information = whole - h(mass.index_add_(0, label, weight[document].unsqueeze(1) * sums)).item()
            values |= {(name, "mutual_information"): information, (name, "regularity"): information / whole}
        given, output = (values[f"{name}_unigram", "mutual_information"] for name in ("input", "output"))
        values["unigram", "optimality"] = output / given
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.std(values) for name, values in found.items()}


@pytest.mark.slow
def test_standard_errors_are_those_of_a_bootstrap_of_real_documents(real, tmp_path):
    result = run(of_real(real, tmp_path / "out", interval_documents=None), progress=False)
    model, tokenizer = (kind.from_pretrained(real / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    texts = real_documents(200)
    docs = tokenizer([text for text, _ in texts])["input_ids"]
    assert result.info["intervals"]["documents"] == 200
    anchors = sample_anchors(20, 24).numpy()
    columns = {"column:kind": [kind for _, kind in texts]}
    ngrams = [ngram for ngram in NGRAMS if "unigram" in ngram[0]]
    dense = references.measure(model, docs, ngrams, anchors, temperature(20, 24), columns)
    document_of = [d for d, tokens in enumerate(docs) for _ in range(len(tokens) - 1)]
    found = result.standard_errors()
    # Later layers of a random model know little of the next token: their information is mostly bias, not linear.
    for row in ("embeddings", "layer.1"):
        expected = bootstrap(dense.q[row], document_of, dense.labels)
        assert found.keys() == expected.keys()
        for name, sd in expected.items():
            assert found[name][result.rows.index(row)] == pytest.approx(sd, rel=0.1), (row, name)


def test_a_share_of_the_documents_gives_nearly_the_errors_of_all(real, tmp_path):
    every = run(of_real(real, tmp_path / "all", interval_documents=None), progress=False)
    share = run(of_real(real, tmp_path / "share", interval_documents=100), progress=False)
    assert share.info["intervals"]["documents"] == 100
    assert share.info["intervals"]["of_documents"] == 200
    ratios = [
        (share.standard_errors()[name] / se_R)[r].item()
        for name, se_R in every.standard_errors().items()
        for r in (1, 4)
    ]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)
    assert min(ratios) > 0.7
    assert max(ratios) < 1.4
    places = np.isin(every.influence.documents, share.influence.documents)
    for name, psi_RD in share.influence.values.items():
        of_all = every.influence.values[name][:, places]
        np.testing.assert_allclose(psi_RD, of_all, atol=2e-5 * abs(of_all).max())
    assert set(share.influence.keys) < set(every.influence.keys)
    again = run(of_real(real, tmp_path / "again", interval_documents=100, tokens_per_batch=300), progress=False)
    assert set(again.influence.documents) == set(share.influence.documents)


# --- rows that are held ----------------------------------------------------------------------------------------------


def test_sets_that_do_not_fit_have_no_error_and_are_warned_of(real, tmp_path):
    labels = ["input_unigram", "output_bigram", "column:kind"]
    plain = of_real(real, tmp_path / "dry", labels=labels, label_rows="all", intervals=False)
    rows = {name: of["rows"] for name, of in dry_run(plain, progress=False).to_json()["label_sets"].items()}
    at_once = rows["input_unigram"] + rows["output_bigram"]  # enough for all labels, which come and go
    every = dry_run(dataclasses.replace(plain, intervals=True), progress=False)
    n = every.to_json()["label_sets"]["output_bigram"]["rows"]
    assert rows["output_bigram"] < n
    assert not any("intervals" in text for text in every.warnings)
    config = dataclasses.replace(plain, label_rows=at_once, intervals=True, out=str(tmp_path / "out"))
    warning = (
        f"intervals of output_bigram: not known (its {n:,} labels that occur several times do not fit, beside those of "
        f"other sets, in label_rows {at_once:,}; raise --label-rows)"
    )
    planned = dry_run(config, progress=False)
    assert warning in planned.warnings
    assert planned.to_json()["label_sets"]["output_bigram"]["rows"] < n
    described = "; intervals of entropy, input_unigram, column:kind by a second pass over 200 of 200 documents"
    assert described in planned.describe()
    result = run(config, progress=False)
    assert [text for text in result.info["warnings"] if "intervals" in text] == [warning]
    assert result.info["intervals"]["sets"] == ["input_unigram", "column:kind"]
    table = result.to_pandas()
    known = table[table.metric == "mutual_information"].groupby("label_set").se.apply(lambda se: se.notna().all())
    assert known.to_dict() == {"input_unigram": True, "column:kind": True, "output_bigram": False}


def test_sets_that_fit_are_held_and_only_the_others_are_sampled(real, tmp_path):
    labels = ["input_unigram", "output_bigram"]
    plain = of_real(real, tmp_path / "plain", labels=labels, label_rows="all", intervals=False)
    every = run(plain, progress=False)
    n = every.info["label_sampling"]["input_unigram"]["labels"]
    few = dataclasses.replace(plain, label_rows=n, out=str(tmp_path / "few"))
    thresholds = {name: of["threshold"] for name, of in run(few, progress=False).info["label_sampling"].items()}
    assert all(threshold > 1 for threshold in thresholds.values())
    result = run(dataclasses.replace(few, intervals=True, out=str(tmp_path / "out")), progress=False)
    thresholds = {name: of["threshold"] for name, of in result.info["label_sampling"].items()}
    assert thresholds["input_unigram"] == 1 < thresholds["output_bigram"]
    assert result.info["intervals"]["sets"] == ["input_unigram"]
    assert any(text.startswith("intervals of output_bigram: not known (") for text in result.info["warnings"])
    whole, found = (r.to_pandas("nats").query("label_set == 'input_unigram'").value for r in (every, result))
    np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-7)


def test_a_column_of_many_values_is_held_like_n_grams(config, tmp_path, monkeypatch):
    monkeypatch.setattr("softh_probe.planned.row_allocation.KEPT_LABELS", 1)
    few = run(intervals(config, out=str(tmp_path / "few"), cache="none"), progress=False)
    monkeypatch.undo()
    many = run(intervals(config, cache="none"), progress=False)
    for name, psi_RD in many.influence.values.items():
        np.testing.assert_allclose(few.influence.values[name], psi_RD, atol=2e-5 * abs(psi_RD).max())


# --- units -----------------------------------------------------------------------------------------------------------


def test_documents_of_one_row_are_one_unit_and_are_chosen_together(config, tmp_path):
    pairs = [{"chosen": one, "rejected": other} for one, other in zip(TEXTS[::2], TEXTS[1::2], strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    given = {"data": str(tmp_path / "pairs.jsonl"), "text_column": "chosen,rejected"}
    labels = ["input_unigram", "column:text_column"]
    influence = run(intervals(config, interval_documents=9, labels=labels, **given), progress=False).influence
    assert len(influence.documents) == 8
    assert influence.n_documents == 30
    assert influence.n_units == 15
    units, sizes = np.unique(influence.units, return_counts=True)
    assert sizes.tolist() == [2, 2, 2, 2]
    psi = influence.values["", "entropy"]
    summed = np.stack([psi[:, influence.units == unit].sum(axis=1) for unit in units])
    expected = np.sqrt(15 / 4 * (summed**2).sum(axis=0)) / influence.n_positions
    np.testing.assert_allclose(influence.standard_error(("", "entropy")), expected)


def test_windows_of_a_split_document_are_one_document(config, tmp_path):
    result = run(intervals(config, labels=["input_unigram"], max_length=8, overflow="split"), progress=False)
    influence = result.influence
    assert len(influence.documents) == influence.n_documents == 30
    assert result.info["corpus"]["documents"] > 40
    assert influence.positions.sum() == result.info["positions"]
    assert influence.positions.max() > 8
    psi = influence.values["input_unigram", "mutual_information"]
    assert (abs(psi.sum(axis=1)) < 1e-5 * abs(psi).sum(axis=1)).all()


def test_a_single_document_has_no_error(config, tmp_path):
    result = run(intervals(config, max_documents=1, labels=["input_unigram"]), progress=False)
    assert result.standard_errors() == {}
    assert any(text.startswith("intervals: not known (") for text in result.info["warnings"])


def test_few_documents_are_warned_of(config, tmp_path):
    result = run(intervals(config, interval_documents=5, labels=["input_unigram"]), progress=False)
    assert any(text.startswith("intervals: rough (they are over 5 rows of") for text in result.info["warnings"])


# --- kinds of runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_per_batch": 1},
        {"tokens_per_batch": 4096},
        {"per_label": ["input_unigram", "output_trigram"]},
        {"cache": "none"},
    ],
)
def test_influences_do_not_depend_on_batches_or_what_is_shown(config, tmp_path, changes):
    one = run(intervals(config, out=str(tmp_path / "one")), progress=False)
    other = run(intervals(config, **changes), progress=False)
    for name, psi_RD in one.influence.values.items():
        np.testing.assert_allclose(other.influence.values[name], psi_RD, atol=3e-5 * abs(psi_RD).max())


def test_batches_of_equal_length_and_some_layers(config, monkeypatch, tmp_path):
    whole = run(intervals(config, out=str(tmp_path / "whole")), progress=False)
    monkeypatch.setattr("softh_probe.run.pipeline.choose_batching", lambda *_: "equal lengths")
    some = run(intervals(config, layers=["layer.2", "final_norm"]), progress=False)
    assert some.influence.rows == ["layer.2", "final_norm"]
    places = [whole.rows.index(row) for row in some.rows]
    for name, psi_RD in whole.influence.values.items():
        np.testing.assert_allclose(some.influence.values[name], psi_RD[places], atol=3e-5 * abs(psi_RD).max())


def test_no_labels_and_an_encoder(config, tmp_path):
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path / "t5")
    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    t5 = T5Config(vocab_size=len(tokenizer), **sizes, decoder_start_token_id=0, pad_token_id=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    result = run(intervals(config, model=str(tmp_path / "t5"), labels=[]), progress=False)
    assert list(result.influence.values) == [("", "entropy")]
    assert (result.tensors["se_entropy"] > 0).all()
    assert result.tensors["se_information"].shape == (len(result.rows), 0)
    ProbeResult.load(tmp_path / "out")


def test_a_stream_and_too_few_documents_are_refused_in_one_line(config):
    with pytest.raises(InputError, match=r"intervals: a stream cannot be read twice.* leave out --stream"):
        intervals(config, stream=True)
    for n in (0, -1, 1):
        with pytest.raises(InputError, match="interval_documents: expected at least 2, got"):
            config(interval_documents=n)
    assert config(interval_documents=None).interval_documents is None
    assert config(interval_documents=7, stream=True).interval_documents == 7


# --- interruptions and processes -------------------------------------------------------------------------------------


def stop_in_second_pass(monkeypatch, how=lambda: os.kill(os.getpid(), signal.SIGTERM)):
    """Act while the second batch of the second pass is prepared."""
    original, calls = SecondPass.batch, iter(range(1000))

    def batch(self, windows):
        if next(calls) == 1:
            how()
        return original(self, windows)

    monkeypatch.setattr(SecondPass, "batch", batch)


@pytest.mark.parametrize("how", ["a signal", "an error"])
def test_an_interruption_of_the_second_pass_does_not_lose_the_first(config, tmp_path, monkeypatch, how):
    settings = {"snapshot_minutes": 0, "out": str(tmp_path / "stopped")}
    whole = run(intervals(config), progress=False)
    with monkeypatch.context() as patch:
        if how == "a signal":
            stop_in_second_pass(patch)
            with pytest.raises(Interrupted, match="in the pass for intervals; the same command resumes with that pass"):
                run(intervals(config, **settings), progress=False)
        else:
            stop_in_second_pass(patch, lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(intervals(config, **settings), progress=False)
    fed = []
    original = softh_probe.run.forward.pad_batch

    def pad_batch(corpus, documents):
        fed.append(len(documents))
        return original(corpus, documents)

    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)
    result = run(intervals(config, **settings), progress=False)
    assert sum(fed) == 30  # the second pass alone
    assert result.info["interruptions"] == 1
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix == ".parquet"}
    assert files.keys() == {"layers.parquet", "documents.parquet"}
    assert {name: (tmp_path / "stopped" / name).read_bytes() for name in files} == files
    assert_same_values(result.to_pandas("nats"), whole.to_pandas("nats"))


def test_a_run_that_was_stopped_before_there_were_intervals_goes_on(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_three_batches(patch)
        with pytest.raises(Interrupted):
            run(intervals(config, intervals=False), progress=False)
    (path,) = (tmp_path / "out").glob("unfinished/snapshots/*/snapshot.json")
    head = json.loads(path.read_text().split("\n")[1])
    for name in ("intervals", "interval_documents"):
        del head["run"]["config"][name]
    text = json.dumps(head)
    path.write_text(f"{softh_probe.run.snapshots.text_sha256(text)}\n{text}\n")
    with pytest.raises(InputError, match=r"another configuration \(intervals: expected False, got True\)"):
        run(intervals(config), progress=False)
    assert run(intervals(config, intervals=False), progress=False).info["interruptions"] == 1


@needs_processes
def test_two_processes_give_the_numbers_of_one(config, tmp_path):
    one = run(intervals(config, out=str(tmp_path / "one"), interval_documents=20), progress=False)
    shared = intervals(config, out=str(tmp_path / "shared"), interval_documents=20, cache="none")
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    two = ProbeResult.load(shared.out)
    assert two.info["processes"] == 2
    assert two.info["intervals"] | {"seconds": 0} == one.info["intervals"] | {"seconds": 0}
    assert_same_values(two.to_pandas("nats"), one.to_pandas("nats"))
    np.testing.assert_array_equal(two.influence.documents, one.influence.documents)
    for name, psi_RD in one.influence.values.items():
        scale = abs(psi_RD).max()
        np.testing.assert_allclose(two.influence.values[name] / scale, psi_RD / scale, atol=2e-5)
        np.testing.assert_allclose(two.standard_errors()[name], one.standard_errors()[name], atol=1e-6)


@needs_processes
def test_two_processes_stopped_in_the_second_pass_go_on_with_it(config, tmp_path):
    shared = intervals(config, out=str(tmp_path / "shared"), cache="none", snapshot_minutes=0)

    def stop(rank: int) -> None:
        original, calls = SecondPass.batch, iter(range(1000))

        def batch(self, windows):
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, windows)

        SecondPass.batch = batch

    ended = together(shared, tmp_path, stop)
    assert [code for code, _ in ended] == [143, 143]
    assert "in the pass for intervals; the same command resumes with that pass" in ended[0][1]
    assert [code for code, _ in together(shared, tmp_path)] == [0, 0]
    result = ProbeResult.load(shared.out)
    assert result.info["interruptions"] == 1
    whole = run(intervals(config), progress=False)
    assert_same_values(result.to_pandas("nats"), whole.to_pandas("nats"))


def test_the_progress_bar_names_the_pass(config, capsys):
    words = ["--intervals", "--interval-documents=20", "--labels=input_unigram", "--n-anchors=20", "--no-report"]
    given = intervals(config)
    paths = [f"--model={given.model}", f"--data={given.data}", f"--out={given.out}"]
    assert main(["run", *paths, *words]) == 0
    error = capsys.readouterr().err
    assert "intervals: 100%" in error
    assert "intervals of entropy, input_unigram by a second pass over 20 of 30 documents" in error
