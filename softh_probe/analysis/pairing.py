"""The documents of two results beside each other, and the standard error of a difference between both.

To first order, the error of a value is the sum of its documents' influences over N positions. That of a difference is
the sum of ψ_B/N_B − ψ_A/N_A: what documents do to both values alike cancels. Documents of one row of the data are one
unit, whose influences are summed first. Documents that one result has alone are independent of all of the other's.

Shape suffixes: R rows, D documents of a result, U units of either.
"""

from __future__ import annotations

import numpy as np

from softh_probe.influence import DocumentInfluence

#: Shares of the units that differ by less than this are taken to be of one sample.
_ALIKE = 0.05


class Pairing:
    """Documents of two results, matched by their number and the hash of their tokens.

    >>> documents = {"documents": np.arange(2), "keys": np.arange(2, dtype=np.uint64), "units": np.arange(2)}
    >>> counts = {"positions": np.ones(2), "n_documents": 2, "n_units": 2, "n_positions": 2}
    >>> of = DocumentInfluence(rows=["layer.1"], values={}, **documents, **counts)
    >>> a_RD, b_RD = np.array([[3.0, -3.0]]), np.array([[3.5, -3.5]])
    >>> Pairing(of, of).standard_error(a_RD, b_RD).round(3)  # not the root of 2.1² + 2.5²
    array([0.354])

    Where a share of the units was measured, the sum of squares is scaled to all. Two results of the same data of which
    unequal shares were measured are compared on the units that both measured. Of unlike data, unequal shares make the
    standard error rather too large, since some units that count as one result's own are in the other's data, too.

    Args:
        a, b: influences of both results.
        same_data: whether both were measured on the same texts.
        same_tokens: False where the same texts were cut into different tokens; then documents match by number alone.

    Attributes:
        n_shared: number of documents of both.
        is_of_shared: whether standard errors are of the shared units alone.
        n_units: units that they come from, in the result that has fewer.
    """

    def __init__(
        self, a: DocumentInfluence, b: DocumentInfluence, *, same_data: bool = False, same_tokens: bool = True
    ) -> None:
        _, in_a, in_b = np.intersect1d(
            _identities(a, with_keys=same_tokens), _identities(b, with_keys=same_tokens), return_indices=True
        )
        self.n_shared = len(in_a)
        of_a, self._unit_a_D = np.unique(a.units, return_inverse=True)
        of_b, unit_b_D = np.unique(b.units, return_inverse=True)
        number_of_b = len(of_a) + np.arange(len(of_b))
        number_of_b[unit_b_D[in_b]] = self._unit_a_D[in_a]
        self._unit_b_D = number_of_b[unit_b_D]
        self._n_positions = (a.n_positions, b.n_positions)
        is_of_a, is_of_b = np.zeros((2, len(of_a) + len(of_b)), dtype=bool)
        is_of_a[self._unit_a_D] = is_of_b[self._unit_b_D] = True
        n_a, n_b = max(1, len(of_a)), max(1, len(of_b))
        scale_a, scale_b = a.n_units / n_a, b.n_units / n_b
        is_shared = is_of_a & is_of_b
        n_both = int(np.count_nonzero(is_shared))
        unequal = abs(scale_a - scale_b) > _ALIKE * min(scale_a, scale_b)
        self.is_of_shared = bool(same_data and n_both and unequal)
        self.n_units = n_both if self.is_of_shared else min(len(of_a), len(of_b))
        if self.is_of_shared:
            self._scale_U = is_shared * (max(a.n_units, b.n_units) / n_both)
        else:
            self._scale_U = np.where(is_shared, max(scale_a, scale_b), np.where(is_of_a, scale_a, scale_b))

    def standard_error(self, psi_a_RD: np.ndarray, psi_b_RD: np.ndarray) -> np.ndarray:
        """Compute the standard error [R] of values of b minus values of a, from the influences on both."""
        difference_UR = np.zeros((len(self._scale_U), len(psi_a_RD)))
        np.subtract.at(difference_UR, self._unit_a_D, psi_a_RD.T / self._n_positions[0])
        np.add.at(difference_UR, self._unit_b_D, psi_b_RD.T / self._n_positions[1])
        error_R: np.ndarray = np.sqrt(self._scale_U @ np.square(difference_UR))
        return error_R


def _identities(of: DocumentInfluence, *, with_keys: bool) -> np.ndarray:
    found = np.zeros(len(of.documents), dtype=[("document", np.int64), ("key", np.uint64)])
    found["document"] = of.documents
    if with_keys:
        found["key"] = of.keys
    return found
