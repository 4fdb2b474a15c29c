"""The table of bins of positions, from sums in float64: to 1e-9 what joint labels give."""

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe import ProbeResult, sample_anchors, temperature
from softh_probe.accumulators.layer_sums import LayerStack, LayerSums
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.accumulators.statistics import layer_statistics
from softh_probe.estimators.projection import Projection
from tests.helpers import references

NAMES = ["2-3", "4-7", "8-15"]
TOPICS = ["sea", "sky", "land", "air"]
N, DIM, N_ANCHORS = 700, 16, 20


def rows_of(bins=None) -> RowLabels:
    return RowLabels(
        set_names=["topic"],
        keeps_labels=[True],
        kept_sets=np.zeros(len(TOPICS), dtype=np.int64),
        kept_names=[*TOPICS],
        thresholds=np.ones(1),
        sample_order=np.arange(64),
        bins=bins or {},
    )


def fill(sums: LayerSums, q_NM: np.ndarray, topic_N: np.ndarray) -> None:
    """Add positions to the sums of all and to those of their labels."""
    own_N = [references.entropy(q) for q in q_NM]
    rows_NK = torch.from_numpy(np.column_stack([q_NM, own_N, np.ones(len(q_NM))]))
    sums.total.copy_(rows_NK.sum(dim=0))
    sums.tables.kept.index_add_(0, torch.from_numpy(topic_N), rows_NK)
    sums.sample[: min(64, len(q_NM))] = torch.from_numpy(q_NM[:64]).float()


@pytest.fixture(scope="module")
def measured():
    """Positions whose states depend on bin and topic; of the last bin, one topic is missing."""
    generator = np.random.default_rng(0)
    bin_N, topic_N = generator.integers(0, 3, N), generator.integers(0, len(TOPICS), N)
    topic_N = np.where((bin_N == 2) & (topic_N == 3), 0, topic_N)
    centres = generator.normal(size=(3, len(TOPICS), DIM))
    states = generator.normal(size=(N, DIM)) + centres[bin_N, topic_N]
    anchors, epsilon = sample_anchors(N_ANCHORS, DIM), temperature(N_ANCHORS, DIM)
    q_NM = references.assignments(states, anchors.numpy(), epsilon)
    of_bin = TableSizes(n_kept=len(TOPICS), n_sample=64)
    projection = Projection(anchors.unsqueeze(0), epsilon)
    sums = LayerSums(LayerStack(projection, sizes=TableSizes(n_kept=len(TOPICS), n_sample=64, bins=(of_bin,) * 3)))
    fill(sums, q_NM, topic_N)
    for b, own in enumerate(sums.bins):
        fill(own, q_NM[bin_N == b], topic_N[bin_N == b])
    rows = rows_of({name: rows_of() for name in NAMES})
    settings = {"label_rows": "all"}
    result = ProbeResult.from_layers(
        {"layer.1": layer_statistics(sums, rows)}, rows, settings=settings, positions=N, n_blocks=1
    )
    return result, q_NM, bin_N, topic_N


def values(result):
    table = result.by_position("nats")
    return table.set_index(["position", "label_set", "metric"]).value


def test_joint_labels_and_the_chain_rule_to_nine_digits(measured):
    result, q_NM, bin_N, topic_N = measured
    found = values(result)
    joint = references.mutual_information(q_NM, list(zip(bin_N.tolist(), topic_N.tolist(), strict=True)))
    of_position = references.mutual_information(q_NM, bin_N.tolist())
    assert found["all", "topic,position", "mutual_information"] == pytest.approx(joint, abs=1e-9)
    assert found["all", "position", "mutual_information"] == pytest.approx(of_position, abs=1e-9)
    assert found["all", "topic|position", "mutual_information"] == pytest.approx(joint - of_position, abs=1e-9)
    assert joint > of_position + 0.05 > 0.1
    ceiling = references.entropy(q_NM.mean(axis=0)) - np.mean([references.entropy(q) for q in q_NM])
    for name in ("position", "topic,position"):
        assert found["all", name, "mutual_information_max"] == pytest.approx(ceiling, abs=1e-9)


def test_a_bin_is_what_its_positions_give(measured):
    result, q_NM, bin_N, topic_N = measured
    found = values(result)
    for b, name in enumerate(NAMES):
        there = bin_N == b
        of_bin = references.mutual_information(q_NM[there], topic_N[there].tolist())
        assert found[name, "topic", "mutual_information"] == pytest.approx(of_bin, abs=1e-9)
        assert found[name, "", "entropy"] == pytest.approx(references.entropy(q_NM[there].mean(axis=0)), abs=1e-9)


def test_the_table_has_the_columns_of_the_other_and_the_position(measured):
    result, *_ = measured
    table, other = result.by_position(), result.to_pandas()
    assert [column for column in table if column != "position"] == [*other]
    assert [*dict.fromkeys(table.position)] == [*NAMES, "all"]
    assert set(table.label_set[table.position == "all"]) == {"position", "topic|position", "topic,position"}
    bits = result.by_position("bits")
    has_unit = table.metric.isin(["entropy", "mutual_information"])
    ratio = (bits.value / table.value)[has_unit]
    assert np.allclose(ratio, np.log2(N_ANCHORS))


def test_what_is_saved_is_read_back(measured, tmp_path):
    result, *_ = measured
    result.save(tmp_path)
    again = ProbeResult.load(tmp_path)
    pd.testing.assert_frame_equal(again.by_position(), result.by_position())
    assert "by_position" not in again.info
    for name, of_bin in result.bins.items():
        read = again.bins[name]
        assert (read.rows, read.label_sets, read.labels) == (of_bin.rows, of_bin.label_sets, of_bin.labels)
        assert read.info == of_bin.info
    csv, parquet = pd.read_csv(tmp_path / "by_position.csv"), pd.read_parquet(tmp_path / "by_position.parquet")
    assert list(csv) == list(parquet) == list(result.by_position())
    assert csv.position.tolist() == result.by_position().position.tolist()
    again.save(tmp_path / "again")
    for name in ("by_position.safetensors", "by_position.csv", "sums.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
