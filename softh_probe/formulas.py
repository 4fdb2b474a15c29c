"""Formulas of the metrics: pure functions of tensors, in nats where they have a unit.

Z is the anchor that a hidden state is assigned to, X the label of its position, and q the soft assignment of one
position (Conklin 2025, arXiv 2505.23960).

Shape suffixes: R rows (of the table: layers), S anchor sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Corrected optimality is missing where the corrected information with the input is below this share of log m: the
#: ratio would be one of errors.
LEAST_CORRECTED = 0.01
#: Ratios are missing where what they divide by is no more than this, in nats: float32 assignments are no more exact.
LEAST_ROUNDED = 1e-6


def as_measured(value: Tensor) -> Tensor:
    """Return a quantity that results hold as such.

    >>> as_measured(torch.tensor(0.5)).item()
    0.5
    """
    return value


def mutual_information(labelled_entropy: Tensor, conditional_entropy: Tensor) -> Tensor:
    """Compute I(X;Z) = H(Z) − H(Z|X), in the unit of its arguments.

    >>> mutual_information(torch.tensor(1.5), torch.tensor(1.0)).item()
    0.5

    Args:
        labelled_entropy: H(Z) of the positions that have a label, [R, S].
        conditional_entropy: H(Z|X) = Σ_x P(x) H(p̂_x), [R, S].
    """
    return labelled_entropy - conditional_entropy


def mutual_information_max(labelled_entropy: Tensor, labelled_position_entropy: Tensor) -> Tensor:
    """Compute H(Z) − E H(q), the information of labels that are all different; no labels have more.

    >>> mutual_information_max(torch.tensor(1.5), torch.tensor(0.25)).item()
    1.25

    Args:
        labelled_entropy: H(Z) of the positions that have a label, [R, S].
        labelled_position_entropy: E H(q), mean entropy of these positions' own assignments, [R, S].
    """
    return labelled_entropy - labelled_position_entropy


def coverage(covered_positions: Tensor, labelled_positions: Tensor) -> Tensor:
    """Compute the share of labelled positions whose label occurs at least twice.

    >>> coverage(torch.tensor(3.0), torch.tensor(4.0)).item()
    0.75

    Args:
        covered_positions: number of positions whose label occurs at least twice, [R].
        labelled_positions: number of positions that have a label, [R].
    """
    return covered_positions / labelled_positions


def regularity(information: Tensor, labelled_entropy: Tensor) -> Tensor:
    """Compute I(X;Z) / H(Z), the share of the entropy that the label accounts for.

    >>> regularity(torch.tensor(0.5), torch.tensor(2.0)).item()
    0.25

    Args:
        information: I(X;Z), [R, S].
        labelled_entropy: H(Z) of the positions that have a label, [R, S].
    """
    return information / labelled_entropy


def optimality(output_information: Tensor, input_information: Tensor) -> Tensor:
    """Compute I(output;Z) / I(input;Z), the n-grams that follow a position over those that end there.

    NaN where the latter is no more than rounding, as where all positions have the same token.

    >>> optimality(torch.tensor(0.5), torch.tensor([2.0, 1e-9])).tolist()
    [0.25, nan]

    Args:
        output_information: I(X;Z) of the output n-grams, [R, S].
        input_information: I(X;Z) of the input n-grams, [R, S].
    """
    return torch.where(input_information.abs() > LEAST_ROUNDED, output_information / input_information, math.nan)


def optimality_corrected(output_corrected: Tensor, input_corrected: Tensor, log_m: Tensor) -> Tensor:
    """Compute optimality from corrected informations; NaN where the input's is below `LEAST_CORRECTED`·log m.

    >>> log_m = torch.tensor(4.0)
    >>> optimality_corrected(torch.tensor([0.5, 0.5]), torch.tensor([2.0, 0.03]), log_m).tolist()
    [0.25, nan]

    Args:
        output_corrected: corrected I(X;Z) of the output n-grams in nats, [R, S].
        input_corrected: corrected I(X;Z) of the input n-grams in nats, [R, S].
        log_m: entropy of the uniform distribution over the m anchors in nats, [].
    """
    ratio = optimality(output_corrected, input_corrected)
    return torch.where(input_corrected > LEAST_CORRECTED * log_m, ratio, math.nan)


def information_share(information: Tensor, lower_information: Tensor, ceiling: Tensor) -> Tensor:
    """Compute (I_n − I_{n−1}) / I_max, what one more token of context adds; NaN without a ceiling.

    >>> information_share(torch.tensor(1.5), torch.tensor(1.0), torch.tensor([2.0, 0.0])).tolist()
    [0.25, nan]

    Args:
        information: I(X;Z) of n-grams, [R, S].
        lower_information: that of (n−1)-grams at the same positions, [R, S]; 0 for unigrams.
        ceiling: I_max, the information of labels that are all different, [R, S].
    """
    return torch.where(ceiling.abs() > LEAST_ROUNDED, (information - lower_information) / ceiling, math.nan)


def residual(ceiling: Tensor, information: Tensor) -> Tensor:
    """Compute (I_max − I_N) / I_max, what the longest n-grams leave of the ceiling; NaN without a ceiling.

    >>> residual(torch.tensor([2.0, 0.0]), torch.tensor(1.5)).tolist()
    [0.25, nan]

    Args:
        ceiling: I_max, the information of labels that are all different, [R, S].
        information: I(X;Z) of the longest n-grams, [R, S].
    """
    return information_share(ceiling, information, ceiling)
