"""Hidden states of a real model with labels of which the information is known, or known to lie in an interval.

    read = read_states(model, tokenizer, texts, labels, layers=["layer.1", "layer.30"], most_positions=8000,
                       max_length=128, seed=0)             # texts and labels: see rivals.real_texts
    k = len(read.label_names)
    states_ND = read.states["layer.30"]

**Labels of documents, changed.** A channel changes the label X of a position to one of the k − 1 others with
probability p, which gives Y = `flip(read.labels_N, k, p, seed)`. Y depends on the state Z through X alone, so with the
frequencies that X has (`flipped_bounds`):

    I(Y;Z) ≤ I(Y;X) = H(Y) − H_b(p) − p log(k − 1)                  data processing; equal if Z determines X
    I(Y;Z) ≥ I(Y;X̂) ≥ H(Y) − H_b(e') − e' log(k − 1)                X̂ of a linear probe of accuracy 1 − e; Fano
    e' = P(Y ≠ X̂) = p + e (1 − pk/(k − 1))

H_b is the entropy of a coin. e' is exact, as changes do not look at X̂: Y equals X̂ where X̂ is right and nothing was
changed, (1 − e)(1 − p), or where X̂ is wrong and X was changed to just that, e·p/(k − 1). At e = 0 both bounds are
equal; at p = (k − 1)/k nothing is left of X. The accuracy is that of documents held out (`held_out`); its
own sampling error is not in the bounds.

Each position is changed by itself. If whole documents were, there would be as many draws as documents, and frequencies
of Y would differ from those above; worse, states that tell which document they are of would tell how its label was
changed, so that Y would depend on Z through more than X.

**Labels of tokens** (parts of speech). States do not determine them, so the truth is in an interval: any q(x|z), here
that of a linear probe, gives (Barber and Agakov 2003; `HeldOut.bounds`)

    H(X) ≥ I(X;Z) ≥ H(X) − CE,    CE = −E log q(X|Z) on documents held out

Changed labels have q'(y|z) = (1 − p) q(y|z) + p (1 − q(y|z))/(k − 1), and the upper bound I(Y;X): `HeldOut.bounds`.
These bounds hold for labels of documents, too. Where a probe errs often they are closer than Fano's, since q knows
where it may be wrong; where it hardly errs, Fano's may be closer.

Shape suffixes: N positions, H those held out, R those of a batch, B texts of a batch, T tokens, D width, K labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import entr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from rivals.real_texts import Span, tag_labels
from rivals.truths import changed, entropy_of_errors
from softh_probe.errors import InputError, abbreviated
from softh_probe.hooks.hook_points import HookPoints, find_hook_points, hidden_state
from softh_probe.layer_places import block_name

#: Tokens of a batch at most, padding included; one text may have more.
BATCH_TOKENS = 4096
#: Share of a uniform distribution in q(x|z), so that a label which the probe never saw costs a finite number of nats.
UNIFORM = 1e-3


@dataclass(frozen=True)
class RealStates:
    """Hidden states of a sample of positions of texts, and their labels.

    Attributes:
        states: of each layer, float32 [N, D].
        labels_N: int64, numbers of label names.
        document_N: int64, the text that a position is of, by its place among the texts.
        label_names: names of the labels that the sample has, sorted.
    """

    states: dict[str, np.ndarray]
    labels_N: np.ndarray
    document_N: np.ndarray
    label_names: tuple[str, ...]


def read_states(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[str | Sequence[Span]],
    *,
    layers: Sequence[str],
    most_positions: int,
    max_length: int,
    seed: int,
    skip: int = 0,
) -> RealStates:
    """Run a model over texts, and keep the hidden states of a uniform sample of the positions that have a label.

    A layer "layer.3" is the output of the third block, as a SoftEntropyProbe names it: of the last block before the
    final norm, unlike the last of transformers' `hidden_states`. Positions are in the order of texts and tokens.

    Args:
        model: a transformers model; it runs in evaluation mode, and is left in the mode it was in.
        tokenizer: its tokenizer; labels of words need a fast one.
        texts: a document each.
        labels: for each text, its label, or the spans (start, end, tag) of its words.
        layers: names of layers.
        most_positions: size of the sample; fewer positions are all taken.
        max_length: tokens of a text at most; further ones are cut off.
        seed: of the sample.
        skip: tokens at the beginning of each text that are left out. The first ones do not tell the language of a
            text yet, and the state of the very first is in many models that of an attention sink.

    Raises:
        InputError: an argument is not what it has to be.
    """
    if len(texts) != len(labels) or not texts:
        raise InputError(f"labels: expected one for each of {len(texts)} texts (at least one), got {len(labels)}")
    points = find_hook_points(model, {})
    blocks = _blocks(points, layers)
    ids, tags = _tokenized(tokenizer, texts, labels, max_length)
    document_N, token_N = _sampled(tags, skip, most_positions, seed)
    label_of_N = [str(tags[d][t]) for d, t in zip(document_N, token_N, strict=True)]
    names, labels_N = np.unique(label_of_N, return_inverse=True)
    states: dict[str, np.ndarray] = {}
    with _caught(blocks) as caught, _evaluating(model), torch.inference_mode():
        for batch_B in _batches(np.unique(document_N), ids):
            rows_R = np.flatnonzero(np.isin(document_N, batch_B))
            row_of = {int(document): b for b, document in enumerate(batch_B)}
            at_R = [row_of[int(document)] for document in document_N[rows_R]]
            ids_BT, mask_BT = _padded([ids[document] for document in batch_B])
            device = next(model.parameters()).device
            caught.clear()
            points.entry(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device))
            for name in layers:
                h_BTD = _one_state(caught, name, ids_BT.shape)
                if name not in states:
                    states[name] = np.empty((len(token_N), h_BTD.shape[2]), dtype=np.float32)
                states[name][rows_R] = h_BTD[at_R, token_N[rows_R].tolist()].float().cpu().numpy()
    return RealStates(states, labels_N.astype(np.int64), document_N, tuple(names.tolist()))


def flip(labels_N: np.ndarray, k: int, p: float, seed: int) -> np.ndarray:
    """Change each label 0 … k − 1, by itself, with probability p to one of the k − 1 others, each alike.

    >>> flip(np.array([0, 1, 0, 1]), 2, 1.0, seed=0)
    array([1, 0, 1, 0])

    Raises:
        InputError: labels are not of 0 … k − 1, or p is not a probability.
    """
    _require_channel(labels_N, k, p)
    return changed(labels_N, k, p, np.random.default_rng(seed))


def flipped_bounds(labels_N: np.ndarray, k: int, p: float, accuracy: float) -> tuple[float, float]:
    """Bound I(Y;Z), in nats, of labels Y = `flip(labels_N, k, p, seed)` and states Z: see the module.

    >>> tuple(round(bound, 3) for bound in flipped_bounds(np.arange(7), 7, 0.0, accuracy=0.99))
    (1.872, 1.946)

    Args:
        labels_N: the labels before they are changed; their frequencies count.
        k: number of labels.
        p: probability of another label.
        accuracy: share of positions whose label a classifier of states finds.

    Raises:
        InputError: labels are not of 0 … k − 1, or p or the accuracy is not a probability.
    """
    _require_channel(labels_N, k, p)
    if not 0 <= accuracy <= 1:
        raise InputError(f"accuracy: expected 0 to 1, got {accuracy!r}")
    entropy = _changed_entropy(labels_N, k, p)
    wrong = p + (1 - accuracy) * (1 - p * k / (k - 1))
    return max(0.0, entropy - entropy_of_errors(wrong, k)), max(0.0, entropy - entropy_of_errors(p, k))


@dataclass(frozen=True)
class HeldOut:
    """What a linear probe, trained on half of the documents, makes of the other half.

    Attributes:
        labels_N: all labels, of both halves.
        labels_H: the labels of the positions held out.
        q_HK: q(x|z) of each label, float64; rows sum to 1.
    """

    labels_N: np.ndarray
    labels_H: np.ndarray
    q_HK: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the positions held out whose label is the most probable one."""
        return float((self.q_HK.argmax(axis=1) == self.labels_H).mean())

    def bounds(self, p: float = 0.0) -> tuple[float, float]:
        """Bound I(Y;Z), in nats, of labels Y that are changed with probability p; of X itself at p = 0."""
        k = self.q_HK.shape[1]
        _require_channel(self.labels_N, k, p)
        entropy = _changed_entropy(self.labels_N, k, p)
        log_q_HK = np.log((1 - p) * self.q_HK + p * (1 - self.q_HK) / (k - 1))
        log_own_H = log_q_HK[np.arange(len(log_q_HK)), self.labels_H]
        others_H = (log_q_HK.sum(axis=1) - log_own_H) / (k - 1)
        cross_entropy = -float(((1 - p) * log_own_H + p * others_H).mean())
        return max(0.0, entropy - cross_entropy), max(0.0, entropy - entropy_of_errors(p, k))


def held_out(states_ND: np.ndarray, labels_N: np.ndarray, document_N: np.ndarray, seed: int) -> HeldOut:
    """Train a linear probe (logistic regression) on half of the documents, and apply it to the others.

    States are standardised, dimension by dimension. Halves are of documents, since positions of one document are alike.
    Whether training has converged does not matter, since the bounds hold for any q.

    Args:
        states_ND: hidden states.
        labels_N: labels 0 … k − 1, each of which occurs.
        document_N: the document of each position.
        seed: of the halves.

    Raises:
        InputError: there is one document only, or the half trained on has one label only.
    """
    if len(np.unique(document_N)) < 2:
        raise InputError("document_N: expected positions of two documents or more, got one; a probe needs others")
    halves = GroupShuffleSplit(n_splits=1, test_size=0.5, random_state=seed)
    train, test = next(halves.split(labels_N, groups=document_N))
    if len(np.unique(labels_N[train])) < 2:
        raise InputError("labels_N: expected two labels or more in half of the documents, got one; take more documents")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        probe.fit(states_ND[train], labels_N[train])
    k = int(labels_N.max()) + 1
    q_HK = np.zeros((len(test), k))
    q_HK[:, probe.classes_] = probe.predict_proba(states_ND[test])
    return HeldOut(labels_N, labels_N[test], (1 - UNIFORM) * q_HK + UNIFORM / k)


def _changed_entropy(labels_N: np.ndarray, k: int, p: float) -> float:
    """Compute H(Y) of labels that are changed with probability p, from the frequencies that they had."""
    before_K = np.bincount(labels_N, minlength=k) / len(labels_N)
    return float(entr((1 - p) * before_K + p * (1 - before_K) / (k - 1)).sum())


def _require_channel(labels_N: np.ndarray, k: int, p: float) -> None:
    if not len(labels_N) or k < 2 or labels_N.min() < 0 or labels_N.max() >= k:
        raise InputError(f"labels_N: expected integers of 0 … k − 1, of two labels or more, got others for k = {k!r}")
    if not 0 <= p <= 1:
        raise InputError(f"p: expected a probability, got {p!r}")


def _blocks(points: HookPoints, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Find the block of each layer."""
    known = {block_name(i): block for i, block in enumerate(points.blocks, start=1)}
    if unknown := [name for name in layers if name not in known]:
        got = abbreviated(unknown, 4) or "none"
        raise InputError(f"layers: expected layer.1 to layer.{len(known)}, got {got}")
    return {name: known[name] for name in layers}


def _tokenized(
    tokenizer: Any, texts: Sequence[str], labels: Sequence[str | Sequence[Span]], max_length: int
) -> tuple[list[list[int]], list[list[str | None]]]:
    """Give the token ids of each text, and the label of each token."""
    by_word = not isinstance(labels[0], str)
    if by_word and not tokenizer.is_fast:
        raise InputError("tokenizer: expected a fast one, which knows where tokens are in a text, got a slow one")
    found = tokenizer(list(texts), truncation=True, max_length=max_length, return_offsets_mapping=by_word)
    ids: list[list[int]] = found["input_ids"]
    of_tokens: list[list[str | None]] = []
    for i, label in enumerate(labels):
        if isinstance(label, str):
            of_tokens.append([label] * len(ids[i]))
        else:
            of_tokens.append(tag_labels(texts[i], found["offset_mapping"][i], label))
    return ids, of_tokens


def _sampled(
    labels: Sequence[Sequence[str | None]], skip: int, most_positions: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions that have a label, and give the document and the token of each, int64, in their order."""
    places = [(d, t) for d, own in enumerate(labels) for t, label in enumerate(own) if label is not None and t >= skip]
    if not places:
        raise InputError(f"texts: expected a position with a label after the first {skip} of a text, got none")
    place_N2 = np.array(places, dtype=np.int64)
    if len(place_N2) > most_positions:
        chance = np.random.default_rng(seed)
        place_N2 = place_N2[np.sort(chance.choice(len(place_N2), most_positions, replace=False))]
    return place_N2[:, 0], place_N2[:, 1]


def _batches(documents: np.ndarray, ids: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Group documents of similar lengths, in batches of a bounded number of tokens."""
    batch: list[int] = []
    for document in sorted(documents.tolist(), key=lambda d: len(ids[d])):
        if batch and (len(batch) + 1) * len(ids[document]) > BATCH_TOKENS:
            yield np.array(batch)
            batch = []
        batch.append(document)
    yield np.array(batch)


def _padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad sequences on the right: ids and mask [B, T]. Masked positions may hold any token."""
    ids_BT = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for b, own in enumerate(ids):
        ids_BT[b, : len(own)] = torch.tensor(own)
        mask_BT[b, : len(own)] = 1
    return ids_BT, mask_BT


@contextmanager
def _caught(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Catch the outputs of blocks, by layer; a block may be called several times."""
    caught: dict[str, list[Tensor]] = {}

    def catch(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        caught.setdefault(name, []).append(hidden_state(output, name))

    handles = [block.register_forward_hook(partial(catch, name)) for name, block in blocks.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _one_state(caught: Mapping[str, list[Tensor]], name: str, shape: Sequence[int]) -> Tensor:
    """Give the one output of a block [B, T, D]."""
    states = caught.get(name, [])
    if len(states) != 1 or states[0].shape[:2] != torch.Size(shape):
        got = ", ".join(str(list(state.shape)) for state in states) or "none"
        raise InputError(f"model: expected one output of {name}, {list(shape)} and its width, got {got}")
    return states[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module of it back afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
