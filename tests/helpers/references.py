"""Independent float64 references: plain NumPy loops that share no code with the package."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


def assignments(z: np.ndarray, anchors: np.ndarray, temperature: float) -> np.ndarray:
    """q [N, M] in float64."""
    z, anchors = np.asarray(z, dtype=np.float64), np.asarray(anchors, dtype=np.float64)
    logits = (z / np.linalg.norm(z, axis=1, keepdims=True)) @ anchors.T / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def entropy(p: np.ndarray) -> float:
    """In nats; p need not sum to one."""
    p = np.asarray(p, dtype=np.float64) / np.sum(p)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def mutual_information(q: np.ndarray, labels: Iterable[Hashable]) -> float:
    """H(Z) − Σ_x P(x) H(p̂_x) in nats, label by label."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    conditional = sum(len(rows) / len(q) * entropy(q[rows].mean(axis=0)) for rows in groups.values())
    return entropy(q.mean(axis=0)) - conditional


def ngram_positions(length: int, input_order: int, output_order: int) -> range:
    """Positions of a document where the n tokens that end there and the n that follow exist."""
    return range(max(input_order - 1, 0), length - output_order)


def ngram_label(tokens: Sequence[int], position: int, direction: str, order: int) -> tuple[int, ...]:
    if direction == "input":
        return tuple(tokens[position - order + 1 : position + 1])
    return tuple(tokens[position + 1 : position + order + 1])


def hidden_states(model: torch.nn.Module, tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """One document alone, unpadded: the library's own hidden states, row by row, [L, D] float64.

    The library replaces the last block's output by the final norm's, so that one row is caught by a hook.
    """
    backbone = model.base_model
    blocks = next(module for module in backbone.modules() if isinstance(module, torch.nn.ModuleList))
    raw: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda _m, _a, out: raw.append(out if torch.is_tensor(out) else out[0]))
    try:
        with torch.no_grad():
            out = backbone(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True)
    finally:
        handle.remove()
    states = [*out.hidden_states[:-1], raw[0], out.hidden_states[-1]]
    names = ["embeddings", *(f"layer.{i}" for i in range(1, len(states) - 1)), "final_norm"]
    return {name: state[0].double().numpy() for name, state in zip(names, states, strict=True)}


@dataclass
class Dense:
    """Everything kept: of every counted position its assignments in each row, and its labels."""

    q: dict[str, np.ndarray]
    labels: dict[str, list[Hashable]]


def measure(
    model: torch.nn.Module,
    documents: Sequence[Sequence[int]],
    label_sets: Sequence[tuple[str, str, int]],
    anchors: np.ndarray,
    temperature: float,
    columns: Mapping[str, Sequence[Hashable]] | None = None,
) -> Dense:
    """Each document alone, every position and label by a loop. label_sets: (name, direction, order)."""
    before = max((n for _, direction, n in label_sets if direction == "input"), default=0)
    after = max((n for _, direction, n in label_sets if direction == "output"), default=0)
    q: dict[str, list[np.ndarray]] = defaultdict(list)
    labels: dict[str, list[Hashable]] = defaultdict(list)
    for d, tokens in enumerate(documents):
        positions = ngram_positions(len(tokens), before, after)
        if not len(positions):
            continue
        for row, states in hidden_states(model, tokens).items():
            q[row].append(assignments(states[positions.start : positions.stop], anchors, temperature))
        for name, direction, order in label_sets:
            labels[name] += [ngram_label(tokens, t, direction, order) for t in positions]
        for name, values in (columns or {}).items():
            labels[name] += [values[d]] * len(positions)
    return Dense(q={row: np.concatenate(parts) for row, parts in q.items()}, labels=dict(labels))


def influences(q: np.ndarray, documents: Sequence[int], labels: Sequence[Hashable] | None = None) -> dict[str, dict]:
    """ψ of each document on H and, with labels (None: no label), on I and I/H of the labelled positions.

    By loops over positions, in nats times positions of the value; the documents are numbered by `documents`.
    """
    labelled = [i for i in range(len(q)) if labels is None or labels[i] is not None]
    total = q[labelled].mean(axis=0)
    h = entropy(total)
    psi: dict[str, dict] = {"entropy": defaultdict(float)}
    for i in labelled:
        psi["entropy"][documents[i]] += -(q[i] * np.log(total)).sum() - h
    if labels is None:
        return psi
    of_label: dict[Hashable, list[int]] = defaultdict(list)
    for i in labelled:
        of_label[labels[i]].append(i)
    information = mutual_information(q[labelled], [labels[i] for i in labelled])
    psi["mutual_information"], psi["regularity"] = defaultdict(float), defaultdict(float)
    for i in labelled:
        own = q[of_label[labels[i]]].mean(axis=0)
        psi["mutual_information"][documents[i]] += (q[i] * np.log(own / total)).sum() - information
    for d, on_entropy in psi["entropy"].items():
        psi["regularity"][d] = (psi["mutual_information"][d] - information / h * on_entropy) / h
    return psi
