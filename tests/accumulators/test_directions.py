"""Anisotropy: the norm of the mean unit vector of exactly the positions that count, against float64 on all states."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.accelerators import accelerator_path
from softh_probe.accumulators.states import VERSION_WITH_DOCUMENTS
from softh_probe.anisotropy import HIGH
from softh_probe.config import RunConfig
from softh_probe.estimators.projection import Projection
from softh_probe.report.page import run_page
from softh_probe.report.terminal import print_table
from softh_probe.run import run
from tests.helpers import references
from tests.helpers.corpora import corpus_of, documents, write_texts
from tests.helpers.generation import alone, fed_back, left_padded, make_model, prompts
from tests.helpers.probes import NAMES, run_planned
from tests.helpers.probes import run as run_over

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: float32 products, and 1/‖h‖ in halves of 16 bits.
CLOSE = 2e-6


def of_states(h: np.ndarray) -> float:
    """The definition, in float64; states without direction are left out."""
    norms = np.linalg.norm(h, axis=-1)
    known = np.isfinite(norms) & (norms > 0)
    return float(np.linalg.norm((h[known] / norms[known, None]).mean(axis=0)))


def of_documents(model, docs, input_order=0, output_order=0, once=False) -> dict[str, float]:
    """The same of a model's states, each document alone, at the positions where n-grams are defined."""
    found, seen = defaultdict(list), set()
    for doc in docs:
        tokens = [int(token) for token in doc]
        states = references.hidden_states(model, tokens)
        for i in references.ngram_positions(len(tokens), input_order, output_order):
            if once and tuple(tokens[: i + 1]) in seen:
                continue
            seen.add(tuple(tokens[: i + 1]))
            for row, h in states.items():
                found[row].append(h[i])
    return {row: of_states(np.array(h)) for row, h in found.items()}


def measured(result: ProbeResult) -> dict[str, float]:
    table = result.to_pandas(means=False)
    table = table[table.metric == "anisotropy"]
    assert (table.label_set == "").all()
    return dict(zip(table.name, table.value, strict=True))


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for row, value in expected.items():
        assert found[row] == pytest.approx(value, abs=1e-5), row


class Replay(nn.Module):
    """Hand on stored hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.first(hidden_states)


def replayed(h_ND: torch.Tensor, batches: int = 1, anchor_sets: int = 1) -> ProbeResult:
    model = Replay().eval()
    with SoftEntropyProbe(model, modules={"first": model.first}, anchor_sets=anchor_sets) as probe:
        for part in h_ND.chunk(batches):
            model(part)
    return probe.result()


def shifted(c: float, n: int = 2000, dim: int = 64) -> torch.Tensor:
    """Isotropic states plus c times one direction."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, dim, generator=generator) + c * math.sqrt(dim) * torch.eye(dim)[3]


# --- which positions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "orders"), [((), (0, 0)), (["input_bigram", "output_trigram"], (2, 3))])
@pytest.mark.parametrize("side", ["right", "left"])
def test_an_attached_probe_counts_real_tokens_with_labels_once(model, labels, orders, side):
    docs = documents(14)
    probe = run_over(SoftEntropyProbe(model, labels=labels, anchor_sets=2), model, docs, side=side)
    assert_close(measured(probe.result()), of_documents(model, docs, *orders))


def test_each_prefix_counts_once_where_that_is_asked_for(model):
    docs = documents(8)
    docs = [*docs, *docs[:3], docs[4][:5]]
    probe = SoftEntropyProbe(model, labels=["input_unigram"], anchor_sets=1, count="unique_prefix")
    found = measured(run_over(probe, model, docs).result())
    assert_close(found, of_documents(model, docs, 1, once=True))
    assert abs(found["layer.3"] - of_documents(model, docs, 1)["layer.3"]) > 1e-4  # each counted would differ


def test_a_planned_run(model):
    docs = documents(40)
    probe = run_planned(model, corpus_of(docs), NAMES[:4], 60)
    assert_close(measured(probe.result()), of_documents(model, docs, 2, 2))


@pytest.mark.parametrize("labels", [("output_bigram",), ("input_unigram", "output_quadgram")])
@pytest.mark.parametrize("accelerated", [False, True])
def test_positions_of_generate_wait_for_their_labels(labels, accelerated):
    model, inputs = make_model(), left_padded(prompts(9, 4, 6))
    probe = SoftEntropyProbe(model, labels=labels, anchor_sets=1)
    with probe, torch.no_grad():
        if accelerated:
            with accelerator_path():
                output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
                found = probe.result()
        else:
            output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            found = probe.result()
    sequences = fed_back(output, inputs)
    assert found.info["positions"] == alone(model, sequences, labels).positions
    orders = (1, 4) if "output_quadgram" in labels else (0, 2)
    assert_close(measured(found), of_documents(model, sequences, *orders))
    assert not any(sums.waiting_units for sums in probe._sums.values())


def test_a_cache_that_is_fed_in_pieces(model):
    (text,) = prompts(14)
    probe = SoftEntropyProbe(model, labels=["output_trigram"], anchor_sets=1)
    with probe, torch.no_grad():
        cache = None
        for piece in text[None].split([1, 1, 5, 1, 4, 2], dim=1):
            cache = model(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
            waiting = [(len(s.waiting), len(s.waiting_units)) for s in probe._sums.values()]
            assert all(rows == units for rows, units in waiting)
    assert_close(measured(probe.result()), of_documents(model, [text], 0, 3))


def test_bins_of_positions_have_none_of_their_own(checkpoint, tmp_path):
    write_texts(tmp_path / "texts.jsonl")
    config = RunConfig(
        model=str(checkpoint), data=str(tmp_path / "texts.jsonl"), out=str(tmp_path / "out"), by_position=True,
        labels=["input_unigram"], n_anchors=20, anchor_sets=1, cache="none", report=False, intervals=True,
    )  # fmt: skip
    result = run(config, progress=False)
    plain = run(RunConfig(**{**vars(config), "by_position": False, "intervals": False, "out": str(tmp_path / "b")}))
    assert torch.equal(result.tensors["anisotropy"], plain.tensors["anisotropy"])  # the second pass adds nothing
    assert "anisotropy" not in {*result.by_position().metric}
    loaded = ProbeResult.load(tmp_path / "out")
    assert measured(loaded) == measured(result)


# --- the value ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 576])
@pytest.mark.parametrize("accelerated", [False, True])
def test_it_is_that_of_float64(dtype, dim, accelerated):
    h_ND = shifted(0.4, 700, dim).to(dtype)
    if accelerated:
        with accelerator_path():
            found = replayed(h_ND, batches=3)
    else:
        found = replayed(h_ND, batches=3)
    assert measured(found)["first"] == pytest.approx(of_states(h_ND.double().numpy()), abs=CLOSE)


@pytest.mark.parametrize("size", [2.0**-22, 1.0, 500.0])
def test_float16_states_of_any_size_are_right_on_an_accelerator(size):
    """1/‖h‖ leaves the normal numbers of float16 at both ends; one weight of a batch may be a million times another."""
    h_ND = (shifted(0.3, 400) * size).half()
    h_ND[::7] = (shifted(0.3, 400)[::7] * 3).half()
    with accelerator_path():
        found = measured(replayed(h_ND))["first"]
    assert found == pytest.approx(of_states(h_ND.double().numpy()), abs=1e-5)


def test_high_halves_of_the_weights_alone_would_not_do(monkeypatch):
    h_ND, both_halves = shifted(0.4, 5, 4096).bfloat16(), Projection.sum_of_units
    expected = of_states(h_ND.double().numpy())
    with accelerator_path():
        assert measured(replayed(h_ND))["first"] == pytest.approx(expected, abs=CLOSE)
        monkeypatch.setattr(Projection, "sum_of_units", lambda *args: both_halves(*args)[:1])
        assert abs(measured(replayed(h_ND))["first"] - expected) > 10 * CLOSE


def test_states_without_direction_are_left_out():
    h_ND = shifted(0.5, 300)
    h_ND[3], h_ND[7], h_ND[9, 0], h_ND[11, 1] = 0.0, math.nan, math.inf, math.nan
    h_ND[20:24] *= torch.tensor([1e-30, 1e25, 1e-38, 3e36]).unsqueeze(1)  # squares beyond float32
    with pytest.warns(UserWarning, match="no direction"):
        result = replayed(h_ND)
    assert result.invalid_positions() == {"first": 4}
    assert measured(result)["first"] == pytest.approx(of_states(h_ND.double().numpy()), abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_left_out_on_an_accelerator_and_what_is_not_finite_is_told_as_not_known(dtype):
    h_ND = shifted(0.5, 300).to(dtype)
    h_ND[3] = 0.0
    with accelerator_path(), pytest.warns(UserWarning, match="no direction"):
        found = measured(replayed(h_ND))["first"]
    assert found == pytest.approx(of_states(h_ND.double().numpy()), abs=CLOSE)
    h_ND[5, 2] = math.nan
    with accelerator_path(), pytest.warns(UserWarning, match="no direction"):
        result = replayed(h_ND)
    assert "anisotropy" not in result.tensors
    said = [choice["chosen"] for choice in result.info["choices"] if choice["about"] == "anisotropy"]
    assert said == ["not known of first"]
    assert result.to_pandas().query("metric == 'entropy'").value.notna().all()


def test_it_grows_with_a_common_direction_and_entropy_falls():
    values = []
    for c in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
        h_ND = shifted(c)
        result = replayed(h_ND, anchor_sets=8)
        found = measured(result)["first"]
        assert found == pytest.approx(of_states(h_ND.double().numpy()), abs=1e-6)
        entropy = result.to_pandas().query("metric == 'entropy'").value.item()
        values.append((found, entropy))
    anisotropy, entropy = np.array(values).T
    assert (np.diff(anisotropy) > 0).all()
    assert (np.diff(entropy) < 0).all()
    assert anisotropy[0] < 0.05
    assert anisotropy[-1] > 0.95


def test_a_single_direction_is_no_more_than_one():
    h_ND = torch.full((999, 7), 0.1) * torch.arange(1.0, 1000.0).unsqueeze(1)
    assert 1 - 1e-6 < measured(replayed(h_ND, batches=7))["first"] <= 1


def test_the_mean_over_layers_is_that_of_the_layers(model):
    result = run_over(SoftEntropyProbe(model, labels=(), anchor_sets=2), model, documents(6)).result()
    table = result.to_pandas().query("metric == 'anisotropy'").set_index("name").value
    assert table["mean"] == pytest.approx(table[["layer.1", "layer.2", "layer.3"]].mean())


# --- states ---------------------------------------------------------------------------------------------------


def test_two_parts_and_a_state_give_the_whole(model):
    docs = documents(20)
    whole, one, two = (SoftEntropyProbe(model, labels=["output_bigram"], anchor_sets=1) for _ in range(3))
    run_over(whole, model, docs)
    run_over(one, model, docs[:8])
    run_over(two, model, docs[8:])
    again = one.new_like()
    again.load_state_dict(one.state_dict())
    assert measured(again.result()) == measured(one.result())
    again.merge(two)
    assert_close(measured(again.result()), measured(whole.result()))
    assert_close(measured(again.result()), of_documents(model, docs, 0, 2))


def test_of_an_earlier_state_it_is_not_known_and_stays_so(model):
    docs, of_today = documents(12), SoftEntropyProbe(model, labels=(), anchor_sets=1)
    state = run_over(of_today, model, docs).state_dict()
    layers = {name: {k: v for k, v in layer.items() if k != "direction"} for name, layer in state["layers"].items()}
    earlier = of_today.new_like()
    earlier.load_state_dict({**state, "version": VERSION_WITH_DOCUMENTS, "layers": layers})
    assert measured(earlier.result()) == {}
    run_over(earlier, model, docs)
    assert measured(earlier.result()) == {}
    of_today.merge(earlier)
    result = of_today.result()
    assert measured(result) == {}
    (said,) = [choice["chosen"] for choice in result.info["choices"] if choice["about"] == "anisotropy"]
    assert said == "not known of embeddings, layer.1, layer.2, layer.3, final_norm"
    again = of_today.new_like()
    again.load_state_dict(of_today.state_dict())
    assert measured(again.result()) == {}


# --- readers --------------------------------------------------------------------------------------------------

MEANING = "low information there does not mean that the layer does not know"


@pytest.mark.parametrize(("c", "is_told"), [(4.0, True), (1.0, False)])
def test_readers_are_told_once_of_layers_whose_states_point_one_way(c, is_told, capsys):
    result = replayed(shifted(c))
    assert (measured(result)["first"] >= HIGH) == is_told
    print_table(result)
    said = capsys.readouterr().err
    assert said.count(MEANING) == is_told
    if is_told:
        assert f"anisotropy is {measured(result)['first']:.2f} in first (1 of 1): these states point one way" in said
    assert (MEANING in run_page(result)) == is_told
    told = [choice for choice in result.info["choices"] if choice["about"] == "anisotropy"]
    assert len(told) == is_told


def test_few_positions_say_nothing_of_one_way():
    """A single state has an anisotropy of 1, and so have few that hardly differ by chance."""
    result = replayed(shifted(0.0)[:1])
    assert measured(result)["first"] == pytest.approx(1.0)
    assert not [choice for choice in result.info["choices"] if choice["about"] == "anisotropy"]
