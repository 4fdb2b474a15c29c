"""The mean of a layer's first states, which is subtracted from all of them where a row of centered states is measured.

A direction that all states share lowers entropy and every information; without it, what lies beside it shows. The mean
has to stay the same for all positions, so it is that of the first batch: of its positions that count, or that wait for
their labels.

Shape suffixes: N computed positions, C positions that wait, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import Dispatch
from softh_probe.accumulators.layer_sums import LayerSums
from softh_probe.errors import InputError, short_repr
from softh_probe.hashing import bytes_sha256
from softh_probe.layer_places import is_centered, layer_of

#: Positions whose mean is taken without a warning: it is off by a thirtieth of the states' spread.
ENOUGH = 1000


def n_positions(labels: Dispatch) -> int:
    """Count the positions of a batch whose mean may be taken."""
    return labels.n_sequence_positions + (0 if labels.held_positions is None else len(labels.held_positions))


def centered(sums: LayerSums, h_ND: Tensor, labels: Dispatch) -> Tensor:
    """Subtract from states the mean that their layer has, or that of these, which it then has.

    Args:
        sums: of a row of centered states.
        h_ND: computed states of a batch.
        labels: the dispatch of the batch, on the device of the states.
    """
    if sums.center is None:
        if not n_positions(labels):
            return h_ND  # none counts
        sums.center = _mean(h_ND, labels)
    return h_ND - sums.center


def given_centers(center: object) -> dict[str, Tensor]:
    """Read means of one's own by name of the layer: float32 [D], on the CPU; none of True or False.

    Raises:
        InputError: it is neither, or one of them is no vector of finite numbers.
    """
    if isinstance(center, bool):
        return {}
    if not isinstance(center, Mapping) or not center:
        raise InputError(f"center: expected True, False or a vector for each layer, got {short_repr(center)}")
    found = {str(layer): torch.as_tensor(vector).detach().to("cpu", torch.float32) for layer, vector in center.items()}
    for layer, vector in found.items():
        if vector.ndim != 1 or not vector.isfinite().all():
            got = "NaN or infinity" if vector.ndim == 1 else f"a tensor {list(vector.shape)}"
            raise InputError(f"center: {layer}: expected a vector of finite numbers, got {got}")
    return found


def check_centers(centers: Mapping[str, Tensor], rows: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that centred rows are measured, and that means of one's own are those of layers.

    Args:
        centers: the means, by name of the layer; none where they are those of the first states.
        rows: all rows of the model, as far as they are known.
        wanted: those that are measured.

    Raises:
        InputError: they are not.
    """
    layers = [layer_of(row) for row in wanted if is_centered(row)]
    if rows and not layers:
        raise InputError("center: layers name no row of centered states; add one, as in layer.1.centered")
    missing = [layer for layer in layers if layer not in centers]
    unknown = [layer for layer in centers if layer not in rows]
    if rows and centers and (missing or unknown):
        what = f"none of {missing[0]}" if missing else f"one of {unknown[0]!r}, which is no layer"
        raise InputError(f"center: expected a vector for each measured layer, got {what}")


def describe_centers(centers: Mapping[str, Tensor], n: int | None) -> dict[str, Any]:
    """Describe means for a result (JSON values): the positions they are of, None where they were given, and a digest.

    >>> describe_centers({"layer.1": torch.zeros(2)}, 1000)["positions"]
    1000
    """
    content = b"".join(vector.numpy().astype("<f4").tobytes() for vector in centers.values())
    return {"positions": n, "sha256": bytes_sha256(content)}


def _mean(h_ND: Tensor, labels: Dispatch) -> Tensor:
    """Compute the mean [D], float32, of the positions that count or wait; those that are not finite are left out."""
    n = len(h_ND)
    weight_N = labels.counted(n).double()
    if labels.held_positions is not None:
        weight_N.index_fill_(0, labels.held_positions, 1.0)
    is_finite_N = h_ND.isfinite().all(dim=1)
    weight_N = weight_N[:n] * is_finite_N
    sum_D = weight_N @ h_ND.double().masked_fill(~is_finite_N.unsqueeze(1), 0.0)
    return (sum_D / weight_N.sum().clamp(min=1.0)).float()
