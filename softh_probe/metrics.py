"""Every metric of the tidy table, by its formula.

`METRICS` declares the metrics in the order of the table. To add one, write its formula as a pure function on tensors
(`softh_probe.formulas`) and add one entry: the table, its units and the report's values follow.

Z is the anchor that a hidden state is assigned to, X the label of its position, and q the soft assignment of one
position (Conklin 2025, arXiv 2505.23960). Entropies and informations are computed in nats.

Shape suffixes: R rows (of the table: layers), X label sets, S anchor sets, M anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softh_probe.errors import InputError
from softh_probe.estimators.soft_entropy import entropy
from softh_probe.formulas import (
    as_measured,
    coverage,
    information_share,
    mutual_information,
    mutual_information_max,
    optimality,
    optimality_corrected,
    regularity,
    residual,
)
from softh_probe.labels import DIRECTIONS, ORDERS

#: End of the names of tensors that are the error of another one by the sampling of labels.
SAMPLING_SD = "_sampling_sd"
UNITS = ("efficiency", "nats", "bits")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its name, what it describes, its unit and its formula.

    Attributes:
        name: as the table carries it.
        scope: "positions", one value for all counted positions; "label_set", one for each label set; "order", one for
            each n-gram order of which the input and the output were both measured; "level", one for each n-gram label
            set of whose direction all lower orders were measured too; "direction", one for each direction with levels.
        has_unit: True for entropies and informations, False for ratios.
        compute: the formula, a function of the tensors `inputs`; gives [R, S], or [R] if it is the same for all anchor
            sets.
        inputs: names of its arguments. With scope "positions", a tensor of the result; with "label_set", a tensor
            [R, X, …] of the result, at the label set, or a metric declared earlier; with "order", "input_" or
            "output_" and a metric of the label set of that direction, or "log_m", the logarithm of the number of
            anchors; with "level", a metric of the label set, "lower_" and one of the order below it (0 below unigrams),
            or "highest_" and one of the direction's highest level; with "direction", the latter.
        is_optional: whether it is left out where an input was not measured.
    """

    name: str
    scope: Literal["positions", "label_set", "order", "level", "direction"]
    has_unit: bool
    compute: Callable[..., Tensor]
    inputs: tuple[str, ...]
    is_optional: bool = False


METRICS = (
    Metric(
        name="entropy",  # H(Z) = −Σ_j p̂_j log p̂_j
        scope="positions",
        has_unit=True,
        compute=entropy,
        inputs=("mass",),
    ),
    Metric(
        name="entropy_document_sd",  # standard deviation of H(Z) over bootstrap replicates of the documents
        scope="positions",
        has_unit=True,
        compute=as_measured,
        inputs=("entropy_document_sd",),
    ),
    Metric(
        name="anisotropy",  # ‖mean of h/‖h‖‖, the same for all anchor sets
        scope="positions",
        has_unit=False,
        compute=as_measured,
        inputs=("anisotropy",),
        is_optional=True,
    ),
    Metric(
        name="label_entropy",  # H(X) = −Σ_x P(x) log P(x), of the positions that have a label
        scope="label_set",
        has_unit=True,
        compute=as_measured,
        inputs=("entropy_of_labels",),
        is_optional=True,
    ),
    Metric(
        name="conditional_entropy",  # H(Z|X)
        scope="label_set",
        has_unit=True,
        compute=as_measured,
        inputs=("conditional_entropy",),
    ),
    Metric(
        name="mutual_information",
        scope="label_set",
        has_unit=True,
        compute=mutual_information,
        inputs=("labelled_entropy", "conditional_entropy"),
    ),
    Metric(
        name="mutual_information_max",
        scope="label_set",
        has_unit=True,
        compute=mutual_information_max,
        inputs=("labelled_entropy", "labelled_position_entropy"),
    ),
    Metric(
        name="mutual_information_null",  # E I(X;Z) of shuffled labels: estimators/bias_correction.py
        scope="label_set",
        has_unit=True,
        compute=as_measured,
        inputs=("null_information",),
    ),
    Metric(
        name="mutual_information_null_sd",  # sd of I(X;Z), averaged over anchor sets, of shuffled labels of documents
        scope="label_set",
        has_unit=True,
        compute=as_measured,
        inputs=("null_information_sd",),
        is_optional=True,
    ),
    Metric(
        name="mutual_information_corrected",  # I(X;Z) without the bias of small counts: estimators/bias_correction.py
        scope="label_set",
        has_unit=True,
        compute=as_measured,
        inputs=("corrected_information",),
    ),
    Metric(
        name="coverage",
        scope="label_set",
        has_unit=False,
        compute=coverage,
        inputs=("covered_positions", "labelled_positions"),
    ),
    Metric(
        name="regularity",
        scope="label_set",
        has_unit=False,
        compute=regularity,
        inputs=("mutual_information", "labelled_entropy"),
    ),
    Metric(
        name="optimality",
        scope="order",
        has_unit=False,
        compute=optimality,
        inputs=("output_mutual_information", "input_mutual_information"),
    ),
    Metric(
        name="optimality_corrected",
        scope="order",
        has_unit=False,
        compute=optimality_corrected,
        inputs=("output_mutual_information_corrected", "input_mutual_information_corrected", "log_m"),
    ),
    Metric(
        name="information_share",
        scope="level",
        has_unit=False,
        compute=information_share,
        inputs=("mutual_information", "lower_mutual_information", "highest_mutual_information_max"),
    ),
    Metric(
        name="information_share_corrected",
        scope="level",
        has_unit=False,
        compute=information_share,
        inputs=(
            "mutual_information_corrected",
            "lower_mutual_information_corrected",
            "highest_mutual_information_max",
        ),
    ),
    Metric(
        name="residual",
        scope="direction",
        has_unit=False,
        compute=residual,
        inputs=("highest_mutual_information_max", "highest_mutual_information"),
    ),
    Metric(
        name="residual_corrected",
        scope="direction",
        has_unit=False,
        compute=residual,
        inputs=("highest_mutual_information_max", "highest_mutual_information_corrected"),
    ),
)

#: Names of the metrics that carry a unit; the others are ratios.
ENTROPIES = tuple(metric.name for metric in METRICS if metric.has_unit)


class Computed(NamedTuple):
    """A metric of one label set (empty for all positions; the order for optimality, the direction for what is left).

    Attributes:
        values_RS: in nats if the metric has a unit.
        sampling_sd_R: standard error of the mean over anchor sets by the sampling of labels; 0 where it is exact.
    """

    label_set: str
    metric: str
    values_RS: Tensor
    sampling_sd_R: Tensor


def compute_metrics(tensors: Mapping[str, Tensor], label_sets: Sequence[str]) -> Iterator[Computed]:
    """Compute every metric of a result, in the order of the table.

    >>> mass_RSM = torch.ones(2, 1, 4, dtype=torch.float64)
    >>> tensors = {"mass": mass_RSM, "entropy_document_sd": torch.zeros(2, 1, dtype=torch.float64)}
    >>> [(computed.metric, computed.values_RS.shape) for computed in compute_metrics(tensors, [])]
    [('entropy', torch.Size([2, 1])), ('entropy_document_sd', torch.Size([2, 1]))]

    Args:
        tensors: those of a `ProbeResult`.
        label_sets: names of the label sets, in the order of the tensors' dimension X.

    Yields:
        The values of each metric and label set. Errors by the sampling of labels are those of the metric's inputs,
        taken to be independent and carried on to first order.
    """
    n_rows, n_sets, n_anchors = tensors["mass"].shape
    shape = (n_rows, n_sets)
    for name, measured in _compute("positions", {name: _Measured(value) for name, value in tensors.items()}, shape):
        yield Computed("", name, *measured)
    needed = {name for metric in METRICS if metric.scope == "label_set" for name in metric.inputs} & tensors.keys()
    optional = {name for metric in METRICS if metric.is_optional for name in metric.inputs}
    of_sets: dict[str, dict[str, _Measured]] = {}
    for x, label_set in enumerate(label_sets):
        at_set = {}
        for name in needed:
            if name in optional and tensors[name][:, x].isnan().all():
                continue
            errors = (tensors[name + SAMPLING_SD][:, x],) if name + SAMPLING_SD in tensors else ()
            at_set[name] = _Measured(tensors[name][:, x], *errors)
        of_sets[label_set] = dict(_compute("label_set", at_set, shape))
        for name, measured in of_sets[label_set].items():
            yield Computed(label_set, name, *measured)
    log_m = _Measured(torch.tensor(math.log(n_anchors), dtype=torch.float64))
    for order in ORDERS:
        known = {
            f"{direction}_{name}": value
            for direction in DIRECTIONS
            for name, value in of_sets.get(f"{direction}_{order}", {}).items()
        }
        if all(f"{direction}_{order}" in of_sets for direction in DIRECTIONS):
            for name, measured in _compute("order", {**known, "log_m": log_m}, shape):
                yield Computed(order, name, *measured)
    yield from _levels(of_sets, shape)


def levels_of(direction: str, label_sets: Collection[str]) -> list[str]:
    """List the n-gram label sets of a direction from unigrams on, up to the first order that is not there.

    >>> levels_of("input", ["input_unigram", "output_unigram", "input_bigram", "input_quadgram"])
    ['input_unigram', 'input_bigram']
    """
    return [*takewhile(label_sets.__contains__, (f"{direction}_{order}" for order in ORDERS))]


def _levels(of_sets: Mapping[str, Mapping[str, _Measured]], shape: tuple[int, int]) -> Iterator[Computed]:
    """Compute the shares of the ceiling that each order of a direction adds, and what the highest leaves.

    Label sets of n-grams have one population, and so one ceiling; that of the highest order stands for all.
    """
    nothing = _Measured(torch.zeros(shape, dtype=torch.float64))
    for direction in DIRECTIONS:
        if not (levels := levels_of(direction, of_sets)):
            continue
        highest = _prefixed("highest_", of_sets[levels[-1]])
        lower: Mapping[str, _Measured] = dict.fromkeys(of_sets[levels[0]], nothing)
        for level in levels:
            known = {**of_sets[level], **_prefixed("lower_", lower), **highest}
            for name, measured in _compute("level", known, shape):
                yield Computed(level, name, *measured)
            lower = of_sets[level]
        for name, measured in _compute("direction", highest, shape):
            yield Computed(direction, name, *measured)


def _prefixed(prefix: str, metrics: Mapping[str, _Measured]) -> dict[str, _Measured]:
    return {prefix + name: measured for name, measured in metrics.items()}


class _Measured(NamedTuple):
    """A quantity [R, S] or [R], and its error by the sampling of labels [R]; none is 0."""

    value: Tensor
    error_R: Tensor = torch.zeros(1, dtype=torch.float64)


def _compute(scope: str, inputs: Mapping[str, _Measured], shape: tuple[int, int]) -> Iterator[tuple[str, _Measured]]:
    """Compute the metrics of one scope, each from `inputs` and the metrics before it, as values of `shape` [R, S]."""
    known = dict(inputs)
    for metric in METRICS:
        if metric.scope == scope and not (metric.is_optional and not known.keys() >= {*metric.inputs}):
            arguments = [known[name] for name in metric.inputs]
            value = metric.compute(*(argument.value for argument in arguments))
            value_RS = value if value.ndim == 2 else value.unsqueeze(1).expand(shape)
            known[metric.name] = _Measured(value_RS, _error(metric, arguments, shape[0]))
            yield metric.name, known[metric.name]


def _error(metric: Metric, arguments: Sequence[_Measured], n_rows: int) -> Tensor:
    """Carry the errors of a metric's arguments on to its mean over anchor sets: [R]."""
    variance_R = torch.zeros(n_rows, dtype=torch.float64)
    uncertain = {i: argument.error_R for i, argument in enumerate(arguments) if argument.error_R.any()}
    if not uncertain:
        return variance_R
    with torch.enable_grad():
        values = [argument.value.detach().clone().requires_grad_() for argument in arguments]
        value = metric.compute(*values)
        mean = value.mean(dim=1) if value.ndim == 2 else value
        slopes = torch.autograd.grad(mean.sum(), [values[i] for i in uncertain])
    for error_R, slope in zip(uncertain.values(), slopes, strict=True):
        slope_R = slope.sum(dim=1) if slope.ndim == 2 else slope
        variance_R = variance_R + (slope_R * error_R).square()
    return variance_R.sqrt()


def unit_scale(unit: str, n_anchors: int) -> float:
    """Compute the factor from nats to a unit.

    >>> nats = math.log(8)
    >>> round(nats * unit_scale("bits", 100), 6), round(nats * unit_scale("efficiency", 64), 6)
    (3.0, 0.5)

    Args:
        unit: "efficiency" (the share of log m, the largest entropy over m anchors), "nats" or "bits".
        n_anchors: the number of anchors m.

    Raises:
        InputError: the unit is none of these.
    """
    scales = {"efficiency": 1.0 / math.log(n_anchors), "nats": 1.0, "bits": 1.0 / math.log(2.0)}
    if unit not in scales:
        raise InputError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    return scales[unit]
