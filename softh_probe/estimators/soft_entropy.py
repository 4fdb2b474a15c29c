"""Soft entropy and soft mutual information of hidden states (Conklin 2025, arXiv 2505.23960).

For a hidden state h, anchors w_j on the unit sphere and temperature ε:

    q_j = softmax_j(cos(h, w_j) / ε)        the soft assignment of one position; sums to 1
    H(Z) = −Σ_j p̂_j log p̂_j                 p̂ = mean of q over positions
    I(X;Z) = H(Z) − Σ_x P(x) H(p̂_x)          p̂_x = mean of q over the positions with label x

Shape suffixes: N positions, D width of a hidden state, S anchor sets, M anchors, L labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softh_probe.accelerators import is_accelerator
from softh_probe.errors import InputError
from softh_probe.estimators.anchors import sample_anchors
from softh_probe.estimators.calibration import resolve_temperature
from softh_probe.estimators.float32 import full_float32
from softh_probe.estimators.given_anchors import given_anchors

#: Norms whose squares float32 can hold.
_SAFE = (1e-12, 1e15)
_LOG2_E = 1.0 / math.log(2.0)


def anchor_logits(
    z_ND: Tensor,
    anchors_SMD: Tensor,
    temperature: float,
    out: Tensor | None = None,
    norms: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute cos(h, w_j) / ε, the logits of the soft assignments.

    >>> z_ND, anchors_SMD = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.eye(2).unsqueeze(0)
    >>> logits_NSM, valid_N = anchor_logits(z_ND, anchors_SMD, temperature=0.5)
    >>> logits_NSM.tolist(), valid_N.tolist()
    ([[[2.0, 0.0]], [[0.0, 0.0]]], [True, False])

    The division by ‖h‖·ε follows the projection: M/D as many elements are divided as before it.

    Args:
        z_ND: hidden states, float32 or float64.
        anchors_SMD: anchors of the same dtype, on the same device.
        temperature: ε.
        out: buffer [N, S·M] for the logits.
        norms: those of the hidden states, as `state_norms` gives them, where they are known.

    Returns:
        The logits [N, S, M], and a bool mask of valid hidden states [N]. It is False where the hidden state has no
        direction: where it is zero (its logits are 0) or not finite (its logits may be NaN). The mask is None if all
        are known to be valid, which only the CPU checks.
    """
    n_sets, n_anchors, dim = anchors_SMD.shape
    norm_N, valid_N = state_norms(z_ND) if norms is None else norms
    scale_N = norm_N * temperature
    if valid_N is not None:
        scale_N = torch.where(valid_N, scale_N, 1.0)
    with full_float32(z_ND.device):
        logits_NK = torch.mm(z_ND, anchors_SMD.reshape(n_sets * n_anchors, dim).T, out=out)
    logits_NK = logits_NK.div_(scale_N.unsqueeze(-1))
    return logits_NK.unflatten(-1, (n_sets, n_anchors)), valid_N


def assignments(logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute soft assignments q, and the entropy of each in nats.

    >>> q, entropies = assignments(torch.zeros(1, 4))
    >>> q.tolist(), round(entropies.item() / math.log(4), 6)
    ([[0.25, 0.25, 0.25, 0.25]], 1.0)

    Args:
        logits: [..., M]; overwritten.
        out: buffer [..., M] for q.

    Returns:
        q [..., M] and −Σ_j q_j log q_j [...].
    """
    log_q = torch.log_softmax(logits, dim=-1, out=logits)
    q = torch.mul(log_q, _LOG2_E, out=out).exp2_()  # e^(log q), several times as fast on a CPU
    return q, -log_q.mul_(q).sum(dim=-1)


def log_assignments(z_ND: Tensor, anchors_SMD: Tensor, temperature: float) -> Tensor:
    """Compute the logarithm of the soft assignments of hidden states to anchors.

    >>> log_q_NSM = log_assignments(torch.ones(1, 2), torch.eye(2).unsqueeze(0), temperature=0.5)
    >>> [round(q, 6) for q in log_q_NSM.exp().flatten().tolist()]
    [0.5, 0.5]

    Args:
        z_ND: hidden states, float32 or float64.
        anchors_SMD: anchors of the same dtype, on the same device.
        temperature: ε.

    Returns:
        log q, [N, S, M].
    """
    logits_NSM, _ = anchor_logits(z_ND, anchors_SMD, temperature)
    return torch.log_softmax(logits_NSM, dim=-1)


def state_norms(z_ND: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute ‖z‖ [N], also where squares over- or underflow in float32, and the mask of valid states [N].

    >>> state_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    (tensor([5., 0.]), tensor([ True, False]))

    Args:
        z_ND: hidden states, float32 or float64.

    Returns:
        The norms, and the mask as `anchor_logits` gives it.
    """
    if not is_accelerator(z_ND.device) and len(z_ND):
        # Reading values needs no device sync here, and float64 would cost a copy.
        norm_N = torch.linalg.vector_norm(z_ND, dim=-1)
        least, most = (bound.item() for bound in norm_N.aminmax())
        if least > _SAFE[0] and most < _SAFE[1]:
            return norm_N, None
    norm_N = torch.linalg.vector_norm(z_ND, dim=-1, dtype=torch.float64).to(z_ND.dtype)
    return norm_N, (norm_N > 0) & (norm_N < math.inf)


def entropy(mass: Tensor) -> Tensor:
    """Compute the Shannon entropy, in nats, of unnormalised non-negative mass along the last dimension.

    >>> round(entropy(torch.tensor([1.0, 1.0, 0.0])).item(), 6) == round(math.log(2), 6)
    True

    Args:
        mass: [..., M]; p = mass / Σ mass.

    Returns:
        −Σ_j p_j log p_j, [...]; NaN where all mass is 0, for then there is no distribution.
    """
    p = mass / mass.sum(dim=-1, keepdim=True)
    # Unlike torch.special.entr, this has a finite gradient where p underflows to 0.
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim=-1)


def soft_entropy(
    z: Tensor, n_anchors: int = 100, seed: int = 0, calibration: str | float = "exact", anchors: object = "iid"
) -> Tensor:
    """Compute H(Z) of hidden states, in units of log(n_anchors): 0 for a single anchor, 1 for a uniform distribution.

    >>> z = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    >>> 0.98 < soft_entropy(z).item() < 1
    True

    Args:
        z: hidden states [N, D] (or [..., D]: leading dimensions are positions). Half precisions are computed in
            float32, float64 in float64. Zero vectors have no direction and count as uniform, as in the published
            code, where a run and a probe leave them out; NaN gives NaN.
        n_anchors: number of anchors M.
        seed: seed of the anchors.
        calibration: "exact", "leading_order", "amos", or the temperature itself.
        anchors: kind of the anchors: "iid", "published" or "antithetic", as in `sample_anchors`; or one's own [M, D], a
            tensor, an array or a file of one, which decides n_anchors.

    Returns:
        Tensor [], on z's device; differentiable with respect to z.

    Raises:
        InputError: z has no positions, or is not a floating point tensor of at least two dimensions.
    """
    q_NM = _soft_assignments(z, n_anchors, seed, calibration, anchors)
    return entropy(q_NM.mean(dim=0)) / math.log(q_NM.shape[1])


def soft_mutual_information(
    z: Tensor,
    labels: Tensor,
    n_anchors: int = 100,
    seed: int = 0,
    calibration: str | float = "exact",
    anchors: object = "iid",
) -> Tensor:
    """Compute I(X;Z) between labels and hidden states, in units of log(n_anchors).

    The soft assignments are computed once, whatever the number of labels.

    >>> z = torch.eye(8).repeat(50, 1)
    >>> labels = torch.arange(8).repeat(50)
    >>> soft_mutual_information(z, labels).item() > 0.1
    True

    Args:
        z: hidden states [N, D] (or [..., D]), as in `soft_entropy`.
        labels: integers of any value, one per position: [N], or z's leading dimensions.
        n_anchors: number of anchors M.
        seed: seed of the anchors.
        calibration: as in `soft_entropy`.
        anchors: as in `soft_entropy`.

    Returns:
        Tensor [], on z's device; differentiable with respect to z.

    Raises:
        InputError: as in `soft_entropy`, or the labels are not integers, one for each position.
    """
    _require_states(z)
    if not isinstance(labels, Tensor):
        raise InputError(f"labels: expected a tensor of integers, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels: expected integers, got {labels.dtype}; number the classes first")
    if labels.shape != z.shape[:-1]:
        raise InputError(f"labels: expected one per position, shape {list(z.shape[:-1])}, got {list(labels.shape)}")
    q_NM = _soft_assignments(z, n_anchors, seed, calibration, anchors)
    _, label_N, count_L = labels.to(z.device).reshape(-1).unique(return_inverse=True, return_counts=True)
    mass_LM = q_NM.new_zeros(len(count_L), q_NM.shape[1]).index_add(0, label_N, q_NM)
    conditional: Tensor = ((count_L / len(q_NM)).to(q_NM.dtype) * entropy(mass_LM)).sum()
    return (entropy(q_NM.mean(dim=0)) - conditional) / math.log(q_NM.shape[1])


def _soft_assignments(z: Tensor, n_anchors: int, seed: int, calibration: str | float, anchors: object) -> Tensor:
    """Compute the soft assignments [N, M] of hidden states [..., D]."""
    _require_states(z)
    z_ND = z.reshape(-1, z.shape[-1])
    if len(z_ND) == 0:
        raise InputError("z: no positions; entropy needs at least one hidden state")
    if z.dtype in (torch.float16, torch.bfloat16):
        z_ND = z_ND.float()
    if (given := given_anchors(anchors)) is not None:
        given.sizes(n_anchors, 1)  # the user may have given another number
        n_anchors = given.n_anchors
        anchors_MD = torch.from_numpy(given.of_width(z.shape[-1])[0]).to(z_ND)
    else:
        anchors_MD = sample_anchors(n_anchors, z.shape[-1], seed, str(anchors)).to(z_ND)
    temperature = resolve_temperature(calibration, n_anchors, z.shape[-1])
    with torch.autocast(z.device.type, enabled=False):  # autocast would project in half precision
        log_q_N1M = log_assignments(z_ND, anchors_MD.unsqueeze(0), temperature)
    return log_q_N1M.squeeze(1).exp()


def _require_states(z: object) -> None:
    if not isinstance(z, Tensor) or z.ndim < 2 or not z.is_floating_point():
        got = f"{z.dtype} {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise InputError(f"z: expected floating point hidden states [N, D] in a tensor, got {got}")
