"""The null and the corrected information against brute force, permutations and labels whose information is known."""

import math
from pydoc_data.topics import topics

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe import SoftEntropyMeter, sample_anchors, temperature
from softh_probe.errors import InputError
from softh_probe.estimators.bias_correction import (
    bias_curves,
    chance_information,
    corrected_information,
    null_information,
)
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from tests.helpers import references


def assignments(z: np.ndarray, n_anchors: int, n_sets: int = 1) -> np.ndarray:
    """q [N, S, M]."""
    dim = z.shape[1]
    epsilon = temperature(n_anchors, dim)
    return np.stack(
        [references.assignments(z, sample_anchors(n_anchors, dim, s).numpy(), epsilon) for s in range(n_sets)], axis=1
    )


def entropies(q: np.ndarray) -> np.ndarray:
    """Along the last axis, in nats."""
    return -(q * np.log(np.maximum(q, 1e-300))).sum(axis=-1)


def curves_of(q: np.ndarray, n_sample: int = 2048, seed: int = 0):
    rows = np.random.default_rng(seed).permutation(len(q))[:n_sample]
    return bias_curves(
        torch.from_numpy(q[rows]), torch.from_numpy(q.sum(axis=0)), torch.from_numpy(entropies(q).mean(axis=0)), len(q)
    )


def clusters(n: int, dim: int = 64, shared: float = 0.5, n_clusters: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_clusters, dim))
    return shared**0.5 * centres[rng.integers(n_clusters, size=n)] + (1 - shared) ** 0.5 * rng.standard_normal((n, dim))


def plug_in(q: np.ndarray, labels: np.ndarray):
    """Counts, how many labels have each, Σ n·H(p̂), Σ H(q), and H(Z) of positions whose label repeats."""
    ids, label_N, n_L = np.unique(labels, return_inverse=True, return_counts=True)
    weighted = np.stack([n_L[i] * entropies(q[label_N == i].mean(axis=0)) for i in range(len(ids))])
    own = np.stack([entropies(q[label_N == i]).sum(axis=0) for i in range(len(ids))])
    repeated = n_L[label_N] >= 2
    covered = entropies(q[repeated].mean(axis=0)) if repeated.any() else np.full(q.shape[1], np.nan)
    counts, n_labels = np.unique(n_L, return_counts=True)
    weighted, own = (np.stack([of_labels[n_L == n].sum(axis=0) for n in counts]) for of_labels in (weighted, own))
    return [torch.from_numpy(a) for a in (counts, n_labels, weighted, own, covered)]


# --- chance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_anchors", [2, 50])
def test_chance_equals_brute_force_from_one_position_to_all(n_anchors):
    q = assignments(clusters(3000), n_anchors, n_sets=2)
    counts = [1, 2, 3, 5, 8, 20, 100, 700, 2999, 3000]
    found = chance_information(curves_of(q), torch.tensor(counts)).numpy()
    rng = np.random.default_rng(1)
    whole = q.mean(axis=0)
    expected = []
    for n in counts:
        n_draws = 1 if n == len(q) else max(30_000 // n, 30)
        drawn = [q[rng.choice(len(q), n, replace=False, shuffle=False)].mean(axis=0) for _ in range(n_draws)]
        # The mean of KL(p̂ ‖ p̄) is the mean of H(p̄) − H(p̂), with less noise.
        expected.append(np.mean([(p * np.log(p / whole)).sum(axis=-1) for p in drawn], axis=0))
    np.testing.assert_allclose(found / math.log(n_anchors), np.array(expected) / math.log(n_anchors), atol=0.004)
    np.testing.assert_allclose(found[0], entropies(whole) - entropies(q).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found[-2:], np.array(expected)[-2:], atol=1e-5)
    assert (found[-1] == 0).all()
    assert (np.diff(found, axis=0) < 0).all()


def test_the_tail_goes_as_one_over_n_less_one_over_all():
    q = assignments(clusters(6000), 50)
    found = chance_information(curves_of(q), torch.tensor([1000, 3000, 5000])).squeeze(1)
    variance = q.var(axis=0, ddof=1)
    expected = [(variance / q.mean(axis=0)).sum() / 2 * (1 / n - 1 / 6000) for n in (1000, 3000, 5000)]
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_equal_arguments_give_equal_curves_and_the_sample_is_left_alone():
    q = torch.from_numpy(assignments(clusters(500), 20))
    before = q.clone()
    torch.manual_seed(1)
    first = curves_of(q.numpy()).g_KGS
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(curves_of(q.numpy()).g_KGS, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(q, before)


@pytest.mark.parametrize("dim", [16, 256])
def test_the_null_is_what_permuted_labels_give(dim):
    rng = np.random.default_rng(3)
    q = assignments(clusters(5000, dim), 100, n_sets=2)
    counts = np.concatenate([[1] * 600, [2] * 300, [3] * 200, [7] * 100, [50] * 20, [800], [700]])
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = np.mean([_information(q, rng.permutation(labels)) for _ in range(5)], axis=0)
    pooled, n_labels = np.unique(counts, return_counts=True)
    found = null_information(curves_of(q[: len(labels)]), torch.from_numpy(pooled), torch.from_numpy(n_labels))
    np.testing.assert_allclose(found / math.log(100), expected / math.log(100), atol=0.002)


def test_the_null_where_some_positions_have_no_label():
    rng = np.random.default_rng(4)
    q = assignments(clusters(3000), 30)
    labels = np.arange(400) % 8  # 8 labels of 50 positions; the other 2,600 positions have none
    drawn = [rng.choice(3000, 400, replace=False) for _ in range(200)]
    expected = np.mean([_information(q[rows], labels) for rows in drawn])
    found = null_information(curves_of(q), torch.tensor([50]), torch.tensor([8]))
    assert found.item() == pytest.approx(expected, abs=0.002)


def _information(q: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _, _, weighted, *_ = plug_in(q, labels)
    return entropies(q.mean(axis=0)) - weighted.sum(dim=0).numpy() / len(labels)


@pytest.fixture(scope="module")
def real_text(smollm2_gguf):
    """q [N, 1, 100] of three layers of the real model on real text, and the tokens around each position."""
    source = resolve_model(str(smollm2_gguf))
    tokenizer = load_tokenizer(source)
    texts = [topics[name] for name in sorted(topics, key=lambda name: -len(topics[name]))[:12]]
    q: dict[int, list[np.ndarray]] = {0: [], 15: [], 30: []}
    windows = []
    with load_checkpoint(source, device_map="cpu") as checkpoint, torch.no_grad():
        for text in texts:
            tokens = tokenizer(text).input_ids[:256]
            states = checkpoint.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
            positions = references.ngram_positions(len(tokens), 4, 4)
            for layer in q:
                q[layer].append(assignments(states[layer][0, positions.start : positions.stop].double().numpy(), 100))
            windows += [tokens[p - 3 : p + 5] for p in positions]
    return {layer: np.concatenate(parts) for layer, parts in q.items()}, np.array(windows)


@pytest.mark.slow
@pytest.mark.checkpoint
@pytest.mark.parametrize("columns", [range(4 - n, 4) for n in range(1, 5)] + [range(4, 4 + n) for n in range(1, 5)])
def test_the_null_is_what_permuted_ngrams_of_real_text_give(real_text, columns):
    rng = np.random.default_rng(5)
    layers, windows = real_text
    _, labels, counts = np.unique(windows[:, list(columns)], axis=0, return_inverse=True, return_counts=True)
    for q in layers.values():
        found = null_information(curves_of(q), torch.from_numpy(counts), torch.ones(len(counts), dtype=torch.int64))
        expected = np.mean([_information_fast(q, rng.permutation(labels.reshape(-1))) for _ in range(3)], axis=0)
        np.testing.assert_allclose(found / math.log(100), expected / math.log(100), atol=0.002)


def _information_fast(q: np.ndarray, labels: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sums = np.add.reduceat(q[order], starts, axis=0)
    counts = np.diff(starts, append=len(q))[:, None]
    return entropies(q.mean(axis=0)) - (counts * entropies(sums / counts[..., None])).sum(axis=0) / len(q)


# --- corrected ----------------------------------------------------------------------------------------------------


def known_labels(dim, n_anchors, shared, modes=1, n_labels=24, seed=0):
    """A function that draws n positions of a label, and what it needs to know of the truth."""
    rng = np.random.default_rng(1000 + seed)
    centres = rng.standard_normal((n_labels, modes, dim))

    def draw(label: int, n: int) -> np.ndarray:
        z = shared**0.5 * centres[label, rng.integers(modes, size=n)]
        return assignments(z + (1 - shared) ** 0.5 * rng.standard_normal((n, dim)), n_anchors)

    return draw, n_labels


@pytest.mark.parametrize(
    ("dim", "n_anchors", "shared", "modes", "bounds"),
    [
        (64, 100, 0.2, 1, (0.03, 0.02, 0.02)),
        (128, 50, 0.5, 1, (0.03, 0.02, 0.02)),
        pytest.param(576, 100, 0.4, 1, (0.03, 0.02, 0.02), marks=pytest.mark.slow),
        pytest.param(576, 100, 0.9, 1, (0.02, 0.02, 0.02), marks=pytest.mark.slow),
        pytest.param(1024, 300, 0.5, 1, (0.03, 0.02, 0.02), marks=pytest.mark.slow),
        (256, 100, 0.8, 3, (0.08, 0.06, 0.03)),
    ],
)
def test_information_of_simulated_labels_is_recovered_from_few_positions(dim, n_anchors, shared, modes, bounds):
    draw, n_labels = known_labels(dim, n_anchors, shared, modes)
    large = [draw(label, 1000) for label in range(n_labels)]
    whole = entropies(np.mean([q.mean(axis=0) for q in large], axis=0))
    halves = [(entropies(q[:500].mean(axis=0)) + entropies(q[500:].mean(axis=0))) / 2 for q in large]
    truth = whole - np.mean([2 * entropies(q.mean(axis=0)) - h for q, h in zip(large, halves, strict=True)], axis=0)
    curves = curves_of(np.concatenate(large))
    for n, bound in zip((2, 4, 16), bounds, strict=True):
        labels = np.repeat(np.arange(1200 // n), n)
        q = np.concatenate([draw(label % n_labels, n) for label in range(1200 // n)])
        *sums, _ = plug_in(q, labels)
        found = corrected_information(curves, *sums, torch.from_numpy(whole))
        raw = whole - sums[2].sum(dim=0).numpy() / len(q)
        error, raw_error = (abs(x.item() - truth.item()) / math.log(n_anchors) for x in (found, raw))
        assert error < bound
        assert error < raw_error or raw_error < 0.01


@pytest.mark.parametrize(("dim", "n_anchors"), [(16, 20), (64, 500), (576, 100)])
def test_labels_that_say_nothing_have_no_information(dim, n_anchors):
    rng = np.random.default_rng(6)
    q = assignments(clusters(6000, dim), n_anchors)
    for n in (4, 8, 16, 64, 1000):
        labels = rng.permutation(np.arange(6000) % (6000 // n))
        found = corrected_information(curves_of(q), *plug_in(q, labels))
        assert abs(found.item()) / math.log(n_anchors) < 0.01


def test_mixed_counts_and_singletons_which_are_left_out():
    rng = np.random.default_rng(7)
    q = assignments(clusters(4000), 100)
    counts = np.concatenate([[1] * 500, [2] * 250, [4] * 250, [10] * 100, [500, 500]])
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    counts_C, labels_C, weighted, own, covered = plug_in(q, labels)
    found = corrected_information(curves_of(q), counts_C, labels_C, weighted, own, covered)
    assert abs(found.item()) / math.log(100) < 0.01
    repeated = counts_C >= 2
    parts = (counts_C[repeated], labels_C[repeated], weighted[repeated], own[repeated])
    assert torch.equal(corrected_information(curves_of(q), *parts, covered), found)


def test_label_sets_and_anchor_sets_do_not_touch():
    q = assignments(clusters(1200), 40, n_sets=3)
    each = [plug_in(q, labels) for labels in (np.arange(1200) // 2, np.arange(1200) // 5, np.arange(1200) ** 2 // 9999)]
    counts_C = torch.cat([sums[0] for sums in each]).unique()
    table = torch.zeros(3, len(counts_C), 7, dtype=torch.float64)
    for x, (counts, n_labels, weighted, own, _) in enumerate(each):
        table[x, torch.isin(counts_C, counts)] = torch.cat([n_labels.unsqueeze(1), weighted, own], dim=1)
    n_labels, weighted, own = table[..., 0], table[..., 1:4], table[..., 4:]
    curves, covered = curves_of(q), torch.stack([sums[-1] for sums in each])
    null = null_information(curves, counts_C, n_labels)
    corrected = corrected_information(curves, counts_C, n_labels, weighted, own, covered)
    for x, sums in enumerate(each):
        torch.testing.assert_close(null[x], null_information(curves, *sums[:2]))
        torch.testing.assert_close(corrected[x], corrected_information(curves, *sums))
    for s in range(3):
        alone = null_information(curves_of(q[:, s : s + 1]), counts_C, n_labels)
        torch.testing.assert_close(alone, null[:, s : s + 1], rtol=1e-5, atol=1e-7)


def test_the_estimate_falls_as_labels_diverge_and_stays_below_the_ceiling():
    q = assignments(clusters(3000), 100)
    curves, whole = curves_of(q), torch.from_numpy(entropies(q.mean(axis=0)))
    own = entropies(q).mean()
    for n in (2, 3, 4, 7, 30, 200, 2999):
        label_entropy = np.linspace(own - 1e-9, math.log(100), 200)
        found = [
            corrected_information(
                curves, torch.tensor([n]), torch.tensor([1]), torch.tensor([[n * h]]), torch.tensor([[n * own]]), whole
            ).item()
            for h in label_entropy
        ]
        assert np.isfinite(found).all()
        assert (np.diff(found) <= 1e-9).all()
        assert max(found) <= whole.item() - own + 1e-8


# --- edges --------------------------------------------------------------------------------------------------------


def test_labels_that_all_occur_once_are_not_known():
    q = assignments(clusters(100), 20)
    sums = plug_in(q, np.arange(100))
    curves = curves_of(q)
    assert torch.isnan(corrected_information(curves, *sums)).all()
    ceiling = entropies(q.mean(axis=0)) - entropies(q).mean(axis=0)
    assert null_information(curves, *sums[:2]).item() == pytest.approx(ceiling.item())


def test_one_label_of_all_positions_says_nothing():
    q = assignments(clusters(300), 20, n_sets=2)
    sums, curves = plug_in(q, np.zeros(300, dtype=int)), curves_of(q)
    assert null_information(curves, *sums[:2]).abs().max() < 1e-12
    assert corrected_information(curves, *sums).abs().max() < 1e-9


@pytest.mark.parametrize("n_positions", [1, 2, 5, 20, 130])
def test_few_positions_give_finite_numbers(n_positions):
    q = assignments(clusters(n_positions), 2, n_sets=2)
    sums, curves = plug_in(q, np.arange(n_positions) // 2), curves_of(q)
    assert torch.isfinite(null_information(curves, *sums[:2])).all()
    found = corrected_information(curves, *sums)
    assert torch.isfinite(found).all() or n_positions == 1


@pytest.mark.parametrize("peak", [0.0, 4.0, 2000.0])
def test_a_layer_whose_states_are_all_equal_has_no_information(peak):
    logits = np.zeros((300, 1, 30))
    logits[..., 3] = peak
    q = np.exp(logits - logits.max(axis=-1, keepdims=True))
    q /= q.sum(axis=-1, keepdims=True)
    sums, curves = plug_in(q, np.arange(300) // 3), curves_of(q)
    assert abs(null_information(curves, *sums[:2]).item()) < 1e-6
    assert abs(corrected_information(curves, *sums).item()) < 1e-6


def test_assignments_to_single_anchors_give_finite_numbers():
    rng = np.random.default_rng(8)
    q = np.eye(10)[rng.integers(9, size=2000)][:, None]
    counts = [1, 2, 10, 100]
    found = chance_information(curves_of(q), torch.tensor(counts)).squeeze(1)
    expected = [
        np.mean([entropies(q.mean(0)) - entropies(q[rng.choice(2000, n)].mean(0)) for _ in range(3000)]) for n in counts
    ]
    np.testing.assert_allclose(found, expected, atol=0.02)
    curves, labels = curves_of(q), np.arange(2000) // 4
    information = [corrected_information(curves, *plug_in(q, rng.permutation(labels))).item() for _ in range(20)]
    assert abs(np.mean(information)) / math.log(10) < 0.025, "the curve of chance is of 2,000 draws of one in ten"
    assert np.std(information) / math.log(10) < 0.03


def test_labels_of_which_some_positions_are_the_same_in_every_way():
    q = assignments(clusters(50), 100)
    sums, curves = plug_in(np.repeat(q, 4, axis=0), np.arange(200) // 4), curves_of(np.repeat(q, 4, axis=0))
    found = corrected_information(curves, *sums)  # each label is one point, so plug-in information is right
    expected = entropies(q.mean(axis=0)) - entropies(q).mean(axis=0)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("shape", [(0, 1, 5), (7, 5), (7, 2, 5)])
def test_a_sample_that_does_not_fit_is_refused(shape):
    with pytest.raises(InputError, match=r"sample_RSM: expected soft assignments \[R, 1, 5\]"):
        bias_curves(torch.ones(shape), torch.ones(1, 5), torch.ones(1), 7)


@pytest.mark.parametrize(("n_positions", "n_told"), [(30, 0), (60, 8)])
def test_few_positions_tell_a_small_correction_or_none(n_positions, n_told):
    """Means of two of 30 positions may have less entropy by chance than each has, and tell nothing of the bias."""
    found = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        meter = SoftEntropyMeter(["input_unigram", "output_bigram", "input_trigram"], anchor_sets=2, n_blocks=1)
        meter.update(
            {"layer.1": random.standard_normal((n_positions, 16))}, input_ids=random.integers(0, 4, n_positions)
        )
        table = meter.result().to_pandas().query("name == 'layer.1'")
        found.append(table[table.metric == "mutual_information_corrected"].set_index("label_set").value)
    table = pd.DataFrame(found)
    assert table.abs().max().max() < 0.2
    assert table.input_unigram.notna().sum() >= 6
    assert table.output_bigram.notna().sum() == table.input_trigram.notna().sum() == n_told
