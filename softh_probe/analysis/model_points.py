"""A model as a point: the values of the row `mean` of its result, and what the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PointValue:
    """A value of a whole model, in units of log m or a ratio.

    Attributes:
        value: mean over anchor sets.
        sd: standard deviation over anchor sets; NaN with a single set.
        se: standard error over documents; NaN where intervals were not measured.
    """

    value: float
    sd: float = math.nan
    se: float = math.nan


@dataclass(frozen=True, kw_only=True)
class ModelPoint:
    """One model, or one checkpoint of it, with its whole-model values.

    Attributes:
        name: as it is shown; unique among points.
        model: hub id or path, as it was measured.
        revision: of a hub model, or None.
        series: name of its training run; empty for a model that stands alone.
        step: of training, or None.
        tokens: seen in training, or None.
        family: the model type of its config, or None.
        n_parameters: parameters of the part that was measured, or None.
        folder: of its result.
        values: by label set (empty for entropy, the order for optimality) and metric, those of the row `mean`.
    """

    name: str
    model: str
    revision: str | None = None
    series: str = ""
    step: int | None = None
    tokens: int | None = None
    family: str | None = None
    n_parameters: int | None = None
    folder: str = ""
    values: Mapping[tuple[str, str], PointValue]
