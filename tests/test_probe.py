"""The probe attached to a model, against every document alone, unpadded, in float64."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

from softh_probe import Anchors, ProbeResult, SoftEntropyProbe, sample_anchors, temperature
from softh_probe.accumulators.states import STATE_VERSION
from softh_probe.config import RunConfig
from softh_probe.errors import InputError, ProbeError
from softh_probe.estimators.anchors import KINDS
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS
from softh_probe.sweep import SweepConfig
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import documents
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, batches, reference, run, value, values_by_key


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 3, 14])
def test_sums_and_information_equal_the_slow_way(model, side, size):
    docs = documents()
    expected = reference(model, docs)
    probe = run(SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1), model, docs, size, side)
    assert probe.layers == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    assert probe.positions == len(expected.labels["input_unigram"])
    values = values_by_key(probe.result())
    for row, sums_SM in zip(probe.layers, probe.sums, strict=True):
        q = expected.q[row]
        np.testing.assert_allclose(sums_SM[0], q.sum(axis=0), rtol=1e-5)
        assert values[row, "entropy", ""] == pytest.approx(references.entropy(q.mean(0)), abs=1e-6)
        own_entropy = np.mean([references.entropy(p) for p in q])
        for name in NAMES:
            information = references.mutual_information(q, expected.labels[name])
            assert values[row, "mutual_information", name] == pytest.approx(information, abs=1e-6)
            highest = references.entropy(q.mean(0)) - own_entropy
            assert values[row, "mutual_information_max", name] == pytest.approx(highest, abs=1e-6)


def test_coverage_regularity_and_optimality_follow_from_their_definitions(model):
    docs = documents()
    expected = reference(model, docs)
    result = run(SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1), model, docs).result()
    labels = expected.labels["output_bigram"]
    repeated = sum(labels.count(label) > 1 for label in labels) / len(labels)
    assert value(result, "layer.2", "coverage", "output_bigram") == pytest.approx(repeated)
    h = value(result, "layer.2", "entropy")
    i_in = value(result, "layer.2", "mutual_information", "input_bigram")
    i_out = value(result, "layer.2", "mutual_information", "output_bigram")
    assert value(result, "layer.2", "regularity", "input_bigram") == pytest.approx(i_in / h)
    assert value(result, "layer.2", "optimality", "bigram") == pytest.approx(i_out / i_in)


def test_a_mask_that_the_model_does_not_hand_to_its_backbone_counts_all_the_same():
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    model, docs = RwkvForCausalLM(config).eval(), documents()
    probe = run(SoftEntropyProbe(model, labels=(), anchor_sets=1), model, docs)
    assert probe.positions == sum(map(len, docs))
    assert all(not hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))


def test_no_labels_counts_every_real_token(model):
    docs = documents()
    probe = run(SoftEntropyProbe(model, labels=(), anchor_sets=1), model, docs)
    assert probe.positions == sum(map(len, docs))
    assert probe.sums.shape == (5, 1, 100)
    torch.testing.assert_close(probe.sums.sum(dim=-1), torch.full((5, 1), float(probe.positions)).double())


def test_eight_sets_of_anchors_are_measured_unless_another_number_is_given(model):
    paths = {"model": "m", "data": "d", "out": "o"}
    assert DEFAULT_ANCHOR_SETS == RunConfig(**paths).anchor_sets == SweepConfig(**paths).anchor_sets == 8
    result = run(SoftEntropyProbe(model, labels=(), n_anchors=20), model, documents(3)).result()
    assert result.tensors["mass"].shape[1:] == (8, 20)
    assert result.to_pandas().sd.notna().any()


def test_several_anchor_sets_are_several_single_runs(model):
    docs = documents()
    three = run(SoftEntropyProbe(model, n_anchors=20, anchor_sets=3, seed=5), model, docs)
    singles = [run(SoftEntropyProbe(model, n_anchors=20, seed=5 + s, anchor_sets=1), model, docs) for s in range(3)]
    torch.testing.assert_close(three.sums, torch.cat([s.sums for s in singles], dim=1), rtol=1e-6, atol=0)
    values = [value(s.result(), "layer.1", "mutual_information", "input_unigram") for s in singles]
    table = (
        three.result()
        .to_pandas("nats")
        .query("name == 'layer.1' and metric == 'mutual_information' and label_set == 'input_unigram'")
    )
    assert table.value.item() == pytest.approx(np.mean(values))
    assert table.sd.item() == pytest.approx(np.std(values, ddof=1), rel=1e-4)


def test_the_default_dtype_of_the_session_does_not_matter(model):
    docs = documents()
    expected = run(SoftEntropyProbe(model, labels=NAMES, anchor_sets=1), model, docs)
    torch.set_default_dtype(torch.float64)
    try:
        probe = run(SoftEntropyProbe(model, labels=NAMES, anchor_sets=1), model, docs)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(probe.sums, expected.sums, rtol=1e-6, atol=0)


def test_a_probe_is_not_merged_with_itself(model):
    probe = run(SoftEntropyProbe(model, anchor_sets=1), model, documents())
    with pytest.raises(InputError, match="cannot be merged with itself"):
        probe.merge(probe)


def test_a_state_of_other_rows_is_refused(model):
    docs = documents()
    one = run(SoftEntropyProbe(model, layers=["layer.1"], anchor_sets=1), model, docs)
    with pytest.raises(InputError, match=r"state: expected layers=None, got \['layer\.1'\]"):
        SoftEntropyProbe(model, anchor_sets=1).load_state_dict(one.state_dict())
    shallow = tiny_llama(num_hidden_layers=2)
    other = run(SoftEntropyProbe(shallow, anchor_sets=1), shallow, docs)
    with pytest.raises(InputError, match="state: expected layers embeddings, "):
        SoftEntropyProbe(model, anchor_sets=1).load_state_dict(other.state_dict())


def test_a_module_called_twice_in_a_pass_is_told():
    layer = torch.nn.Linear(8, 8)
    net = torch.nn.Sequential(layer, torch.nn.ReLU(), layer).eval()
    with pytest.raises(ProbeError, match="layer: called twice in a forward pass"):
        with SoftEntropyProbe(net, modules={"layer": layer}, anchor_sets=1):
            net(torch.randn(5, 8))


def test_an_evaluation_goes_on_when_its_measurement_fails(model, monkeypatch):
    monkeypatch.setattr("softh_probe.accumulators.batch.BatchAccumulator.add", lambda *_: 1 / 0)
    probe, finished = SoftEntropyProbe(model, anchor_sets=1), False
    with pytest.raises(ProbeError, match="embeddings: ZeroDivisionError"), probe:
        model(**next(batches(documents(), 4)))
        finished = True
    assert finished


def test_units(model):
    result = run(SoftEntropyProbe(model, n_anchors=20, anchor_sets=1), model, documents()).result()
    nats = value(result, "layer.1", "entropy")
    assert value(result, "layer.1", "entropy", unit="bits") == pytest.approx(nats / math.log(2))
    assert value(result, "layer.1", "entropy", unit="efficiency") == pytest.approx(nats / math.log(20))
    ratio = value(result, "layer.1", "regularity", "input_unigram")
    assert value(result, "layer.1", "regularity", "input_unigram", unit="bits") == pytest.approx(ratio)
    with pytest.raises(InputError, match="unit: expected one of efficiency, nats, bits, got 'bytes'"):
        result.to_pandas(unit="bytes")


def test_labels_of_ones_own(model):
    docs = documents(12)
    language = torch.tensor([0, 1, 2] * 4)
    expected = reference(model, docs, [], {"language": language.tolist()})
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1)
    with probe, torch.no_grad():
        for i, batch in enumerate(batches(docs, 4)):
            with probe.labelled(language=language[4 * i : 4 * i + 4]):
                model(**batch)
    result = probe.result()
    q = expected.q["layer.3"]
    assert value(result, "layer.3", "mutual_information", "language") == pytest.approx(
        references.mutual_information(q, expected.labels["language"]), abs=1e-6
    )
    table = result.conditional_entropy("language", unit="nats").query("name == 'layer.3'").set_index("label")
    rows = np.array(expected.labels["language"]) == 2
    assert table.loc["2", "count"] == rows.sum()
    assert table.loc["2", "value"] == pytest.approx(references.entropy(q[rows].mean(0)), abs=1e-6)


def test_own_labels_of_minus_one_are_left_out_of_their_set_only(model):
    docs = [d for d in documents(10) if len(d) > 3]
    generator = torch.Generator().manual_seed(1)
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1)
    flat = []
    with probe, torch.no_grad():
        for batch in batches(docs, 5):
            labels = torch.randint(-1, 3, batch["input_ids"].shape, generator=generator)
            flat += labels[batch["attention_mask"] == 1].tolist()
            with probe.labelled(topic=labels):
                model(**batch)
        model(**batch)  # and a pass without any of these labels
    flat += [-1] * int(batch["attention_mask"].sum())
    q = reference(model, docs + docs[-len(batch["input_ids"]) :], []).q["layer.2"]
    labelled = np.array(flat) >= 0
    expected = references.mutual_information(q[labelled], np.array(flat)[labelled].tolist())
    result = probe.result()
    assert value(result, "layer.2", "mutual_information", "topic") == pytest.approx(expected, abs=1e-6)
    assert value(result, "layer.2", "entropy") == pytest.approx(references.entropy(q.mean(0)), abs=1e-6)


def test_merged_shards_equal_one_run(model):
    docs = documents(16)
    whole = run(SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1), model, docs)
    left = run(SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1), model, docs[:7])
    right = run(SoftEntropyProbe(model, labels=NAMES, n_anchors=20, anchor_sets=1), model, docs[7:])
    left.merge(right)
    assert left.positions == whole.positions
    torch.testing.assert_close(left.sums, whole.sums, rtol=1e-6, atol=0)
    a, b = left.result().to_pandas("nats"), whole.result().to_pandas("nats")
    assert_same_values(a, b)


def test_merge_matches_labels_of_ones_own_by_value(model):
    docs = documents(8)
    topics = torch.tensor([3, 5, 5, 9, 9, 9, 3, 7])
    parts = [SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1) for _ in range(3)]
    for probe, rows in zip(parts, [range(8), range(4), range(4, 8)], strict=True):
        with probe, torch.no_grad(), probe.labelled(topic=topics[list(rows)]):
            model(**next(batches([docs[i] for i in rows], 8)))
    whole, left, right = parts
    left.merge(right)
    a, b = (p.result().conditional_entropy("topic").set_index(["name", "label"]).sort_index() for p in (left, whole))
    assert a["count"].equals(b["count"])
    np.testing.assert_allclose(a.value, b.value, atol=1e-6)


def test_state_goes_through_a_file_and_on(model, tmp_path):
    docs = documents(12)
    settings = {"labels": NAMES, "n_anchors": 20}
    whole = run(SoftEntropyProbe(model, anchor_sets=1, **settings), model, docs)
    first = run(SoftEntropyProbe(model, anchor_sets=1, **settings), model, docs[:8])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = SoftEntropyProbe(model, anchor_sets=1, **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(second, model, docs[8:])
    assert second.positions == whole.positions
    assert torch.equal(second.sums, whole.sums)
    np.testing.assert_allclose(second.result().to_pandas("nats").value, whole.result().to_pandas("nats").value)


def test_an_empty_probe_has_a_state_and_merges(model):
    docs = documents()
    empty, full = (
        SoftEntropyProbe(model, labels=NAMES, anchor_sets=1),
        run(SoftEntropyProbe(model, labels=NAMES, anchor_sets=1), model, docs),
    )
    again = SoftEntropyProbe(model, labels=NAMES, anchor_sets=1)
    again.load_state_dict(empty.state_dict())
    assert again.positions == 0
    assert again.sums.shape == (0, 1, 100)
    again.merge(full)
    assert torch.equal(again.sums, full.sums)
    again.merge(empty)
    assert again.positions == full.positions


def test_other_settings_do_not_merge_or_load(model):
    ours = run(SoftEntropyProbe(model, n_anchors=20, anchor_sets=1), model, documents())
    theirs = run(SoftEntropyProbe(model, n_anchors=20, seed=1, anchor_sets=1), model, documents())
    with pytest.raises(InputError, match="merge: expected seed=0, got 1"):
        ours.merge(theirs)
    with pytest.raises(InputError, match="state: expected seed=0, got 1"):
        ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_probe_is_not_copied_and_says_what_to_copy(model, copied):
    with pytest.raises(TypeError, match=r"copy a probe's state_dict\(\), for the load_state_dict"):
        copied(SoftEntropyProbe(model, anchor_sets=1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_anchors_is_measured_with_and_recorded(model, kind, tmp_path):
    docs = documents(6)
    probe = run(SoftEntropyProbe(model, n_anchors=20, anchor_sets=2, seed=3, anchors=kind), model, docs)
    states = np.concatenate([references.hidden_states(model, tokens)["layer.2"][:-1] for tokens in docs])
    for s in range(2):
        q = references.assignments(states, sample_anchors(20, 24, 3 + s, kind).numpy(), temperature(20, 24))
        np.testing.assert_allclose(probe.sums[probe.layers.index("layer.2"), s], q.sum(axis=0), rtol=1e-4)
    drawn = Anchors.sample(n_anchors=20, dim=24, n_sets=2, seed=3, kind=kind)
    probe.result().save(tmp_path)
    for result in (probe.result(), ProbeResult.load(tmp_path)):
        assert result.info["settings"]["anchors"] == kind
        assert result.info["anchors"] == [drawn.describe()]
        assert result.info["anchors"][0]["recipe"] == kind
        assert result.info["anchors"][0]["sha256"] == drawn.sha256


def test_measurements_with_other_kinds_of_anchors_do_not_merge_or_load(model):
    probes = {
        kind: run(SoftEntropyProbe(model, n_anchors=20, anchors=kind, anchor_sets=1), model, documents())
        for kind in KINDS
    }
    for (one, ours), (other, theirs) in itertools.permutations(probes.items(), 2):
        with pytest.raises(InputError, match=f"merge: expected anchors='{one}', got '{other}'"):
            ours.merge(theirs)
        with pytest.raises(InputError, match=f"state: expected anchors='{one}', got '{other}'"):
            ours.load_state_dict(theirs.state_dict())


def test_states_of_versions_that_are_not_read_are_refused(model):
    state = run(SoftEntropyProbe(model, anchor_sets=1), model, documents()).state_dict()
    for version in (3, STATE_VERSION + 1, None):
        with pytest.raises(
            InputError, match=rf"state: expected version {STATE_VERSION}, 7, 6, 5 or 4, got {version}; .*measure"
        ):
            SoftEntropyProbe(model, anchor_sets=1).load_state_dict({**state, "version": version})


def test_layers_can_be_chosen(model):
    docs = documents()
    every = run(SoftEntropyProbe(model, anchor_sets=1), model, docs)
    some = run(SoftEntropyProbe(model, layers=[0, "layer.2", -1], anchor_sets=1), model, docs)
    assert some.layers == ["embeddings", "layer.2", "final_norm"]
    assert torch.equal(some.sums, every.sums[[0, 2, 4]])
    with pytest.raises(InputError, match=r"layers: no layer 'layer\.9'; expected any of embeddings, layer\.1"):
        SoftEntropyProbe(model, layers=["layer.9"], anchor_sets=1)


def test_half_precision_models_are_summed_in_float32(model):
    docs = documents()
    half = tiny_llama().to(torch.bfloat16)
    probe = run(SoftEntropyProbe(half, labels=(), n_anchors=20, anchor_sets=1), half, docs)
    states = np.concatenate([references.hidden_states(half, d)["layer.2"] for d in docs])
    q = references.assignments(states, sample_anchors(20, 24).numpy(), temperature(20, 24))
    assert probe.sums[2, 0].sum().item() == pytest.approx(probe.positions, rel=1e-6)
    np.testing.assert_allclose(probe.sums[2, 0], q.sum(0), rtol=0.02)  # the model's own rounding, batched and alone


def test_autocast_around_the_model_does_not_reach_the_projection(model):
    docs = documents()
    seen = {}
    handle = model.model.layers[1].register_forward_hook(lambda _m, _a, out: seen.__setitem__("h", out.detach()))
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1)
    with probe, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(**next(batches(docs[:1], 1)))
    handle.remove()
    q = references.assignments(seen["h"][0].double().numpy(), sample_anchors(20, 24).numpy(), temperature(20, 24))
    np.testing.assert_allclose(probe.sums[2, 0], q.sum(0), rtol=1e-5)


def test_sums_begun_in_inference_mode_go_on_outside_it(model):
    docs = documents()
    probe = SoftEntropyProbe(model, anchor_sets=1)
    for mode in (torch.inference_mode, torch.no_grad):
        with probe, mode():
            model(**next(batches(docs, len(docs))))
    with probe:
        model(**next(batches(docs, len(docs))))
    assert probe.positions == 3 * sum(max(len(d) - 1, 0) for d in docs)
    assert not probe.sums.requires_grad


def test_training_passes_do_not_count(model):
    probe = SoftEntropyProbe(model, anchor_sets=1)
    model.train()
    with probe:
        model(**next(batches(documents(), 4)))
    with pytest.raises(ProbeError, match=r"no position was counted.*1 in training mode did not count"):
        probe.result()


def test_hooks_live_only_inside_the_block_and_leave_others_alone(model):
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))

    def hooks():
        modules = list(model.modules())
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]

    before = hooks()
    probe = SoftEntropyProbe(model, anchor_sets=1)
    assert hooks() == before
    with pytest.raises(ZeroDivisionError), probe:
        assert sum(hooks()) > sum(before)
        with pytest.raises(ProbeError, match="already attached"), probe:
            pass
        raise ZeroDivisionError
    assert hooks() == before
    model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert calls == [1]
    assert probe.positions == 0


def test_a_forward_pass_that_fails_midway_is_told_not_counted_in_part(model):
    def fail(*_):
        raise MemoryError("out of memory")

    handle = model.model.layers[1].register_forward_pre_hook(fail)
    probe = SoftEntropyProbe(model, anchor_sets=1)
    batch = next(batches(documents(), 4))
    probe.__enter__()
    with pytest.raises(MemoryError):
        model(**batch)
    handle.remove()
    model(**batch)
    with pytest.raises(ProbeError, match=r"failed after layer\.1: later layers lack its positions; .*probe\.paused"):
        probe.result()
    with pytest.raises(ProbeError, match=r"failed after layer\.1"):
        probe.__exit__(None, None, None)


def test_a_layer_that_is_never_called_is_named(model):
    probe = SoftEntropyProbe(model, anchor_sets=1)
    model.model.layers[2] = torch.nn.Identity()  # the model no longer calls the block that was found
    model.model.layers[2].forward = lambda h, **_: h
    with pytest.raises(ProbeError, match=r"layer\.3: never called"), probe:
        model(**next(batches(documents(), 4)))


def broken_states(model, layer, change):
    def hook(_module, _args, output):
        output = output.clone()
        change(output)
        return output

    return model.model.layers[layer].register_forward_hook(hook)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_layer_without_usable_states_is_named(model, bad):
    broken_states(model, 1, lambda h: h.fill_(bad))
    probe = run(SoftEntropyProbe(model, anchor_sets=1), model, documents())
    with pytest.raises(ProbeError, match=r"layer\.2: hidden states are zero or not finite"):
        probe.result()


def test_a_few_unusable_positions_are_left_out_and_reported(model):
    docs = [[1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 3, 2, 3, 4, 3, 5]]
    probe = SoftEntropyProbe(model, labels=["input_unigram"], n_anchors=20, anchor_sets=1)
    broken = broken_states(model, 2, lambda h: h[0, 2].fill_(float("inf")))
    with probe, torch.no_grad():
        model(**next(batches(docs, 2)))
    broken.remove()
    with pytest.warns(UserWarning, match="hidden states: those that are zero or not finite were left out") as told:
        results = [probe.result() for _ in range(2)]
    assert len(told) == 1
    result = results[0]
    assert result.invalid_positions() == {"layer.3": 1, "final_norm": 1}
    chosen = {choice["about"]: choice["chosen"] for choice in result.info["choices"]}
    assert chosen == dict.fromkeys(("layer.3", "final_norm"), "1 of 16 positions were left out")
    expected = reference(model, docs, [("input_unigram", "input", 1)])
    keep = np.arange(16) != 2
    q, labels = expected.q["layer.3"][keep], np.array(expected.labels["input_unigram"])[keep].ravel().tolist()
    np.testing.assert_allclose(probe.sums[3, 0], q.sum(0), rtol=1e-5)
    information = references.mutual_information(q, labels)
    assert value(result, "layer.3", "mutual_information", "input_unigram") == pytest.approx(information, abs=1e-6)


def test_float16_states_whose_norm_overflows_float16_are_measured():
    module = torch.nn.Identity()
    h = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0)) * 20_000
    h = h.clamp(-60_000, 60_000).half()
    probe = SoftEntropyProbe(module, modules={"h": module}, n_anchors=20, anchor_sets=1)
    with probe:
        module.eval()(h)
    q = references.assignments(h[0].double().numpy(), sample_anchors(20, 64).numpy(), temperature(20, 64))
    np.testing.assert_allclose(probe.sums[0, 0], q.sum(0), rtol=1e-5)


def test_states_of_another_shape_are_named(model):
    probe = SoftEntropyProbe(model, anchor_sets=1)
    model.model.norm.register_forward_hook(lambda _m, _a, out: out[:, 1:])
    with (
        pytest.raises(ProbeError, match=r"final_norm: expected hidden states \[4, \d+, 'D'\], got \[4, \d+, 24\]"),
        probe,
    ):
        model(**next(batches(documents(), 4)))


def test_any_module_and_rows_as_positions():
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    x, labels = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    probe = SoftEntropyProbe(net, modules={"first": net[0], "last": net[2]}, n_anchors=20, anchor_sets=1)
    with probe, probe.labelled(digit=labels):
        net(x)
    assert probe.layers == ["first", "last"]
    assert probe.positions == 30
    with torch.no_grad():
        q = references.assignments(net(x).double().numpy(), sample_anchors(20, 4).numpy(), temperature(20, 4))
    expected = references.mutual_information(q, labels.tolist())
    assert value(probe.result(), "last", "mutual_information", "digit") == pytest.approx(expected, abs=1e-6)


def test_embeddings_without_ids_have_no_ngrams(model):
    embeds = torch.randn(2, 5, 24)
    with (
        pytest.raises(ProbeError, match="input_unigram: the model was fed no input_ids"),
        SoftEntropyProbe(model, anchor_sets=1),
    ):
        model(inputs_embeds=embeds)
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe:
        model(inputs_embeds=embeds)
    assert probe.positions == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["input_pentagram"]}, "labels: unknown label set 'input_pentagram'; expected any of input_unigram"),
        ({"labels": "input_unigram"}, "labels: expected a list of names"),
        ({"labels": ["input_unigram", "input_unigram"]}, "stands twice"),
        (
            {"labels": ["column:language"]},
            "unknown label set 'column:language'; labels of your own are given by `with probe.labelled.language=…",
        ),
        (
            {"labels": ["lang"]},
            "labels: unknown label set 'lang'; labels of your own are given by `with probe.labelled.lang=…",
        ),
        (
            {"labels": ["a b"]},
            "labels: unknown label set 'a b'; labels of your own are given by `with probe.labelled.name=…",
        ),
        ({"labels": [3]}, "labels: expected names of label sets, got 3"),
        ({"labels": None}, "labels: expected a list of names, got None"),
        ({"n_anchors": 1}, "n_anchors: expected an integer of at least 2, got 1"),
        ({"n_anchors": 10.5}, "n_anchors: expected a whole number, or several with commas, got 10.5"),
        ({"anchor_sets": 0}, "anchor_sets: expected an integer of at least 1, got 0"),
        ({"seed": "a"}, "seed: expected an integer, got 'a'"),
        ({"seed": 2**70}, "seed: expected an integer of 64 bits"),
        ({"layers": []}, "layers: expected at least one, got none"),
        ({"calibration": "fast"}, "calibration: expected exact, leading_order, amos"),
        ({"count": "often"}, "count: expected 'forwarded' or 'unique_prefix', got 'often'"),
    ],
)
def test_bad_arguments_are_named(model, arguments, message):
    with pytest.raises(InputError, match=message):
        SoftEntropyProbe(model, **arguments)


def test_a_model_without_blocks_is_refused_with_what_was_found():
    with pytest.raises(InputError, match=r"transformer blocks; lists of modules found: none; .*modules="):
        SoftEntropyProbe(torch.nn.Linear(3, 3), anchor_sets=1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"topic": torch.rand(2)}, "topic: expected strings or integers"),
        ({"topic": [1.5, 2]}, "topic: expected strings or integers"),
        ({"input_unigram": torch.ones(2, dtype=torch.long)}, "choose another name"),
    ],
)
def test_bad_labels_are_named(model, labels, message):
    with pytest.raises(InputError, match=message), SoftEntropyProbe(model, anchor_sets=1).labelled(**labels):
        pass


def test_labels_of_another_shape_are_named(model):
    probe = SoftEntropyProbe(model, anchor_sets=1)
    too_few = probe.labelled(topic=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ProbeError, match=r"topic: expected labels \[4, \d+\], got \[3\]"), probe, too_few:
        model(**next(batches(documents(), 4)))


def test_the_result_says_how_many_positions_each_label_set_labels(model):
    probe = SoftEntropyProbe(model, labels=["input_bigram"], anchor_sets=1)
    with probe, probe.labelled(topic=torch.tensor([1, -1])), torch.no_grad():
        model(torch.arange(20).view(2, 10))
    assert probe.result().info["labelled_positions"] == {"input_bigram": 18, "topic": 9}


def test_a_mask_of_tokens_does_not_touch_modules_without_tokens():
    net = torch.nn.Linear(6, 8).eval()
    probe = SoftEntropyProbe(net, modules={"fc": net}, n_anchors=20, anchor_sets=1)
    with probe, probe.masked(torch.tensor([[1, 1, 0], [1, 1, 1]])), torch.no_grad():
        net(torch.randn(2, 6))
    assert probe.positions == 2


@pytest.mark.parametrize("label_rows", [0, 2**31, 1.5, "ALL", None])
def test_the_refusal_of_label_rows_names_both_ends_of_what_is_expected(model, label_rows):
    with pytest.raises(InputError) as caught:
        SoftEntropyProbe(model, label_rows=label_rows, anchor_sets=1)
    assert "(1 to 2,147,483,647; the default is 65,536), got " + repr(label_rows) in str(caught.value)
