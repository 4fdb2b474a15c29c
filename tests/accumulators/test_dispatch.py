"""Bags of positions, against lists by label."""

from collections import defaultdict

import numpy as np
import pytest

from softh_probe.accumulators.dispatch import MAX_BAG, sort_into_bags


@pytest.mark.parametrize("n_groups", [0, 3, 40])
@pytest.mark.parametrize("n_pieced", [0, 2])
@pytest.mark.parametrize("n_positions", [0, 1, 1500])
def test_bags_hold_the_positions_of_each_label_in_order(n_groups, n_pieced, n_positions):
    n_pieced = min(n_pieced, n_groups)
    generator = np.random.default_rng(0)
    groups_SN = generator.integers(0, n_groups + 3, (2, n_positions)).astype(np.int32)  # the last three have no bag
    positions_N = np.sort(generator.permutation(5000)[:n_positions])
    expected = defaultdict(list)
    for row in groups_SN:
        for group, position in zip(row.tolist(), positions_N.tolist(), strict=True):
            if group < n_groups:
                expected[group].append(position)
    bags = sort_into_bags(groups_SN, positions_N, n_groups, n_pieced)
    ends = bags.starts_L + np.diff(bags.starts_L, append=len(bags.positions_E))
    found = defaultdict(list)
    for group, start, end in zip(bags.groups_L.tolist(), bags.starts_L, ends, strict=True):
        assert end - start > 0
        assert end - start <= MAX_BAG or group >= n_pieced
        found[group] += bags.positions_E[start:end].tolist()
    assert found == expected
    assert bags.groups_L.tolist() == sorted(bags.groups_L.tolist())
    assert len(set(bags.groups_L[bags.groups_L >= n_pieced].tolist())) == (bags.groups_L >= n_pieced).sum()
    assert bags.groups_L.dtype == np.int32
