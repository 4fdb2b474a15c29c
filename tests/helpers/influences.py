"""Results with intervals, computed from sums of documents by the textbook formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from softh_probe import ProbeResult
from softh_probe.influence import DocumentInfluence
from softh_probe.result_files import SHAPES

SETS = ("input_unigram", "output_unigram")


def documents(
    n: int, *, layers=4, anchors=6, labels=3, sets=2, seed=0, spread=0.5, change=0.0
) -> dict[str, np.ndarray]:
    """Soft assignments of the positions of n documents: sums [D, R, X, C, S, M] by label, and positions [D, X, C].

    Layers are correlated, and so are positions of a document. X are two label sets, C labels.

    Args:
        spread: of documents; change: of another checkpoint, whose positions differ by that from those of 0.
    """
    random = np.random.default_rng(seed)
    is_there_DP = random.integers(3, 10, (n, 1)) > np.arange(9)
    label_DXP = random.integers(0, labels, (n, len(SETS), 9))
    label_DXP[:, 1] = np.where(random.random((n, 9)) < 0.7, label_DXP[:, 0], label_DXP[:, 1])
    one_hot_DXPC = (label_DXP[..., None] == np.arange(labels)) & is_there_DP[:, None, :, None]
    of_label = 0.8 * random.normal(size=(len(SETS), labels, layers, sets, anchors))
    logits = spread * random.normal(size=(n, 1, 1, sets, anchors))  # [D, P, R, S, M]
    logits = logits + 0.5 * spread * random.normal(size=(n, 1, layers, sets, anchors))
    logits = logits + 0.6 * random.normal(size=(n, 9, layers, sets, anchors))
    logits = logits + np.einsum("dxpc,xcrsm->dprsm", one_hot_DXPC, of_label)
    logits = logits + change * np.random.default_rng(seed + 99).normal(size=logits.shape)
    q = np.exp(logits)
    q /= q.sum(axis=-1, keepdims=True)
    mass = np.einsum("dxpc,dprsm->drxcsm", one_hot_DXPC, q)
    return {
        "mass": mass,
        "positions": one_hot_DXPC.sum(axis=2),
        "numbers": np.arange(n),
        "units": np.arange(n),
    }


def subset(of: dict[str, np.ndarray], chosen) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in of.items()}


def planted(of: dict[str, np.ndarray], layer: int, strength: float) -> dict[str, np.ndarray]:
    """Mix uniform assignments into those of a layer: its entropy grows, its information falls."""
    mass = of["mass"].copy()
    total = mass[:, layer].sum(axis=-1, keepdims=True)
    mass[:, layer] = (1 - strength) * mass[:, layer] + strength * total / mass.shape[-1]
    return {**of, "mass": mass}


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def values_of(of: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Plug-in values [R] by label set and metric, in nats, averaged over anchor sets."""
    mass, positions = of["mass"].sum(axis=0), of["positions"].sum(axis=0)
    n = positions[0].sum()
    entropy_RS = _entropy(mass[:, 0].sum(axis=1) / n)
    found = {("", "entropy"): entropy_RS.mean(axis=1)}
    information = []
    for x, name in enumerate(SETS):
        p = mass[:, x] / np.maximum(positions[x], 1)[None, :, None, None]
        conditional_RS = (_entropy(p) * (positions[x] / n)[None, :, None]).sum(axis=1)
        information.append(entropy_RS - conditional_RS)
        found[name, "mutual_information"] = information[-1].mean(axis=1)
        found[name, "regularity"] = (information[-1] / entropy_RS).mean(axis=1)
    found["unigram", "optimality"] = (information[1] / information[0]).mean(axis=1)
    return found


def result_of_documents(of: dict[str, np.ndarray], *, share=None, with_intervals=True, **info) -> ProbeResult:
    """A result and the influences of its documents.

    Args:
        share: numbers of the documents (indices) whose influences are kept; None is all.
        info: further entries of `info`.
    """
    mass, positions = of["mass"], of["positions"]
    n_D = positions[:, 0].sum(axis=1)
    n = n_D.sum()
    total = mass.sum(axis=0)
    p_RSM = total[:, 0].sum(axis=1) / n
    h_RS = _entropy(p_RSM)
    sums_DRSM = mass[:, :, 0].sum(axis=2)
    psi_h = -(sums_DRSM * np.log(p_RSM)).sum(axis=-1) - n_D[:, None, None] * h_RS
    values = {("", "entropy"): psi_h}
    psi_i, i_RS, conditional = [], [], []
    for x in range(len(SETS)):
        p_x = np.maximum(total[:, x] / np.maximum(positions.sum(axis=0)[x], 1)[None, :, None, None], 1e-300)
        shares = positions.sum(axis=0)[x] / n
        conditional.append((_entropy(p_x) * shares[None, :, None]).sum(axis=1))
        i_RS.append(h_RS - conditional[-1])
        gain = (mass[:, :, x] * (np.log(p_x) - np.log(p_RSM)[:, None])).sum(axis=(2, 4))
        psi_i.append(gain - n_D[:, None, None] * i_RS[-1])
        values[SETS[x], "mutual_information"] = psi_i[-1]
        values[SETS[x], "regularity"] = (psi_i[-1] - i_RS[-1] / h_RS * psi_h) / h_RS
    values["unigram", "optimality"] = (psi_i[1] - i_RS[1] / i_RS[0] * psi_i[0]) / i_RS[0]
    rows = ["embeddings", *(f"layer.{i + 1}" for i in range(mass.shape[1] - 2)), "final_norm"]
    sizes = {"R": len(rows), "X": len(SETS), "S": mass.shape[4], "M": mass.shape[5], "L": 0}
    tensors = {name: np.zeros([sizes[c] for c in letters]) for name, letters in SHAPES.items()}
    tensors |= {"mass": p_RSM * n, "positions": np.full(len(rows), float(n))}
    tensors["labelled_positions"] = tensors["covered_positions"] = np.full((len(rows), 2), float(n))
    tensors["labelled_entropy"] = np.stack([h_RS] * 2, axis=1)
    tensors["conditional_entropy"] = np.stack(conditional, axis=1)
    seen = np.arange(len(n_D)) if share is None else np.asarray(share)
    influence = DocumentInfluence(
        rows=rows,
        documents=of["numbers"][seen],
        keys=(of["numbers"][seen] * 7919 + 1).astype(np.uint64),
        units=of["units"][seen],
        positions=n_D[seen],
        n_documents=len(n_D),
        n_units=len(np.unique(of["units"])),
        n_positions=int(n),
        values={name: psi.mean(axis=2).T[:, seen] for name, psi in values.items()},
    )
    settings = {"n_anchors": sizes["M"], "anchor_sets": sizes["S"], "seed": 0, "calibration": "exact"}
    result = ProbeResult(
        rows=rows,
        label_sets=list(SETS),
        tensors={name: torch.tensor(value, dtype=torch.float64) for name, value in tensors.items()},
        info={"n_blocks": len(rows) - 2, "positions": int(n), "settings": settings, **info},
    )
    if not with_intervals:
        return result
    errors = {name: torch.tensor(influence.standard_error(name)) for name in values}
    nowhere = torch.full((len(rows), 2), torch.nan, dtype=torch.float64)
    se = {"se_entropy": errors["", "entropy"], "se_optimality": nowhere.clone()}
    se["se_optimality"][:, 1] = errors["unigram", "optimality"]
    for metric, key in (("mutual_information", "se_information"), ("regularity", "se_regularity")):
        se[key] = torch.stack([errors[name, metric] for name in SETS], dim=1)
    return replace(result, tensors={**result.tensors, **se}, influence=influence)
