"""Small results and synthetic sweeps for the report's tests."""

import base64
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.result_files import OF_SAMPLE
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES

HOSTILE = "</script><script>alert(1)</script>"


def result_of(
    model,
    *,
    labels,
    topics=("sea", "sky", "land"),
    corpus="0" * 64,
    anchor_sets=3,
    seed=0,
    n_anchors=20,
    layers=None,
    sites="residual",
) -> ProbeResult:
    """A model with random weights on random tokens, of which each document has a topic."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 40, (60, 16), generator=generator)
    probe = SoftEntropyProbe(
        model,
        labels=labels,
        n_anchors=n_anchors,
        anchor_sets=anchor_sets,
        seed=seed,
        layers=layers,
        sites=sites,
    )
    ids = torch.arange(60) % len(topics)
    with probe, torch.no_grad():
        if labels:
            with probe.labelled(topic=ids):
                model(input_ids=tokens)
        else:
            model(input_ids=tokens)
    result = probe.result()
    names = {str(i): topic for i, topic in enumerate(topics)}
    result.labels[:] = [(s, names.get(n, n)) for s, n in result.labels]
    result.info["model"] = {"model": "tiny", "revision": None}
    if corpus:
        result.info["corpus"] = {"sha256": corpus, "data": "texts.jsonl"}
    return result


def sampled(result, *names, errors=(0.02, 0.0, 0.05, 0.0, 0.0), threshold=310.0, estimated=False, label_rows=8192):
    """Make a result one that followed a sample of the labels of some sets.

    Args:
        result: with several layers.
        names: of the sampled sets.
        errors: of the tensors `OF_SAMPLE` in the first layer, in nats (positions the last but one); they grow by a
            tenth of that from layer to layer.
    """
    shape = (len(result.rows), len(result.label_sets))
    grow = 1 + 0.1 * torch.arange(shape[0], dtype=torch.float64)
    tensors = dict(result.tensors)
    for tensor, error in zip(OF_SAMPLE, errors, strict=True):
        if error:
            tensors[tensor] = torch.zeros(shape, dtype=torch.float64)
            for name in names:
                tensors[tensor][:, result.label_sets.index(name)] = error * grow
    of_all = {"labels": 1200, "followed": 1200, "threshold": 1.0, "estimated": False}
    of_sample = {"labels": 193_456, "followed": 8_123, "threshold": threshold, "estimated": estimated}
    sampling = {name: dict(of_sample if name in names else of_all) for name in result.label_sets}
    settings = {**result.info["settings"], "label_rows": label_rows}
    return replace(result, tensors=tensors, info={**result.info, "settings": settings, "label_sampling": sampling})


def with_chance(result, name="topic", sd=0.001, p_values=(0.52,)):
    """Make a label set of a result one of whole documents: with the sd of chance, in units of log m, and p-values.

    Args:
        result: with a label set of that name.
        name: of the label set.
        sd: in the first layer; it grows by a tenth of that from layer to layer.
        p_values: of the layers; the last stands for those that follow.
    """
    n_layers, x = len(result.rows), result.label_sets.index(name)
    missing = torch.full((n_layers, len(result.label_sets)), torch.nan, dtype=torch.float64)
    tensors = {"null_information_sd": missing.clone(), "p_value": missing.clone()}
    grow = 1 + 0.1 * torch.arange(n_layers, dtype=torch.float64)
    tensors["null_information_sd"][:, x] = sd * math.log(result.n_anchors) * grow
    p_values = [*p_values, *[p_values[-1]] * n_layers][:n_layers]
    tensors["p_value"][:, x] = torch.tensor(p_values, dtype=torch.float64)
    return replace(result, tensors={**result.tensors, **tensors})


def page_data(page: Path) -> dict:
    """Read the data of a page's figures."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def unpacked(packed: dict) -> np.ndarray:
    """Read an array as report/packed.py describes it."""
    if "f4" in packed:
        return np.frombuffer(base64.b64decode(packed["f4"]), "<f4").astype(float).reshape(packed["shape"])
    places = np.frombuffer(base64.b64decode(packed["u2"]), "<u2").reshape(packed["shape"])
    return np.where(places == 65535, np.nan, packed["low"] + packed["step"] * places)


def save(result: ProbeResult, folder: Path) -> Path:
    result.save(folder)
    return folder


def sweep_folder(folder: Path, *, n_checkpoints: int, layers: int = 3, labels=NAMES[:2], reason=None) -> Path:
    """Write the folder of a sweep: a result's table again and again, changing slowly, at steps 0, 1, 2, 4, 8, …"""
    result = result_of(tiny_llama(num_hidden_layers=layers - 2 if layers > 3 else 3), labels=labels)
    table = result.to_pandas()
    folder.mkdir(parents=True)
    parts, checkpoints = [], []
    noise = torch.Generator().manual_seed(0)
    for i in range(n_checkpoints):
        step = int(1.08**i) + i if i > 1 else i
        name = f"step{step}"
        jitter = torch.rand(len(table), generator=noise).numpy()
        values = table.value * (0.4 + 0.6 * i / max(1, n_checkpoints - 1)) + 0.01 * jitter
        head = {"checkpoint": name, "model": "org/tiny", "revision": name, "step": step, "tokens": step * 1000}
        parts.append(table.assign(value=values, **head))
        checkpoints.append(
            {**head, "status": "done", "reason": None, "weights_sha256": str(i), "folder": f"checkpoints/{name}"}
        )
        if i == 0:
            save(result, folder / "checkpoints" / name)
    failed = {"checkpoint": "step999999", "model": "org/tiny", "revision": "step999999", "step": 999999, "tokens": None}
    why = {"status": "failed", "reason": reason or "CUDA out of <memory>", "weights_sha256": None}
    checkpoints.append({**failed, **why, "folder": "checkpoints/step999999"})
    order = [*list(parts[0].columns[-5:]), *table.columns]
    pd.concat(parts[::-1], ignore_index=True)[order].to_parquet(folder / "sweep.parquet", index=False)
    head = {"version": 1, "config": {"model": "org/tiny", "run": {"labels": list(labels)}}}
    info = {**head, "checkpoints": checkpoints, "duplicates": [["step0", "step1"]], "not_monotone": []}
    (folder / "sweep.json").write_text(json.dumps(info))
    return folder


#: Steps of checkpoints: one, two, some, and as many as a training run keeps.
STEPS = {
    1: [1000],
    2: [0, 143_000],
    10: [0, *(2**n for n in range(9))],
    150: [0, *(2**n for n in range(10)), *range(1000, 140_000, 1000)],
    1500: [0, *(2**n for n in range(10)), *range(1000, 1_490_000, 1000)],
}


def sweep_of_steps(folder: Path, steps, *, labels=NAMES[:2], layers=None) -> Path:
    """Write the folder of a sweep with a checkpoint at each step, whose values all grow alike."""
    result = result_of(tiny_llama(), labels=labels, anchor_sets=2, layers=layers)
    table = result.to_pandas()
    folder.mkdir(parents=True)
    parts, checkpoints = [], []
    for i, step in enumerate(steps):
        head = {"checkpoint": f"step{step}", "model": "org/tiny", "revision": f"step{step}", "step": step, "tokens": 0}
        parts.append(table.assign(value=table.value * (0.5 + 0.5 * (i + 1) / len(steps)), **head))
        checkpoints.append({**head, "status": "done", "reason": None, "folder": "checkpoints/first"})
    save(result, folder / "checkpoints" / "first")
    pd.concat(parts, ignore_index=True).to_parquet(folder / "sweep.parquet", index=False)
    info = {"version": 1, "config": {"model": "org/tiny"}, "checkpoints": checkpoints}
    (folder / "sweep.json").write_text(json.dumps(info))
    return folder
