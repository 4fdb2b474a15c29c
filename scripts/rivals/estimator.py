"""The contract of all estimators: what they need, what a user has to choose, and I(X;Z) of states and labels.

Shape suffixes: N positions, D width of a hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from softh_probe.errors import InputError

#: Positions that are read at a time where an estimator does not need all of them at once.
CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """An estimator of I(X;Z) between discrete labels X and hidden states Z. Its fields are its parameters.

    Attributes:
        seed: of everything that is drawn; equal seeds give equal estimates.
        needs_all: whether the method needs all its states in memory at once.
        most_positions: size of the uniform sample that it takes of more positions; None takes all.
    """

    needs_all: ClassVar[bool] = False
    most_positions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {**self.chosen, "most_positions": self.most_positions}.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and not value > 0:
                raise InputError(f"{name}: expected a positive number, got {value!r}")

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often the method reads the states."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that a user has to choose, beside the sample and the seed."""
        names = [one.name for one in fields(self) if one.name not in ("most_positions", "seed")]
        return {name: getattr(self, name) for name in names}

    def estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        """Estimate I(X;Z) in nats.

        Args:
            states_ND: hidden states, float32, finite.
            labels_N: integers of any value, one for each position.

        Raises:
            InputError: states or labels are not what is expected, or too few for the method.
        """
        _require(states_ND, labels_N)
        if self.most_positions is not None and len(states_ND) > self.most_positions:
            chance = np.random.default_rng(self.seed)
            taken = np.sort(chance.choice(len(states_ND), self.most_positions, replace=False))
            states_ND, labels_N = states_ND[taken], labels_N[taken]
        return self._estimate(states_ND, np.unique(labels_N, return_inverse=True)[1].astype(np.int64))

    @abstractmethod
    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        """Estimate I(X;Z) in nats; labels are 0 … L − 1, each of which occurs."""


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Cut n positions into slices of at most `size`.

    >>> [(part.start, part.stop) for part in chunks(5, 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _require(states_ND: np.ndarray, labels_N: np.ndarray) -> None:
    if states_ND.ndim != 2 or states_ND.dtype != np.float32 or states_ND.shape[1] < 2 or len(states_ND) < 2:
        got = f"{states_ND.dtype} {list(states_ND.shape)}"
        raise InputError(f"states_ND: expected float32 [N, D] of two positions and dimensions or more, got {got}")
    if labels_N.shape != states_ND.shape[:1] or not np.issubdtype(labels_N.dtype, np.integer):
        got = f"{labels_N.dtype} {list(labels_N.shape)}"
        raise InputError(f"labels_N: expected integers [{len(states_ND)}], one for each position, got {got}")
    if not all(np.isfinite(states_ND[part]).all() for part in chunks(len(states_ND))):
        raise InputError("states_ND: expected finite numbers, got NaN or infinity; leave these positions out")
