"""A probe with few rows of labels: what it follows has the sums of a probe that follows all."""

import gzip
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from softh_probe import SoftEntropyProbe
from softh_probe.distributed import gather
from softh_probe.errors import InputError, ProbeError
from tests.helpers.generation import left_padded, prompts
from tests.helpers.models import tiny_llama

LABELS = ["input_unigram", "output_unigram", "input_bigram", "output_trigram"]
STATES = Path(__file__).parent.parent / "stored" / "states"


def followed(probe):
    """Count, missing positions and sums in every layer of each followed label, and the rows that are in use."""
    state = probe.state_dict()
    rows, found, in_use = state["rows"], {}, set()
    for x, name in enumerate(probe.state_dict()["settings"]["labels"]):
        parts = (rows[part][x].tolist() for part in ("ngrams", "counts", "missing", "rows"))
        for ngram, count, missing, row in zip(*parts, strict=True):
            sums = torch.stack([layer["open"][row] for layer in state["layers"].values()])
            found[name, tuple(ngram)] = count, missing, sums
            in_use.add(row)
    for layer in state["layers"].values():
        assert not layer["open"][[row for row in range(len(layer["open"])) if row not in in_use]].any()
    return found, in_use


def assert_follows_some(probe, everything, label_rows):
    found, in_use = followed(probe)
    expected, _ = followed(everything)
    assert len(in_use) <= label_rows
    assert all(len(layer["open"]) <= label_rows for layer in probe.state_dict()["layers"].values())
    assert len(found) < len(expected)
    assert found or label_rows == 1
    for key, (count, missing, sums) in found.items():
        if missing:  # it entered late: the count of positions before is never too small
            assert count >= expected[key][0] >= sums[0, -1]
        else:
            assert count == expected[key][0]
            torch.testing.assert_close(sums, expected[key][2], rtol=1e-5, atol=1e-5)
    assert probe.positions == everything.positions
    torch.testing.assert_close(probe.sums, everything.sums, rtol=0, atol=0)


def both(model, measure, label_rows, labels=LABELS, **settings):
    """Measure with few rows and with all."""
    probes = [
        SoftEntropyProbe(model, labels=labels, label_rows=rows, anchor_sets=1, **settings)
        for rows in (label_rows, "all")
    ]
    for probe in probes:
        with probe, torch.no_grad():
            measure(probe)
    return probes


@pytest.mark.parametrize("label_rows", [1, 12, 60])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"use_cache": False}],
    ids=["greedy", "beams", "drafts", "no_cache"],
)
def test_generation(model, label_rows, options):
    def generate(probe):
        for seed in range(3):
            texts = prompts(9, 14, 30, seed=seed)[: 1 if "prompt_lookup_num_tokens" in options else 3]
            model.generate(**left_padded(texts), max_new_tokens=20, do_sample=False, **options)
            assert probe.positions  # reading counts what waits
        with probe.labelled(topic=torch.arange(2)):
            model(**left_padded(prompts(12, 17, seed=9)))

    few, everything = both(model, generate, label_rows)
    assert_follows_some(few, everything, label_rows)
    theirs = everything.state_dict()
    ours = few.state_dict()
    assert torch.equal(ours["rows"]["own"]["topic"], theirs["rows"]["own"]["topic"])
    for layer, state in ours["layers"].items():
        torch.testing.assert_close(state["kept"], theirs["layers"][layer]["kept"], rtol=0, atol=0)


def test_steps_that_are_queued_and_long_generations(model):
    def generate(probe):
        model.generate(**left_padded(prompts(5, 9)), max_new_tokens=300, min_new_tokens=300, do_sample=True)

    torch.manual_seed(0)
    few = SoftEntropyProbe(model, labels=LABELS, label_rows=40, anchor_sets=1)
    everything = SoftEntropyProbe(model, labels=LABELS, label_rows="all", anchor_sets=1)
    with few, everything, torch.no_grad():
        generate(few)
    assert_follows_some(few, everything, 40)


def test_unique_prefixes(model):
    def measure(probe):
        for _ in range(2):
            for seed in range(4):
                model(**left_padded(prompts(12, 20, 25, seed=seed)))

    few, everything = both(model, measure, 30, count="unique_prefix")
    assert_follows_some(few, everything, 30)


def test_tables_in_host_memory(model):
    """Batches are added by a thread of their own."""
    probes = [SoftEntropyProbe(model, labels=LABELS, label_rows=25, anchor_sets=1) for _ in range(2)]
    probes[0].reserve(on_host=probes[0].layer_devices())
    for probe in probes:
        with probe, torch.no_grad():
            for seed in range(5):
                model(**left_padded(prompts(12, 20, 25, seed=seed)))
    found, expected = (probe.state_dict() for probe in probes)
    torch.testing.assert_close(found["rows"], expected["rows"], rtol=0, atol=0)
    torch.testing.assert_close(found["layers"], expected["layers"], rtol=0, atol=0)


def test_without_label_sets(model):
    few, everything = both(model, lambda _: model(torch.arange(20)[None]), 1, labels=())
    assert followed(few) == ({}, set())
    torch.testing.assert_close(few.sums, everything.sums, rtol=0, atol=0)


# --- layers that lack batches -------------------------------------------------------------------------------------


class Sometimes(nn.Module):
    """Calls its second module for some inputs only."""

    def __init__(self):
        super().__init__()
        self.embed, self.always, self.rarely = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, input_ids, both=True):
        if input_ids.max() > 40:
            raise IndexError("no such token")
        h = self.always(self.embed(input_ids))
        return self.rarely(h) if both else h


def test_a_layer_that_lacks_batches_has_no_sums_of_other_labels():
    """Its rows hold what it has seen of their labels, whoever had the rows before. The problem is told all the same."""
    torch.manual_seed(0)
    net = Sometimes().eval()
    batches = [torch.stack(prompts(20, 20, 20, seed=seed)) for seed in range(14)]
    seen = [i for i in range(14) if i in (3, 6, 7, 11, 13)]

    def probe(label_rows, *names):
        return SoftEntropyProbe(
            net,
            labels=LABELS,
            label_rows=label_rows,
            modules={name: getattr(net, name) for name in names},
            anchor_sets=1,
        )

    few, everything = probe(20, "always", "rarely"), probe("all", "always", "rarely")
    only = probe("all", "rarely")
    for attached in (few, everything):
        with pytest.raises(ProbeError, match="rarely: never called"), attached, torch.no_grad():
            for i, ids in enumerate(batches):
                net(ids, both=i in seen)
    with only, torch.no_grad():
        for i in seen:
            net(batches[i])
    expected, _ = followed(only)
    for measured in (few, everything):
        found, _ = followed(measured)
        for key, (_, _, sums) in found.items():
            of_rarely = expected[key][2][0] if key in expected else torch.zeros_like(sums[1])
            torch.testing.assert_close(sums[1], of_rarely, rtol=1e-5, atol=1e-5)


def test_a_forward_pass_that_fails_at_once_leaves_no_sums_behind():
    torch.manual_seed(0)
    net = Sometimes().eval()
    few, everything = (
        SoftEntropyProbe(net, labels=LABELS, label_rows=rows, modules={"always": net.always}, anchor_sets=1)
        for rows in (20, "all")
    )
    for probe in (few, everything):
        with probe, torch.no_grad():
            for seed in range(12):
                ids = torch.stack(prompts(20, 20, 20, seed=seed))
                if seed % 2:
                    ids[0, :2] = 50
                    with pytest.raises(IndexError):
                        net(ids)
                else:
                    net(ids)
    sums = {key: part[2] for key, part in followed(everything)[0].items()}
    found, in_use = followed(few)
    assert len(in_use) <= 20
    for key, (_, _, of_label) in found.items():
        torch.testing.assert_close(of_label, sums[key], rtol=1e-5, atol=1e-5)


# --- parts and states ---------------------------------------------------------------------------------------------


def measured(model, label_rows, seeds, labels=LABELS):
    probe = SoftEntropyProbe(model, labels=labels, label_rows=label_rows, anchor_sets=1)
    with probe, torch.no_grad():
        for seed in seeds:
            model(**left_padded(prompts(12, 20, 25, seed=seed)))
    return probe


def test_a_stored_probe_goes_on_bit_for_bit(model):
    without = measured(model, 25, range(6))
    resumed = SoftEntropyProbe(model, labels=LABELS, label_rows=25, anchor_sets=1)
    state = measured(model, 25, range(3)).state_dict()
    for _ in range(2):  # the state is as it was
        resumed.load_state_dict(state)
        with resumed, torch.no_grad():
            for seed in range(3, 6):
                model(**left_padded(prompts(12, 20, 25, seed=seed)))
        found, expected = resumed.state_dict(), without.state_dict()
        torch.testing.assert_close(found["rows"], expected["rows"], rtol=0, atol=0)
        torch.testing.assert_close(found["layers"], expected["layers"], rtol=0, atol=0)


def test_parts_are_merged(model):
    everything = measured(model, "all", range(8))
    for label_rows in (1, 25, 60):
        parts = [measured(model, label_rows, seeds) for seeds in ((0,), (), range(1, 8))]
        for part in parts[1:]:
            parts[0].merge(part)
        found, in_use = followed(parts[0])
        assert len(in_use) <= label_rows
        expected, _ = followed(everything)
        for key, (count, probability, sums) in found.items():
            if probability < 1:  # a frequent label may lack some positions
                assert count == expected[key][0]
                torch.testing.assert_close(sums, expected[key][2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts[0].sums, everything.sums, rtol=1e-9, atol=1e-9)


def test_a_gathered_probe_is_the_probe(model):
    probe = measured(model, 25, range(4))
    torch.testing.assert_close(gather(probe).state_dict()["rows"]["counts"], probe.state_dict()["rows"]["counts"])
    expected, _ = followed(probe)
    found, _ = followed(gather(probe))
    assert found.keys() == expected.keys()
    for key, part in expected.items():
        assert found[key][:2] == part[:2]
        assert torch.equal(found[key][2], part[2])


def test_a_probe_that_follows_all_labels_is_taken_over_by_one_with_few_rows(model):
    everything = measured(model, "all", range(4))
    loaded = SoftEntropyProbe(model, labels=LABELS, label_rows=25, anchor_sets=1)
    loaded.load_state_dict(everything.state_dict())
    assert_follows_some(loaded, everything, 25)
    merged = SoftEntropyProbe(model, labels=LABELS, label_rows=25, anchor_sets=1)
    merged.merge(everything)
    assert_follows_some(merged, everything, 25)
    found, expected = followed(loaded)[0], followed(merged)[0]
    assert {key: part[:2] for key, part in found.items()} == {key: part[:2] for key, part in expected.items()}


def test_a_probe_with_few_rows_is_not_taken_over_by_another_number_of_rows(model):
    few = measured(model, 25, range(2))
    for label_rows in (26, "all"):
        other = SoftEntropyProbe(model, labels=LABELS, label_rows=label_rows, anchor_sets=1)
        for take_over in (
            lambda other=other: other.merge(few),
            lambda other=other: other.load_state_dict(few.state_dict()),
        ):
            with pytest.raises(InputError, match=f"expected label_rows={label_rows!r}, got 25; use label_rows=25"):
                take_over()


@pytest.mark.parametrize("name", ["forwarded", "unique_prefix", "labelled"])
def test_a_state_of_an_earlier_version_is_thinned(name):
    state = torch.load(io.BytesIO(gzip.decompress((STATES / f"{name}.pt.gz").read_bytes())), weights_only=True)
    settings = {**state["settings"], "anchors": "published" if name != "labelled" else "published_antithetic"}
    model = LlamaForCausalLM.from_pretrained(STATES.parent / "checkpoint").eval()
    everything, few = (SoftEntropyProbe(model, **settings, label_rows=rows) for rows in ("all", 9))
    for probe in (everything, few):
        probe.load_state_dict(state)
    if settings["labels"]:
        assert_follows_some(few, everything, 9)


def test_keys_are_bounded(model):
    probe = SoftEntropyProbe(tiny_llama(vocab_size=3000), labels=LABELS, label_rows=50, anchor_sets=1)
    with probe, torch.no_grad():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            probe.model(torch.randint(3, 3000, (4, 50), generator=generator))
            rows = probe.state_dict()["rows"]
            assert sum(map(len, rows["ngrams"])) <= 50 * len(LABELS)
            live = probe._source.rows._live
            assert live._inclusion.n_known <= 50 * len(LABELS)
            assert len(live.rows._row_of) <= 2 * 50 * len(LABELS)
            assert len(live.rows._n_sharing) <= 2 * 50
