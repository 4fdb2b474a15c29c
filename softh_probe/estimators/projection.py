"""Project hidden states onto anchors, in float32 precision whatever their type.

On an accelerator states in bfloat16 or float16 stay as they are. The anchors are split into two halves of that type,
w = high + low, which together hold 16 bits of each component or more. The products of the halves are exact and
accumulate in float32, as tensor cores do; their sum is h·w within some 1e-7 of ‖h‖. In few dimensions it would be
off by more, and a copy of the states in float32 costs little there.

Shape suffixes: N positions, D width of a hidden state, S anchor sets, M anchors, K = S·M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator
from softh_probe.estimators.float32 import accumulation_in_float32, full_float32

_HALVES = (torch.bfloat16, torch.float16)
#: Width of states from which on the products of halves are right; narrower ones, as of routers, are taken in float32.
_LEAST_WIDTH = 32
#: Scales of float16 weights below 1, and of the others.
_SCALES = (2.0**15, 2.0**-9)


class Projection:
    """Anchors of one width on one device, ready for products with hidden states.

    >>> projection = Projection(torch.eye(2).unsqueeze(0), temperature=0.5)
    >>> projection.products(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])

    Args:
        points_SMD: anchors, float32.
        temperature: ε of the softmax over cosine similarities.
    """

    def __init__(self, points_SMD: Tensor, temperature: float) -> None:
        self.points_SMD, self.temperature = points_SMD, temperature
        self.n_sets, self.n_anchors, self.dim = points_SMD.shape
        self._halves: dict[torch.dtype, Tensor | None] = {}

    @property
    def n_products(self) -> int:
        """K, the number of anchors of all sets."""
        return self.n_sets * self.n_anchors

    def n_parts(self, dtype: torch.dtype) -> int:
        """Give the number of parts P that the products of states of a type come in."""
        return 1 if self._halves_of(dtype) is None else 2

    def products(self, h_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute the parts of h·w for hidden states of any float type: [N, P·K], float32; their sum is h·w.

        Args:
            h_ND: hidden states, on the device of the anchors.
            out: buffer [N, P·K] for the products.
        """
        halves_2KD = self._halves_of(h_ND.dtype)
        if halves_2KD is not None:
            return _product(h_ND, halves_2KD.T, out)
        with full_float32(h_ND.device):
            return torch.mm(h_ND.float(), self.points_SMD.flatten(0, 1).T, out=out)

    def sum_of_units(self, counted_N: Tensor, norm_N: Tensor, h_ND: Tensor) -> Tensor:
        """Compute Σ_n counted_n · h_n / norm_n in one read of the states: [P, D], float32.

        >>> projection = Projection(torch.eye(2).unsqueeze(0), temperature=0.5)
        >>> projection.sum_of_units(torch.ones(2), torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [2.0, 2.0]]))
        tensor([[4., 5.]])

        Weights 1/norm are split into halves as the anchors are, w = high − low. Those of float16 that are below 1 and
        the others stand in rows of their own, scaled by powers of two: all its states' weights fit into its few
        exponents so.

        Args:
            counted_N: how often each state counts, float32.
            norm_N: norms, float32; of states in float16 between 2^-24 and 2^24, or infinite.
            h_ND: hidden states, on the device of the anchors.

        Returns:
            The sum; where there are two rows, it is the first minus the second.
        """
        dtype = h_ND.dtype
        if self._halves_of(dtype) is None:
            with full_float32(h_ND.device):
                return torch.mm((counted_N / norm_N).unsqueeze(0), h_ND.float())
        if dtype != torch.float16:
            halves_2N = h_ND.new_empty(2, len(h_ND))
            high_N, low_N = halves_2N
            torch.div(counted_N, norm_N, out=high_N)
            torch.addcdiv(high_N, counted_N, norm_N, value=-1.0, out=low_N)  # high − w, in float32 and rounded once
            return _product(halves_2N, h_ND, None)
        weight_N, (up, down) = counted_N / norm_N, _SCALES
        is_small_N = weight_N < 1
        parts_2N = torch.stack([weight_N.where(is_small_N, 0.0) * up, weight_N.masked_fill(is_small_N, 0.0) * down])
        halves_4N = _split(parts_2N, dtype)
        halves_4N[2:].neg_()
        high_low_22D = _product(halves_4N, h_ND, None).unflatten(0, (2, 2))
        found: Tensor = high_low_22D[:, 0] / up + high_low_22D[:, 1] / down
        return found

    def _halves_of(self, dtype: torch.dtype) -> Tensor | None:
        """Give the halves of the anchors in a type, high ones first: [2K, D]; None where products take float32."""
        if dtype not in _HALVES or self.dim < _LEAST_WIDTH or not is_accelerator(self.points_SMD.device):
            return None
        if dtype not in self._halves:
            w_KD = self.points_SMD.flatten(0, 1)
            halves_2KD = _split(w_KD, dtype)
            self._halves[dtype] = halves_2KD if _gives_float32(halves_2KD) else None
        return self._halves[dtype]


def _split(w_KD: Tensor, dtype: torch.dtype) -> Tensor:
    """Split float32 into halves of a type, high ones first: [2K, D]."""
    halves_2KD = w_KD.new_empty(2, *w_KD.shape, dtype=dtype)
    high_KD, low_KD = halves_2KD
    high_KD.copy_(w_KD)
    torch.sub(w_KD, high_KD, out=low_KD)  # in float32, and rounded once
    return halves_2KD.flatten(0, 1)


def _product(left: Tensor, right: Tensor, out: Tensor | None) -> Tensor:
    """Multiply matrices of half precision and accumulate in float32."""
    with accumulation_in_float32():
        try:
            return torch.mm(left, right, out_dtype=torch.float32, out=out)
        except NotImplementedError:  # on a CPU
            return torch.mm(left.float(), right.float(), out=out)


def _gives_float32(halves_2KD: Tensor) -> bool:
    """Tell whether products of half precision can be given in float32: torch from 2.8 on, on CUDA."""
    if halves_2KD.device.type == "cpu":
        return True
    try:
        with accumulation_in_float32():
            torch.mm(halves_2KD[:16], halves_2KD[:16].T, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True
