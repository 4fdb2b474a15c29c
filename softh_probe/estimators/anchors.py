"""Anchors: fixed random points on the unit sphere onto which hidden states are projected.

They are drawn independently and uniformly (Conklin 2025, arXiv 2505.23960), from streams that `recipes` defines.

Shape suffixes: S anchor sets, M anchors, D width of a hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.estimators.calibration import resolve_temperature
from softh_probe.estimators.given_anchors import GivenAnchors
from softh_probe.estimators.recipes import ANTITHETIC, KINDS, stream_seed
from softh_probe.hashing import bytes_sha256


def sample_anchors(n_anchors: int, dim: int, seed: int = 0, kind: str = "iid") -> Tensor:
    """Draw anchors uniformly from the unit sphere.

    >>> sample_anchors(100, 576).shape
    torch.Size([100, 576])

    Args:
        n_anchors: number of anchors m, at least 2.
        dim: width d of the hidden states, at least 2.
        seed: seed of the set. The global random state is neither read nor changed, and the anchors are the same on
            every device.
        kind: "iid" draws all anchors independently, from a stream of their own for each seed, n_anchors and dim: no
            `torch.manual_seed` of the user's starts it. "published" draws from `torch.Generator().manual_seed(seed)`,
            as the published code does. "antithetic" draws half of the anchors, from a further stream, and adds their
            opposites (w and −w), so that entropies vary less from one draw to the next. "published_antithetic" draws
            these pairs from the stream of "published", as earlier versions did.

    Returns:
        Tensor [n_anchors, dim], float32, on the CPU, rows of unit length.

    Raises:
        InputError: an argument is of the wrong type or out of range, or `kind` is unknown.
    """
    if not isinstance(n_anchors, int) or n_anchors < 2:
        raise InputError(f"n_anchors: expected an integer of at least 2, got {n_anchors!r}; the published value is 100")
    if dim < 2:
        raise InputError(f"dim: expected hidden states of width 2 or more, got {dim}")
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed: expected an integer of 64 bits, got {seed!r}")
    if kind not in KINDS:
        raise InputError(f"anchors: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {kind!r}")
    if kind in ANTITHETIC and n_anchors % 2:
        raise InputError(f"n_anchors: antithetic anchors come in pairs; expected an even number, got {n_anchors}")
    n_drawn = n_anchors // 2 if kind in ANTITHETIC else n_anchors
    generator = torch.Generator("cpu").manual_seed(stream_seed(kind, seed, n_anchors, dim))
    w_MD = torch.randn(n_drawn, dim, generator=generator, dtype=torch.float32, device="cpu")
    w_MD = torch.nn.functional.normalize(w_MD, dim=-1)
    return torch.cat([w_MD, -w_MD]) if kind in ANTITHETIC else w_MD


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """One or several sets of anchors for hidden states of one width, with their temperature.

    >>> anchors = Anchors.sample(n_anchors=100, dim=576, n_sets=2, seed=0)
    >>> anchors.points_SMD.shape, round(anchors.temperature, 8)
    (torch.Size([2, 100, 576]), 0.01356618)

    Attributes:
        points_SMD: [n_sets, n_anchors, dim], float32, CPU; set s is drawn with seed + s.
        temperature: ε of the softmax over cosine similarities (dimensionless).
        sha256: digest of the points' bytes (little-endian float32, set by set); equal digests mean equal anchors.
        recipe: kind of the draw, one of `KINDS`, or "given".
    """

    points_SMD: Tensor
    temperature: float
    sha256: str
    recipe: str

    @classmethod
    def sample(
        cls,
        *,
        n_anchors: int,
        dim: int,
        n_sets: int = 1,
        seed: int = 0,
        kind: str = "iid",
        calibration: str | float = "exact",
    ) -> Anchors:
        """Draw anchor sets and compute their temperature.

        >>> Anchors.sample(n_anchors=100, dim=576, calibration=0.02).temperature
        0.02

        Args:
            n_anchors: number of anchors m of a set, at least 2.
            dim: width d of the hidden states, at least 2.
            n_sets: number of sets.
            seed: seed of the first set; set s is drawn with seed + s.
            kind: "iid", "published" or "antithetic", as in `sample_anchors`.
            calibration: "exact", "leading_order", "amos", or the temperature, as in `resolve_temperature`.

        Raises:
            InputError: an argument is of the wrong type or out of range, or an unknown name.
        """
        if not isinstance(n_sets, int) or n_sets < 1:
            raise InputError(f"anchor_sets: expected an integer of at least 1, got {n_sets!r}")
        if not isinstance(seed, int):
            raise InputError(f"seed: expected an integer, got {seed!r}")
        points_SMD = torch.stack([sample_anchors(n_anchors, dim, seed + s, kind) for s in range(n_sets)])
        return cls._of(points_SMD, calibration, recipe=kind)

    @classmethod
    def take(
        cls, given: GivenAnchors, *, dim: int, n_anchors: int | None = None, calibration: str | float = "exact"
    ) -> Anchors:
        """Take a user's own anchors for one width, with their temperature.

        Args:
            given: the anchors.
            dim: width d of the hidden states.
            n_anchors: number of first anchors of each set to take; None takes all.
            calibration: as in `sample`.

        Raises:
            InputError: there are none for that width.
        """
        return cls._of(torch.from_numpy(given.of_width(dim)[:, :n_anchors]), calibration, recipe="given")

    @classmethod
    def _of(cls, points_SMD: Tensor, calibration: str | float, *, recipe: str) -> Anchors:
        _, n_anchors, dim = points_SMD.shape
        return cls(
            points_SMD=points_SMD,
            temperature=resolve_temperature(calibration, n_anchors, dim),
            sha256=bytes_sha256(points_SMD.numpy().astype("<f4").tobytes()),
            recipe=recipe,
        )

    def describe(self) -> dict[str, Any]:
        """Describe the anchors by their sizes, recipe, temperature and digest, as results record them (JSON values).

        >>> described = Anchors.sample(n_anchors=100, dim=576, n_sets=2).describe()
        >>> described["sets"], described["recipe"]
        (2, 'iid')
        """
        n_sets, n_anchors, dim = self.points_SMD.shape
        return {
            "dim": dim,
            "n_anchors": n_anchors,
            "sets": n_sets,
            "recipe": self.recipe,
            "temperature": self.temperature,
            "sha256": self.sha256,
        }
