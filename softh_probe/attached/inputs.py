"""Read the tokens and masks of a forward pass from the arguments of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from softh_probe.attached.padding import fit_mask
from softh_probe.errors import ProbeError


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The tokens of one forward pass, on the host.

    Attributes:
        real_BT: bool, False at padding.
        ids_BT: int64 token ids; None where the model is fed embeddings.
        mask_known: whether a mask or a hint says which positions are real.
        starts_BT: bool, True where another text begins in the middle of a row; None where none does.
        counted_BT: bool, where the policies of positions hold; None: everywhere. Labels see other positions too.
        places_BT: int64, number of each real token among the hidden states; None: these are [B, T] as the tokens are.
        n_states: hidden states, where places are given.
    """

    real_BT: np.ndarray
    ids_BT: np.ndarray | None
    mask_known: bool = True
    starts_BT: np.ndarray | None = None
    counted_BT: np.ndarray | None = None
    places_BT: np.ndarray | None = None
    n_states: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Leading dimensions of the hidden states."""
        n_sequences, n_tokens = self.real_BT.shape
        return (n_sequences, n_tokens) if self.places_BT is None else (1, self.n_states)

    def places(self, row_N: np.ndarray, column_N: np.ndarray) -> np.ndarray:
        """Number tokens, by row and column, among the hidden states [N]."""
        found: np.ndarray = row_N * self.real_BT.shape[1] + column_N
        return found if self.places_BT is None else self.places_BT[row_N, column_N]


@dataclass(frozen=True, kw_only=True)
class InputHints:
    """Facts about the next forward pass that the code around the model knows, and its arguments do not show.

    Attributes:
        ids_BL: the sequences so far, the tokens of this pass last; None if unknown.
        mask_BL: nonzero at real tokens, of these or of the last columns; None if unknown.
        is_own_mask: whether that mask is the user's, so that it has to fit.
        ends_B: tokens of each sequence that count; later ones are fed for the sake of other sequences; None if unknown.
        n_generated: how many of these columns, the last ones, the model wrote itself; None if unknown.
        completion_BL: nonzero at the tokens of a completion, as `mask_BL`; None if unknown.
    """

    ids_BL: Tensor | None = None
    mask_BL: Tensor | None = None
    is_own_mask: bool = False
    ends_B: np.ndarray | None = None
    n_generated: int | None = None
    completion_BL: Tensor | None = None


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind the arguments of a call to the names of the module's forward method."""
    try:
        signature = inspect.signature(module.forward)
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return {}  # the call itself is wrong, and says so better than a probe can
    others = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD and p.name in given]
    return {**given[others[0]], **given} if others else given


def require_tokens(given: Mapping[str, Any], outer: Mapping[str, Any], n_virtual: int = 0) -> None:
    """Refuse a backbone whose positions are not the tokens that the model around it takes.

    The positions of latents, of a shortened sequence or of tokens put before the text are others, even where their
    number is the same. Arguments are those of `read_inputs`.

    Raises:
        ProbeError: the backbone is fed neither token ids nor embeddings of these tokens.
    """
    fed = any(isinstance(given.get(name), Tensor) for name in ("input_ids", "inputs_embeds"))
    masks = (given.get("attention_mask"), outer.get("attention_mask"), outer.get("input_ids"))
    if not fed and any(isinstance(value, Tensor) for value in masks):
        raise ProbeError(
            "input_ids: the part of the model that holds the blocks is fed neither these nor inputs_embeds, so it is "
            "unknown which of its positions are which tokens; name the modules to probe with modules={name: module}"
        )
    ids, embeds = outer.get("input_ids"), given.get("inputs_embeds")
    if not isinstance(ids, Tensor) or not isinstance(embeds, Tensor):
        return
    if embeds.shape[:2] not in (ids.shape[:2], (ids.shape[0], ids.shape[1] + n_virtual)):
        raise ProbeError(
            f"input_ids: the model takes {list(ids.shape[:2])} tokens but feeds {list(embeds.shape[:2])} positions to "
            "its blocks (images, say), so it is unknown which of them are which tokens"
        )


def read_inputs(
    given: Mapping[str, Any],
    outer: Mapping[str, Any],
    hints: InputHints | None = None,
    *,
    n_past: int = 0,
    n_virtual: int = 0,
) -> TokenBatch | None:
    """Read a token batch from `input_ids` or `inputs_embeds`, `attention_mask` and `position_ids`.

    With a cache, the mask covers past and new tokens: its last T columns are those of the T new ones. Without a
    mask all positions are real: padding is never guessed from token ids. Where position ids restart in the middle
    of a row, another text begins, packed into the same row.

    Args:
        given: the backbone's arguments.
        outer: those of the model around it; a few models, such as rwkv, keep the mask to themselves.
        hints: facts that neither shows.
        n_past: tokens in the cache.
        n_virtual: positions of trained prompts before the first token.

    Returns:
        None if the module takes neither token ids nor embeddings.

    Raises:
        ProbeError: the mask cannot be read.
    """
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    fed = ids if isinstance(ids, Tensor) else embeds
    if not isinstance(fed, Tensor) or fed.ndim < 2:
        return None
    if given.get("read_index") is not None:
        raise ProbeError(
            "generate_batch: continuous batching feeds pieces of many texts in one row, from which nobody can tell "
            "what belongs together; use model.generate"
        )
    n_sequences, n_tokens = fed.shape[:2]
    known = outer.get("input_ids") if hints is None or hints.ids_BL is None else hints.ids_BL
    if not isinstance(ids, Tensor):  # the model around it embeds the tokens, and images beside them
        ids = known if isinstance(known, Tensor) and known.shape[0] == n_sequences else None
        if ids is not None and hints is not None:
            ids = ids[:, -n_tokens:]
    prompt = 0
    if ids is not None and ids.shape[1] != n_tokens:
        prompt = n_virtual if ids.shape[1] + n_virtual == n_tokens else 0
        ids = np.pad(_numpy(ids), ((0, 0), (n_virtual, 0)), constant_values=-1) if prompt else None
    shape = (n_sequences, n_tokens)
    if hints is not None and hints.is_own_mask and hints.mask_BL is not None:
        real_BT = fit_mask(hints.mask_BL, shape, n_past=n_past, n_virtual=n_virtual)
    else:
        real_BT = _real(given, outer, hints, shape, n_past)
    mask_known = hints is not None or any(a.get("attention_mask") is not None for a in (given, outer))
    real_BT[:, :prompt] = False
    if hints is not None and hints.ends_B is not None and hints.ids_BL is not None:
        last = hints.ids_BL.shape[1]
        real_BT &= np.arange(last - n_tokens, last) < hints.ends_B[:, None]
    return TokenBatch(
        real_BT=real_BT,
        ids_BT=None if ids is None else _numpy(ids),
        mask_known=mask_known,
        starts_BT=_starts(given, outer, real_BT),
    )


def _real(
    given: Mapping[str, Any], outer: Mapping[str, Any], hints: InputHints | None, shape: tuple[int, int], n_past: int
) -> np.ndarray:
    """Find the real tokens [B, T] by the first mask of that shape; all are real where there is no mask."""
    n_sequences, n_tokens = shape
    mask = given.get("attention_mask")
    if isinstance(mask, Mapping):  # one for each kind of layer
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    two = [hints.mask_BL if hints else None, mask, outer.get("attention_mask")]
    for candidate in two:
        if isinstance(candidate, Tensor) and candidate.ndim == 2 and candidate.shape[0] == n_sequences:
            missing = n_tokens - candidate.shape[1]
            if missing <= 0:
                return _numpy(candidate[:, -n_tokens:] != 0)  # numpy has no bfloat16
    if mask is None:
        mask = outer.get("attention_mask")
    if mask is None:
        return np.ones(shape, dtype=bool)
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[0] in (1, n_sequences) and mask.shape[2] == n_tokens:
        # [B, 1, T, S]: a token is real where it may attend to itself.
        past = n_past if mask.shape[3] >= n_past + n_tokens else mask.shape[3] - n_tokens
        if past >= 0:
            own = mask[:, 0].diagonal(offset=past, dim1=1, dim2=2)
            own_BT = _numpy(own if not own.is_floating_point() else own.float() > -1.0) != 0
            return np.broadcast_to(own_BT, shape).copy()
    got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ProbeError(
        f"attention_mask: expected [B, T] = {[n_sequences, n_tokens]}, got {got}; say which tokens are real with "
        "probe.masked(mask)"
    )


def _starts(given: Mapping[str, Any], outer: Mapping[str, Any], real_BT: np.ndarray) -> np.ndarray | None:
    """Find the starts of packed texts [B, T]: restarts of position ids, or lengths given for flash attention."""
    again = np.zeros(real_BT.shape, dtype=bool)
    positions, lengths = (
        given.get(name) if isinstance(given.get(name), Tensor) else outer.get(name)
        for name in ("position_ids", "cu_seq_lens_q")
    )
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == real_BT.shape[1]:
        numbers = _numpy(positions)
        again[:, 1:] = (numbers[:, 1:] <= numbers[:, :-1]) & real_BT[:, 1:] & real_BT[:, :-1]
    elif isinstance(lengths, Tensor) and len(real_BT) == 1:
        starts = _numpy(lengths)
        again[0, starts[(starts > 0) & (starts < real_BT.shape[1])]] = True
    return again if again.any() else None


def _numpy(tensor: Tensor | np.ndarray) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else tensor.cpu().numpy()
