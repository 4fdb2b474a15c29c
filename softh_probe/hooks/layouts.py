"""Layouts of hidden states: which dimension is the batch's, which the width, and which are positions.

A layout is a word with a letter for each dimension: B for the batch, D or C for the width (C where it is called
channels), any other letter for positions, in their order: "BTD", "TBD", "BCT", "BCHW", "BHWC".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from softh_probe.errors import InputError, ProbeError

_SEQUENCE_MODULES: tuple[type[nn.Module], ...] = (
    nn.RNNBase,
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
_WIDTH_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RMSNorm)
_CHANNELS_SECOND = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)
_IMAGES = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Conv3d)


def check_layout(where: str, layout: object) -> str:
    """Check a layout that a user declares.

    Raises:
        InputError: it is no such word.
    """
    letters = layout if isinstance(layout, str) else ""
    width = [letter for letter in letters if letter in "DC"]
    fits = len(set(letters)) == len(letters) >= 2 and letters.isalpha() and letters.isupper() and len(width) == 1
    if not fits or ("B" not in letters and len(letters) > 2):
        raise InputError(
            f"{where}: expected a layout such as 'BTD', 'TBD', 'BCT' or 'BCHW' (B batch, D or C width, others "
            f"positions), got {layout!r}"
        )
    return letters


def arranged(hidden: Tensor, layout: str, where: str) -> Tensor:
    """Arrange hidden states of a layout as [B, T, D], or [B, D] where there are no positions within a sequence.

    >>> import torch
    >>> list(arranged(torch.zeros(2, 8, 3, 4), "BCHW", "conv").shape)
    [2, 12, 8]

    Raises:
        ProbeError: they have another number of dimensions.
    """
    if hidden.ndim != len(layout):
        raise ProbeError(
            f"{where}: expected the {len(layout)} dimensions of layout {layout!r}, got hidden states "
            f"{list(hidden.shape)}; declare their layout: {remedy(where)}"
        )
    letters = layout.replace("C", "D")
    if "B" not in letters:
        letters, hidden = "B" + letters, hidden.unsqueeze(0)
    positions = [letter for letter in letters if letter not in "BD"]
    hidden = hidden.permute([letters.index(letter) for letter in ("B", *positions, "D")])
    return hidden.flatten(1, -2) if len(positions) > 1 else hidden


def remedy(layer: str, layout: str = "TBD") -> str:
    """Give the code that declares a layout."""
    return f"modules={{{layer!r}: (module, None, {layout!r})}}"


def known_layout(module: nn.Module, model: nn.Module, n_dims: int) -> tuple[str, str] | None:
    """Find the layout of a module's output, where torch itself determines it, and the reason.

    Args:
        module: the module.
        model: the model that it is a part of.
        n_dims: dimensions of its output.
    """
    name = type(module).__name__
    if _runs_as(module, _CHANNELS_SECOND) and n_dims == 3:
        return "BCT", f"that of {name}"
    if _runs_as(module, _CHANNELS_SECOND[:2]) and n_dims == 2:
        return "CT", f"that of {name} without a batch"
    if n_dims != 3:
        return None
    for outer in _outward(module, model):
        if (batch_first := _batch_first(outer)) is not None and (outer is module or _runs_as(module, _WIDTH_LAST)):
            return ("BTD" if batch_first else "TBD"), f"batch_first={batch_first} of {type(outer).__name__}"
    return None


def has_width_last(module: nn.Module) -> bool:
    """Whether a module, or a part of it, works on a width that comes last, and no part on channels that come second."""
    parts = list(module.modules())
    works_on_width = any(_runs_as(part, _WIDTH_LAST + _SEQUENCE_MODULES) for part in parts)
    return works_on_width and not any(_runs_as(part, _CHANNELS_SECOND + _IMAGES) for part in parts)


def is_sequence_module(module: nn.Module) -> bool:
    """Whether this is one of torch's recurrent nets, attentions or transformers, which have `batch_first`."""
    return _runs_as(module, _SEQUENCE_MODULES)


def puts_time_first(model: nn.Module) -> bool:
    """Whether some part of a model gives [T, B, D]."""
    return any(_batch_first(module) is False for module in model.modules())


def puts_channels_second(model: nn.Module) -> bool:
    """Whether some part of a model gives [B, C, …]."""
    return any(_runs_as(module, _CHANNELS_SECOND + _IMAGES) for module in model.modules())


def _runs_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module runs the forward method of one of torch's own."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _batch_first(module: nn.Module) -> bool | None:
    if not is_sequence_module(module):
        return None
    found = {
        bool(part.batch_first) for part in module.modules() if isinstance(getattr(part, "batch_first", None), bool)
    }
    return found.pop() if len(found) == 1 else None


def _outward(module: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """Give a module, then the modules around it, the innermost first."""
    around = [outer for outer in model.modules() if any(part is module for part in outer.modules())]
    yield from around[::-1] if around else [module]
