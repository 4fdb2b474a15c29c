"""Estimates from a sample of labels: unbiased, and off by their standard error, against the value of all labels."""

import dataclasses

import numpy as np
import pytest
import torch

from softh_probe.accumulators.label_sampling import inclusion
from softh_probe.accumulators.label_tables import columns, mass, position_entropy
from softh_probe.accumulators.layer_sums import LayerStack, LayerSums
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.estimators.projection import Projection
from softh_probe.estimators.soft_entropy import entropy

N_SETS, N_ANCHORS, N_LABELS, SEEDS = 2, 20, 1500, 60
VALUES = ("conditional_entropy", "null_information", "corrected_information", "covered_positions")


@pytest.fixture(scope="module")
def population():
    """Rows of sums of labels whose counts follow Zipf's law, [L, K], and of a sample of positions."""
    generator = np.random.default_rng(0)
    counts = np.maximum(
        1, (400 / np.arange(1, N_LABELS + 1) ** 0.9 * generator.uniform(0.5, 1.5, N_LABELS)).astype(int)
    )
    rows = torch.zeros(N_LABELS, columns(N_SETS, N_ANCHORS), dtype=torch.float64)
    positions = []
    for row, n in zip(rows, counts, strict=True):
        spread = generator.uniform(0.5, 3.0)  # labels of one count differ
        centre = generator.normal(size=(1, N_SETS, N_ANCHORS)) * spread
        q = torch.from_numpy(centre + generator.normal(size=(n, N_SETS, N_ANCHORS)) * 2).softmax(dim=-1)
        mass(row, N_SETS, N_ANCHORS).copy_(q.sum(dim=0))
        position_entropy(row, N_SETS).copy_(entropy(q).sum(dim=0))
        row[-1] = n
        positions.append(q)
    every = torch.cat(positions)
    sample = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:512]]
    return counts, rows, sample.float()


def sums_of(population, **sizes) -> LayerSums:
    _, rows, sample = population
    projection = Projection(torch.zeros(N_SETS, N_ANCHORS, 4), 1.0)
    sums = LayerSums(LayerStack(projection, sizes=TableSizes(n_sample=len(sample), **sizes)))
    sums.total.copy_(rows.sum(dim=0))
    sums.sample.copy_(sample.flatten(1))
    return sums


def of_plan(population, threshold: float, u: np.ndarray):
    """Statistics of a plan, in which labels that occur once are all there."""
    counts, rows, _ = population
    probability = inclusion(counts, threshold) if threshold > 1 else np.ones(len(counts))
    repeated = counts > 1
    followed = repeated & (u < probability)
    bucket_counts, bucket_of = np.unique(counts[repeated], return_inverse=True)
    n = len(bucket_counts)
    sizes = {"n_live": len(counts), "n_buckets": n, "n_singleton_sets": 1, "with_squares": threshold > 1}
    sums = sums_of(population, **sizes)
    sums.singleton[0] = rows[torch.from_numpy(~repeated)].sum(dim=0)
    sums.tables.live.copy_(rows)
    in_repeated = torch.from_numpy(bucket_of)[torch.from_numpy(followed[repeated])]
    sums.tables.retire(torch.from_numpy(np.flatnonzero(followed)), in_repeated)
    return layer_statistics(
        sums,
        RowLabels(
            set_names=["input_unigram"],
            keeps_labels=[False],
            singleton_sets=np.array([0]),
            singleton_labels=np.array([(~repeated).sum()]),
            bucket_sets=np.zeros(n, dtype=np.int64),
            bucket_counts=bucket_counts,
            bucket_labels=np.bincount(bucket_of, minlength=n),
            bucket_followed=np.bincount(bucket_of, weights=followed[repeated], minlength=n).astype(np.int64),
            bucket_probability=inclusion(bucket_counts, threshold) if threshold > 1 else np.ones(n),
            bucket_names=[None] * n,
            thresholds=np.array([threshold]),
            sample_order=np.arange(512),
        ),
    )


def of_rows(population, threshold: float, u: np.ndarray):
    """Statistics of an attached probe, in which also those that occur once are sampled, and share rows."""
    counts, rows, _ = population
    probability = inclusion(counts, threshold)
    followed = np.flatnonzero(u < probability)
    own = counts[followed] > 1
    sums = sums_of(population, n_live=len(followed))
    sums.tables.live.copy_(rows[torch.from_numpy(followed)])
    return layer_statistics(
        sums,
        RowLabels(
            set_names=["input_unigram"],
            keeps_labels=[False],
            live_sets=np.where(own, 0, -1),
            shared_rows=[np.flatnonzero(~own)],
            thresholds=np.array([threshold]),
            live_probability=np.where(own, probability[followed], 1.0),
            live_scale=np.ones(len(followed)),
            shared_probability=[probability[followed][~own]],
            sample_order=np.arange(512),
        ),
    )


@pytest.mark.parametrize("threshold", [4.0, 20.0, 60.0])
@pytest.mark.parametrize("statistics", [of_plan, of_rows])
def test_errors_of_a_sample_of_labels_are_as_large_as_their_standard_error(population, statistics, threshold):
    exact = statistics(population, 1.0, np.zeros(N_LABELS))
    found = [statistics(population, threshold, np.random.default_rng(s).random(N_LABELS)) for s in range(SEEDS)]
    for name in VALUES:
        of_exact = getattr(exact, name).double().reshape(1, -1).mean(dim=1)
        errors = torch.stack([getattr(s, name).double().reshape(1, -1).mean(dim=1) - of_exact for s in found]).flatten()
        told = torch.stack([getattr(s, f"{name}_sampling_sd") for s in found]).flatten()
        if statistics is of_plan and name in ("null_information", "covered_positions"):
            assert not errors.any(), name
            assert not told.any(), name
            continue
        rms, expected = errors.square().mean().sqrt(), told.square().mean().sqrt()
        assert 0.7 <= rms / expected <= 1.4, (name, float(rms), float(expected))
        assert abs(errors.mean()) <= 3 * rms / SEEDS**0.5, (name, float(errors.mean()), float(rms))


@pytest.mark.parametrize("statistics", [of_plan, of_rows])
def test_where_all_labels_are_followed_there_is_no_error(population, statistics):
    exact = statistics(population, 1.0, np.zeros(N_LABELS))
    assert all(not getattr(exact, f"{name}_sampling_sd").any() for name in VALUES)


def test_where_the_sample_happens_to_be_all_labels_there_is_no_error(population):
    exact, found = (of_rows(population, threshold, np.zeros(N_LABELS)) for threshold in (1.0, 20.0))
    for name in VALUES:
        torch.testing.assert_close(getattr(found, name), getattr(exact, name))
        assert not getattr(found, f"{name}_sampling_sd").any()


@pytest.mark.parametrize("statistics", [of_plan, of_rows])
def test_where_no_label_is_followed_nothing_is_known(population, statistics):
    nothing = statistics(population, 1e9, np.ones(N_LABELS))
    assert nothing.conditional_entropy.isnan().all()
    assert nothing.conditional_entropy_sampling_sd.isnan().all()
    for field in dataclasses.fields(nothing):
        assert getattr(nothing, field.name) is not None
