"""Padding that reaches real tokens: found before a run measures anything, and then avoided.

Some models mix all positions, convolve or pool over padding, or route the tokens of a batch together. What they give
for a document depends on its batch. A few documents are run in their batch and alone, and their soft assignments are
compared. Where they differ, the documents are grouped by equal length, without padding; where they still differ, each
document is run alone.

Rounding differs with the shape of a batch, too. Its noise is estimated by a document whose embeddings are changed by a
unit of rounding, after which every later rounding is another one.

Shape suffixes: B documents, T tokens of the longest, D width, N tokens of one document, M anchors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softh_probe.choices import Choice
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_rows
from softh_probe.errors import ProbeError
from softh_probe.estimators.anchors import sample_anchors
from softh_probe.estimators.calibration import temperature
from softh_probe.estimators.soft_entropy import log_assignments
from softh_probe.hooks.hook_points import find_hook_points, hidden_state, watched_layers
from softh_probe.hooks.named_modules import find_modules
from softh_probe.planned.prepared import BATCHINGS, EQUAL_LENGTHS, PADDED, SINGLE_DOCUMENTS, batch_documents
from softh_probe.run.feed import evenly_chosen
from softh_probe.run.forward import input_embeddings, quiet_inference, run_backbone

#: Padded batches of a model that gives other hidden states each time, so that nothing can be said of padding.
UNKNOWN = "unknown"

_CHOICES = {
    EQUAL_LENGTHS: (
        "none: each batch has documents of one length",
        "padding changes the hidden states of real tokens in this model",
    ),
    SINGLE_DOCUMENTS: (
        "none: each document is a batch",
        "the other documents of a batch change a document's hidden states in this model",
    ),
    UNKNOWN: (
        "as ever",
        "the model gives other hidden states each time it runs, so its numbers cannot be repeated, and whether padding "
        "changes them is unknown",
    ),
}

#: Anchors of a comparison, and documents of a batch that are compared.
_N_ANCHORS, _N_DOCUMENTS = 100, 8
#: A difference is the total variation between soft assignments, 0 to 1. Below the first bound, which depends on the
#: precision of the hidden states, it is none; above the second one it is never taken for noise.
_LEAST = {torch.float32: 2e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
_MOST, _MOST_OF_FLOAT32 = 0.2, 2e-3
#: Differences up to this multiple of the estimated noise are noise.
_NOISE = 3.0

#: Soft assignments [N, M] of one document, by layer.
_Assignments = Mapping[str, Tensor]

logger = logging.getLogger(__name__)


def choose_batching(
    model: Any, config: RunConfig, corpus: Corpus, agreed: Callable[[float], float] = lambda found: found
) -> str:
    """Choose how to group documents into batches, so that no document's hidden states depend on its batch.

    Runs up to two batches of the corpus, and their documents alone, up to eight of each; nothing is counted.

    Args:
        model: the loaded model, without head.
        config: the run's configuration, with `tokens_per_batch`.
        corpus: the documents.
        agreed: gives a number as the first of the processes that run the model together has it.

    Returns:
        One of `BATCHINGS`, the first whose batches keep documents apart; or `UNKNOWN`.

    Raises:
        ProbeError: what the model gives for a document depends on those that it read before.
    """
    trial = _Trial(model, corpus, config.modules, agreed)
    with quiet_inference():
        if not trial.can_be_repeated(np.concatenate(batch_documents(config, corpus))):
            return UNKNOWN
        for batching in (PADDED, EQUAL_LENGTHS):
            batches = telling_batches(corpus.lengths, batch_documents(config, corpus, batching))
            if not any(map(trial.mixes, batches)):
                return batching
    return SINGLE_DOCUMENTS


def batches_as(choice: str) -> str:
    """Name the `BATCHINGS` that a choice stands for."""
    return choice if choice in BATCHINGS else PADDED


def padding_choice(choice: str) -> list[Choice]:
    """Describe what `choose_batching` chose, for results; nothing where documents are batched as ever."""
    if choice not in _CHOICES:
        return []
    chosen, reason = _CHOICES[choice]
    return [Choice(about="padding", chosen=chosen, reason=reason)]


def telling_batches(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Select the batches in which documents would affect each other, if in any: up to two.

    >>> lengths = np.array([9, 9, 9, 8, 5, 4, 4, 4])
    >>> telling_batches(lengths, [np.array([0, 1]), np.array([2, 3]), np.array([4]), np.array([5, 6, 7])])
    [array([2, 3])]

    These are the one of the longest document and that of the widest range of lengths; with padding where any has it.
    """
    several = [batch for batch in batches if len(batch) > 1 and lengths[batch].max() > 1]
    padded = [batch for batch in several if np.ptp(lengths[batch])]
    pool = padded or several
    if not pool:
        return []
    longest = int(np.argmax([lengths[batch].max() for batch in pool]))
    widest = int(np.argmax([np.ptp(lengths[batch]) for batch in pool]))
    return [pool[index] for index in dict.fromkeys((longest, widest))]


class _Trial:
    """Runs documents of a corpus in their batch and alone."""

    def __init__(
        self, model: Any, corpus: Corpus, modules: Sequence[str] | None, agreed: Callable[[float], float]
    ) -> None:
        self._model, self._corpus, self._agreed = model, corpus, agreed
        self._points = find_hook_points(model, find_modules(model, modules) if modules else {})
        dtype = model.dtype if model.dtype in _LEAST else torch.float32
        self._least = _LEAST[dtype]
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        # Elsewhere, convolutions and products may round to TF32.
        self._is_exact = dtype == torch.float32 and on_cpu and torch.get_float32_matmul_precision() == "highest"
        self._most = _MOST_OF_FLOAT32 if self._is_exact else _MOST
        self._rounding = torch.finfo(torch.float16 if dtype == torch.float32 and not self._is_exact else dtype).eps

    def can_be_repeated(self, documents: np.ndarray) -> bool:
        """Tell whether the model gives the same again for a document, after longer ones and after shorter ones.

        Raises:
            ProbeError: it does so, but not after documents of other lengths. Some models switch to another attention
                or to other positions at a length, and stay with them.
        """
        lengths, first = np.unique(self._corpus.lengths[documents], return_index=True)
        shortest, second, longest = (int(documents[first[place]]) for place in (0, max(len(first) - 2, 0), -1))
        states = [self._alone(document) for document in (longest, second, shortest, second, longest)]
        if self._same(states[0], states[4]) and self._same(states[1], states[3]):
            return True
        if not self._same(states[4], self._alone(longest)):
            return False
        raise ProbeError(
            f"model: {type(self._model).__name__} gives other hidden states for a document after documents of other "
            f"lengths (here {lengths[0]} to {lengths[-1]} tokens), so its numbers would depend on their order; some "
            "models change their attention or positions at a length: set --max-length below it"
        )

    def _same(self, one: _Assignments, other: _Assignments) -> bool:
        return self._agreed(difference(one, other, everywhere=True)) <= self._least

    def mixes(self, batch: np.ndarray) -> bool:
        """Tell whether a batch changes what the model gives for its documents."""
        lengths = self._corpus.lengths[batch]
        rows = _rows_to_compare(lengths)
        together = self._run(batch, rows)
        apart = sorted(
            difference(self._alone(int(batch[row])), of_row) for row, of_row in zip(rows, together, strict=True)
        )
        # Rounding may send a token to another expert. This is rare, so where it happens, two documents have to differ.
        found = self._agreed(apart[-1] if self._is_exact or len(apart) == 1 else apart[-2])
        if found <= self._least:
            return False
        bound = min(max(_NOISE * self._noise(int(batch[rows[0]])), self._least), self._most)
        logger.debug("batch of %d documents: difference %.2g, bound %.2g", len(batch), found, bound)
        return found > bound

    def _alone(self, document: int) -> _Assignments:
        return self._run([document], [0])[0]

    def _noise(self, document: int) -> float:
        """Estimate the noise of rounding: the largest difference that it makes for a document, at any position."""
        alone = self._alone(document)
        generator = torch.Generator().manual_seed(0)

        def change(module: nn.Module, args: object, output: object) -> object:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return output
            factors = 1 + self._rounding * (2 * torch.rand(output.shape, generator=generator) - 1)
            return (output.float() * factors.to(output.device)).to(output.dtype)

        with ExitStack() as hooked:
            if embeddings := input_embeddings(self._model):
                hooked.callback(embeddings.register_forward_hook(change).remove)
            return difference(alone, self._alone(document), everywhere=True)

    def _run(self, documents: Sequence[int] | np.ndarray, rows: Sequence[int]) -> Sequence[_Assignments]:
        batch = [self._corpus.document(int(index)) for index in documents]
        return self._states(*pad_rows(batch), [(row, len(batch[row])) for row in rows])

    def _states(self, ids_BT: Tensor, mask_BT: Tensor, rows: Sequence[tuple[int, int]]) -> Sequence[_Assignments]:
        """Run a batch; give the soft assignments of some of its documents, by row and length."""
        found: list[dict[str, Tensor]] = [{} for _ in rows]

        def see(layer: str, module: nn.Module, value: object) -> None:
            hidden = hidden_state(value, layer)
            if hidden.shape[:2] == (ids_BT.shape[1], ids_BT.shape[0]) != ids_BT.shape:
                hidden = hidden.transpose(0, 1)
            if hidden.ndim != 3 or hidden.shape[:2] != ids_BT.shape:
                return  # the probe refuses it, with a message of its own
            for of_row, (row, n) in zip(found, rows, strict=True):
                of_row[layer] = _assignments(hidden[row, :n])

        with watched_layers(self._points, see):
            run_backbone(self._model, ids_BT, mask_BT)
        return found


def difference(one: _Assignments, other: _Assignments, *, everywhere: bool = False) -> float:
    """Measure how much a document's soft assignments differ, in the layer where they differ most.

    >>> one = {"layer.1": torch.tensor([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])}
    >>> other = {"layer.1": torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]])}
    >>> difference(one, other)
    0.25

    Args:
        one, other: soft assignments by layer.
        everywhere: take the largest difference of any position. Otherwise it is the largest of the mean, that of the
            first position, where tokens stand that see everything, and that of the last one, next to the padding.

    Returns:
        Total variation between soft assignments, 0 to 1; 1 where only one of them is not finite.
    """
    worst = 0.0
    for layer in one.keys() & other.keys():
        apart_N = 0.5 * (one[layer] - other[layer]).abs().sum(dim=-1)
        no_number_N = one[layer].isnan().any(dim=-1) & other[layer].isnan().any(dim=-1)
        apart_N = torch.where(no_number_N, 0.0, apart_N.nan_to_num(1.0))
        of_layer = apart_N.max() if everywhere else torch.stack([apart_N.mean(), apart_N[0], apart_N[-1]]).max()
        worst = max(worst, of_layer.item())
    return worst


def _rows_to_compare(lengths: np.ndarray) -> list[int]:
    """Choose up to eight documents of a batch, the shortest first; of those with padding where any has it.

    They are of many lengths: pooling spares documents whose length is a multiple of its stride.
    """
    rows = np.flatnonzero((lengths > 1) & (lengths < lengths.max()))
    if not len(rows):
        rows = np.flatnonzero(lengths > 1)
    by_length = rows[np.argsort(lengths[rows], kind="stable")]
    return evenly_chosen(by_length.tolist(), _N_DOCUMENTS)


def _assignments(hidden_ND: Tensor) -> Tensor:
    h_ND = hidden_ND.detach().float().cpu()
    anchors_SMD, epsilon = _anchors(h_ND.shape[-1])
    return log_assignments(h_ND, anchors_SMD, epsilon)[:, 0].exp()


@cache
def _anchors(dim: int) -> tuple[Tensor, float]:
    return sample_anchors(_N_ANCHORS, dim).unsqueeze(0), temperature(_N_ANCHORS, dim)
