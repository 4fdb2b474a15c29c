"""On a GPU: the same numbers as on the CPU, and a hook that never waits for the device. Skipped where there is none."""

from contextlib import contextmanager, nullcontext

import accelerate
import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.data.corpus import pad_batch
from tests.helpers.corpora import COLUMNS, corpus_of, documents, values_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES, around_accumulation, planned

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def never_waiting(monkeypatch):
    """Anything in a hook that waits for the device is an error; the model may."""

    @contextmanager
    def never():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    around_accumulation(monkeypatch, never)


@pytest.mark.usefixtures("never_waiting")
@pytest.mark.parametrize("on_host", [(), ("embeddings", "layer.2", "final_norm")])
@pytest.mark.parametrize("anchor_sets", [1, 8])
def test_a_planned_run_gives_the_cpus_numbers_and_never_waits(on_host, anchor_sets):
    language, topic = values_of(60)
    plan = planned(corpus_of(documents(60), language=language, topic=topic), [*NAMES, *COLUMNS], 200)
    tables = []
    for device in ("cpu", "cuda"):
        model = tiny_llama().to(device)
        probe = SoftEntropyProbe(model, plan=plan, anchor_sets=anchor_sets)
        probe.reserve(on_host if device == "cuda" else ())
        with probe, torch.inference_mode():
            for i, batch in enumerate(plan.batches):
                ids, mask = pad_batch(plan.corpus, batch)
                with probe.batch(plan.batch(i)):
                    model(input_ids=ids.to(device), attention_mask=mask.to(device))
        tables.append(probe.result().to_pandas("nats"))
    np.testing.assert_allclose(tables[0].value, tables[1].value, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("is_planned", [True, False])
def test_a_model_on_two_gpus_and_the_cpu_keeps_its_sums_beside_its_layers(is_planned):
    where = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1}
    where |= {"model.layers.2": "cpu", "model.norm": 1, "lm_head": 1}
    plan = planned(corpus_of(documents(60)), NAMES, 200)
    probes = []
    for spread in (False, True):
        model = accelerate.dispatch_model(tiny_llama(), where, main_device=0) if spread else tiny_llama()
        probe = SoftEntropyProbe(model, labels=NAMES, plan=plan if is_planned else None)
        probe.reserve()
        with probe, torch.inference_mode():
            for i, batch in enumerate(plan.batches):
                ids, mask = (tensor.to("cuda:0" if spread else "cpu") for tensor in pad_batch(plan.corpus, batch))
                with probe.batch(plan.batch(i)) if is_planned else nullcontext():
                    model(input_ids=ids, attention_mask=mask)
        probes.append(probe)
    plain, spread = probes
    devices = {row: str(sums.total.device) for row, sums in spread._sums.items()}
    assert {devices["layer.1"], devices["layer.2"]} == {"cuda:0", "cuda:1"}
    assert spread.positions == plain.positions
    np.testing.assert_allclose(spread.sums, plain.sums, rtol=1e-4)
    tables = [probe.result().to_pandas("nats").value for probe in probes]
    np.testing.assert_allclose(*tables, atol=1e-4)


@pytest.mark.usefixtures("never_waiting")
def test_an_attached_probe_never_waits_either():
    model = tiny_llama().to("cuda")
    probe = SoftEntropyProbe(model, labels=NAMES)
    with probe, torch.inference_mode():
        for _ in range(3):
            model(input_ids=torch.randint(40, (4, 30), device="cuda"))
    assert probe.positions == 3 * 4 * (30 - 7)
    assert probe.sums.sum(dim=-1).numpy() == pytest.approx(probe.positions, rel=1e-5)
