"""Hidden states that come from elsewhere: read as tensors, and checked before any of them is added.

Shape suffixes: G rows of a result (layers), N positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from softh_probe.errors import InputError, abbreviated, short_repr

_EXPECTED = "[N, D] or [B, T, D], as a float tensor, an array, or anything with __dlpack__"
#: Types that products with anchors take as they are; of others a float32 copy is made.
_TAKEN = (torch.float32, torch.bfloat16, torch.float16)


class FedStates(NamedTuple):
    """The hidden states of one update.

    Attributes:
        of_rows: by name of the row, [N, D] or [B, T, D].
        shape: (N,) or (B, T).
    """

    of_rows: dict[str, Tensor]
    shape: tuple[int, ...]

    @property
    def kinds(self) -> list[tuple[torch.device, torch.dtype]]:
        """Device and type of each row's states: only equal ones are queued together."""
        return [(h.device, h.dtype) for h in self.of_rows.values()]


def read_states(states: object, widths: Mapping[str, int] | None) -> FedStates:
    """Read the hidden states of an update, all rows of which are of the same positions.

    >>> read_states({"layer.1": np.ones((3, 8))}, None).shape
    (3,)

    Args:
        states: by name of the row.
        widths: of the rows that are expected, in their order; None where any are.

    Raises:
        InputError: rows are missing or unknown, or one is not what it has to be.
    """
    if not isinstance(states, Mapping) or not states:
        raise InputError(f"update: expected hidden states by row, as {{'layer.1': h}}, got {short_repr(states)}")
    if bad := [name for name in states if not isinstance(name, str) or not name]:
        raise InputError(f"update: expected names of rows as 'layer.1', got {short_repr(bad[0])}")
    if widths is not None:
        _require_rows(states, widths)
    found = {name: _as_tensor(name, states[name]) for name in (states if widths is None else widths)}
    first = next(iter(found))
    shape = tuple(found[first].shape[:-1])
    for name, hidden in found.items():
        if widths is not None and hidden.shape[-1] != widths[name]:
            raise InputError(f"{name}: expected hidden states of width {widths[name]}, got {list(hidden.shape)}")
        if hidden.shape[:-1] != shape:
            raise InputError(
                f"{name}: expected hidden states {[*shape, 'D']} as of {first}, got {list(hidden.shape)}; an update "
                "has the states of the same positions in all rows"
            )
    return FedStates(found, shape)


def check_states(states: FedStates, is_checked_N: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse states without a direction; waits for their devices.

    Args:
        states: the states.
        is_checked_N: whether a position may count; the others' states may be anything.
        where: tells a position by its number.

    Raises:
        InputError: a state is zero or not finite.
    """
    by_device: dict[torch.device, Tensor] = {}
    bad_of = {}
    for name, hidden in states.of_rows.items():
        here = by_device.setdefault(hidden.device, torch.from_numpy(is_checked_N).to(hidden.device))
        bad_of[name] = here & without_direction(hidden.detach().flatten(0, -2))
    counts = [bad_N.any() for bad_N in bad_of.values()]
    home = counts[0].device
    if not torch.stack([count.to(home) for count in counts]).any():
        return
    for name, bad_N in bad_of.items():
        for n in bad_N.nonzero().flatten()[:1].tolist():
            state_D = states.of_rows[name].detach().flatten(0, -2)[n]
            what = "zero" if bool((state_D == 0).all()) else "not finite"
            raise InputError(
                f"{name}: the hidden state is {what} at {where(n)}, and so has no direction ({int(bad_N.sum())} of "
                f"{len(bad_N)} positions of the update); leave such positions out with counted=, or padding with mask="
            )


def without_direction(states_ND: Tensor) -> Tensor:
    """Find the states that are zero or not finite, and so have no direction: bool [N].

    >>> without_direction(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, float("nan")]])).tolist()
    [False, True, True]
    """
    taken_ND = states_ND if states_ND.dtype in _TAKEN else states_ND.float()
    peak_N = torch.linalg.vector_norm(taken_ND, ord=torch.inf, dim=-1)
    has_one_N: Tensor = (peak_N > 0) & (peak_N < torch.inf)  # neither holds of NaN
    return ~has_one_N


def _require_rows(states: Mapping[str, object], widths: Mapping[str, int]) -> None:
    if missing := [name for name in widths if name not in states]:
        raise InputError(
            f"update: no hidden states of {abbreviated(missing)}; each update has those of all {len(widths)} rows"
        )
    if unknown := [name for name in states if name not in widths]:
        raise InputError(f"update: unknown row {unknown[0]!r}; expected {abbreviated(list(widths), 8)}")


def _as_tensor(name: str, value: object) -> Tensor:
    tensor = value if isinstance(value, Tensor) else _exported(name, value)
    if not tensor.is_floating_point() or tensor.is_nested or tensor.is_meta or tensor.layout is not torch.strided:
        raise InputError(f"{name}: expected hidden states {_EXPECTED}, got {_described(tensor)}")
    if tensor.ndim not in (2, 3) or not tensor.shape[-1]:
        raise InputError(f"{name}: expected hidden states {_EXPECTED}, got {list(tensor.shape)}")
    if tensor.is_mps:
        tensor = tensor.cpu()  # Apple's GPUs have no float64
    return tensor if tensor.dtype in _TAKEN else tensor.float()


def _exported(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, np.ndarray):
            return _of_array(value)
        if hasattr(value, "__dlpack__"):
            return from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(f"{name}: expected hidden states {_EXPECTED}, got {type(value).__name__}: {error}") from error
    raise InputError(f"{name}: expected hidden states {_EXPECTED}, got {short_repr(value)}")


def _of_array(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":  # of ml_dtypes, as JAX gives it
        return _of_array(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind == "f" and (array.dtype.itemsize > 8 or not array.dtype.isnative):
        array = array.astype(np.float64)
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()  # torch would warn of the former, and refuses the latter
    return torch.from_numpy(array)


def _described(tensor: Tensor) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return f"{kind}, nested"
    where = " without values, on meta" if tensor.is_meta else ""
    layout = "" if tensor.layout is torch.strided else f" of layout {str(tensor.layout).removeprefix('torch.')}"
    return f"{kind} {list(tensor.shape)}{where}{layout}"
