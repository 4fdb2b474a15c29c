"""Place and memory of sums, and tables in host memory."""

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.accumulators.host_offload import HostWorker
from softh_probe.accumulators.label_tables import LabelTables, TableStack, weighted_entropy
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.accumulators.row_labels import TableSizes
from softh_probe.data.corpus import pad_batch
from softh_probe.errors import InputError
from softh_probe.planned import memory, row_allocation
from softh_probe.planned.memory import free_bytes, place_sums
from softh_probe.planned.plan import Plan
from softh_probe.planned.sums_memory import GIB
from softh_probe.planned.thresholds import ENTROPY_SD
from tests.helpers import references
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.probes import NAMES, planned

SIZES = {"n_anchors": [20], "anchor_sets": 2}


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setattr(row_allocation, "KEPT_LABELS", 4)  # language keeps its rows, topic does not
    language, topic = values_of(60)
    return planned(corpus_of(documents(60), language=language, topic=topic), [*NAMES, *COLUMNS], 60)


def few_rows(plan, label_rows):
    """The same plan with a sample of labels."""
    return Plan(plan.corpus, plan.label_sets, plan.batches, label_rows=label_rows)


def probe_of(model, plan, on_host=()):
    probe = SoftEntropyProbe(model, plan=plan, **SIZES)
    probe.reserve(on_host)
    return probe


def run(probe, model, plan):
    with probe, torch.inference_mode():
        for i, batch in enumerate(plan.batches):
            ids, mask = pad_batch(plan.corpus, batch)
            with probe.batch(plan.batch(i)):
                model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("label_rows", ["all", 50])
def test_what_is_said_is_what_the_tables_take(model, plan, label_rows):
    plan = few_rows(plan, label_rows)
    devices = probe_of(model, plan).layer_devices()
    assert list(devices) == ["embeddings", "layer.1", "layer.2", "layer.3", "final_norm"]
    said = place_sums(plan, devices, **SIZES)
    probe = probe_of(model, plan, said.on_host)
    taken = [getattr(s.tables, name).nbytes for s in probe._sums.values() for name in LabelTables.STATE]
    storages = [
        getattr(s, name).untyped_storage() for s in probe._sums.values() for name in (*LayerSums.STATE, "documents")
    ]
    taken += {storage.data_ptr(): storage.nbytes() for storage in storages}.values()
    assert sum(taken) == sum(said.bytes_by_place.values()) == 5 * said.bytes_per_layer
    assert sum(said.rows_by_set.values()) == plan.allocation.n_live + plan.allocation.n_kept
    assert sum(said.labels_by_set.values()) == plan.labels_by_set.sum()
    text = said.describe()
    assert all(name in text for name in [*NAMES, *COLUMNS])
    before = {row: sums.tables.live.data_ptr() for row, sums in probe._sums._layers.items()}
    run(probe, model, plan)
    assert before == {row: sums.tables.live.data_ptr() for row, sums in probe._sums._layers.items()}, "tables grew"


def test_the_table_shows_what_is_exact_and_what_is_sampled(model, plan):
    devices = probe_of(model, plan).layer_devices()
    exact = place_sums(plan, devices, **SIZES)
    assert "se" not in exact.describe().split("GiB", 1)[1]
    for line in exact.describe().splitlines()[1:-1]:
        assert "all" in line
        assert "exact" in line
    plan = few_rows(plan, 50)
    said = place_sums(plan, devices, **SIZES)
    lines = {line.split("  ")[1].strip(): line for line in said.describe().splitlines()}
    assert max(map(len, lines.values())) <= 90
    errors = plan.expected_errors
    for x, name in enumerate(plan.set_names):
        followed, labels = plan.followed_by_set[x], plan.labels_by_set[x]
        assert said.info()["label_sets"][name] == {
            "followed": followed,
            "threshold": plan.allocation.thresholds[x],
            "expected_se": errors[x],
        }
        if name in NAMES:
            assert followed < labels
            assert f"{labels:,} {followed:>11,}" in lines[name]
            assert f"{errors[x]:.5f}" in lines[name]
        else:
            assert "exact" in lines[name]
    assert f"{errors.max():.5f}" in lines["all (largest se)"]
    assert f"{plan.followed_by_set.sum():,}" in lines["all (largest se)"]
    assert sum(said.rows_by_set[name] for name in NAMES) <= 50
    n, single = (
        plan.allocation,
        plan.labels_by_set - np.bincount(plan.allocation.bucket_sets, plan.allocation.bucket_labels),
    )
    for x in range(len(NAMES)):  # from the counts of all labels, one by one
        of_set = n.bucket_sets == x
        counts = np.repeat(n.bucket_counts[of_set], n.bucket_labels[of_set])
        probability = np.minimum(1, counts / n.thresholds[x])
        variance = (counts**2 * (1 - probability) / probability).sum()
        assert errors[x] == pytest.approx(ENTROPY_SD * variance**0.5 / (counts.sum() + single[x]))


def test_too_little_memory_says_how_many_label_rows_fit(model, plan):
    devices = probe_of(model, plan).layer_devices()
    need = sum(place_sums(plan, devices, **SIZES).bytes_by_place.values())
    budget = 0.9 * need / GIB
    with pytest.raises(InputError, match=r"set --label-rows \d+, for a sample of labels; or leave out") as caught:
        place_sums(plan, devices, **SIZES, sums_memory_gb=budget)
    label_rows = int(str(caught.value).split("--label-rows ")[1].split(",")[0])
    assert label_rows > 20
    fits = place_sums(few_rows(plan, label_rows), devices, **SIZES, sums_memory_gb=budget)
    assert sum(fits.bytes_by_place.values()) <= 0.9 * need
    with pytest.raises(InputError, match="on cpu\\); leave out"):  # no rows at all would not do
        place_sums(plan, devices, **SIZES, sums_memory_gb=0.01 * need / GIB)


def test_tables_in_host_memory_give_the_same_bits(model, plan):
    results = []
    for on_host in ((), ("layer.1", "final_norm")):
        probe = probe_of(model, plan, on_host)
        run(probe, model, plan)
        results.append(probe)
    here, there = results
    assert torch.equal(here.sums, there.sums)
    assert here.result().to_pandas().equals(there.result().to_pandas())
    for row in here.layers:
        ours, theirs = here._sums[row].state_dict(), there._sums[row].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_more_than_the_accelerator_takes_goes_to_the_host(model, plan, monkeypatch):
    one = place_sums(plan, probe_of(model, plan).layer_devices(), **SIZES).bytes_per_layer
    monkeypatch.setattr(memory, "free_bytes", lambda place: int({"cpu": 100, "cuda:0": 2.5, "cuda:1": 9}[place] * one))
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    devices = {"embeddings": first, "layer.1": first, "layer.2": first, "layer.3": second, "final_norm": second}
    said = place_sums(plan, devices, **SIZES)
    assert said.on_host == {"layer.2"}
    assert said.bytes_by_place == {"cuda:0": 2 * one, "cpu": one, "cuda:1": 2 * one}
    tight = place_sums(plan, devices, **SIZES, sums_memory_gb=1.2 * one / GIB)
    assert tight.on_host == {"layer.1", "layer.2", "final_norm"}


def test_too_little_memory_names_the_label_sets_to_leave_out(model, plan):
    devices = probe_of(model, plan).layer_devices()
    said = place_sums(plan, devices, **SIZES)
    largest, second, *_ = sorted([*NAMES, *COLUMNS], key=lambda name: -said.bytes_by_set[name])
    need = sum(said.bytes_by_place.values())
    enough = need - 5 * said.bytes_by_set[largest]
    with pytest.raises(InputError, match=f"leave out of labels: {largest} .*GiB.; or use fewer") as caught:
        place_sums(plan, devices, **SIZES, sums_memory_gb=enough / GIB)
    assert second not in str(caught.value)
    with pytest.raises(InputError, match=f"leave out of labels: {largest} .*, {second}"):
        place_sums(plan, devices, **SIZES, sums_memory_gb=(enough - 1000) / GIB)


def test_free_memory_heeds_a_containers_limit(tmp_path, monkeypatch):
    unlimited = free_bytes("cpu")
    assert 0 < unlimited < 2**50
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 2000
    (tmp_path / "memory.max").write_text("3000\n")
    assert free_bytes("cpu") == 1600


def test_the_host_worker_waits_when_much_is_waiting_and_tells_what_went_wrong(model, plan):
    labels = plan.batch(0)
    worker = HostWorker(most_bytes=1)
    bags = torch.zeros(1, len(labels.kept_rows) + len(labels.live_rows) + len(labels.retired_buckets), 43)
    for _ in range(5):
        tables = LabelTables(TableStack((2, 20), torch.device("cpu"), plan.table_sizes()))
        worker.add(tables, [bags], labels)
        assert len(worker._waiting) == 1
    worker.finish()
    worker.add(tables, [bags[..., :5]], labels)
    with pytest.raises(RuntimeError):
        worker.finish()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_entropy_is_the_count_times_the_entropy(dtype):
    q = torch.rand(7, 3, 50, dtype=torch.float64)
    q[0, 0, :40] = 0
    q[1] = 0
    q[2] = torch.nn.functional.one_hot(torch.arange(3), 50)
    n = torch.tensor([2.0, 3, 4, 50, 1000, 1e6, 1e7], dtype=torch.float64)[:, None, None]
    mass = q / q.sum(dim=-1, keepdim=True).clamp_min(1e-9) * n
    got = weighted_entropy(mass.to(dtype)) / n.squeeze(-1)
    for i, s in np.ndindex(7, 3):
        expected = 0.0 if i == 1 else references.entropy(mass[i, s].numpy())
        assert got[i, s] == pytest.approx(expected, abs=1e-12 if dtype == torch.float64 else 3e-6)


def test_tables_grow_in_place_and_never_into_memory_of_others():
    tables = LabelTables(TableStack((1, 3), torch.device("cpu"), TableSizes()))
    state = torch.ones(10, 5)
    tables.load({"kept": tables.kept, "open": state[:3], "folded": tables.retired})
    tables.grow("live", 5)
    place = tables.live.data_ptr()
    tables.live[4] = 1.0
    tables.grow("live", 20)
    assert (state == 1).all()
    assert tables.live.data_ptr() == place
    assert tables.live.sum(dim=1).tolist() == [5, 5, 5, 0, 5, *[0] * 15]
