"""A model as a point: the values of the row `mean` of its result, and what the model is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from softh_probe.analysis.comparable import RECIPE
from softh_probe.analysis.sites import ordered_sites
from softh_probe.errors import InputError, abbreviated
from softh_probe.layer_means import MEAN
from softh_probe.layer_places import RESIDUAL
from softh_probe.result import ProbeResult
from softh_probe.tidy_table import mean_table

#: Settings that values of several models have to share.
_CONDITIONS = (*RECIPE, "positions")


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
        conditions: what values of other models have to share to be comparable, by name; see `conditions_of`.
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
    conditions: Mapping[str, str] = field(default_factory=dict)


def point_of(result: ProbeResult, *, name: str, **identity: Any) -> ModelPoint:
    """Make the point of a result, as in `point_of(ProbeResult.load("pythia"), name="pythia", family="gpt_neox")`.

    Args:
        result: its values are those of the row `mean`, or where the residual stream was not measured, of a site's.
        name: as it is shown.
        identity: fields of `ModelPoint` that are known better than the result knows them.

    Raises:
        InputError: the result has no row `mean`.
    """
    table = mean_table(result, "efficiency")
    if table.empty:
        raise InputError(
            f"{name}: the result has no row {MEAN!r}, which is the mean over blocks, and measured none of them; name "
            "the rows to average by mean_over"
        )
    model, evaluation = result.info.get("model") or {}, result.info.get("evaluation") or {}
    known = {
        "model": str(model.get("model") or model.get("class") or name),
        "revision": model.get("revision"),
        "series": str(evaluation.get("run") or ""),
        "step": evaluation.get("step"),
        "family": model.get("model_type"),
        "n_parameters": model.get("n_parameters"),
        "conditions": conditions_of(result.info.get("settings") or {}, result.info.get("corpus") or {}),
        **identity,
    }
    return ModelPoint(name=name, values=point_values(table[table.name == lead_mean({*table.name})]), **known)


def conditions_of(settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> dict[str, str]:
    """Name what has to be the same where values of several models are compared: texts, anchors, positions.

    >>> conditions_of({"n_anchors": 100, "seed": 0}, {"texts_sha256": "ab" * 32})
    {'n_anchors': '100', 'seed': '0', 'texts': 'SHA-256 abababab'}

    Args:
        settings: of the probe.
        corpus: of the result; those of earlier versions lack a digest of the texts.
    """
    known = {name: str(settings[name]) for name in _CONDITIONS if settings.get(name) is not None}
    texts = corpus.get("texts_sha256")
    return {**known, "texts": f"SHA-256 {str(texts)[:8]}"} if texts else known


def differences(points: Sequence[ModelPoint]) -> list[str]:
    """Say in which conditions points differ, with the values of each; a condition that is not known is not compared.

    >>> points = [ModelPoint(name="a", model="a", values={}, conditions={"n_anchors": n}) for n in ("50", "100")]
    >>> differences(points)
    ['n_anchors (50, 100)']
    """
    names = dict.fromkeys(name for point in points for name in point.conditions)
    values = {name: dict.fromkeys(p.conditions[name] for p in points if name in p.conditions) for name in names}
    return [f"{name} ({abbreviated([*of_name], 4)})" for name, of_name in values.items() if len(of_name) > 1]


def point_values(lines: pd.DataFrame) -> dict[tuple[str, str], PointValue]:
    """Take the values of one row of means from its lines in a tidy table."""
    nothing = pd.Series(math.nan, index=lines.index)
    columns = (lines.label_set, lines.metric, lines.value, lines.sd, lines.get("se", nothing))
    return {
        (str(label_set), str(metric)): PointValue(value=float(value), sd=float(sd), se=float(se))
        for label_set, metric, value, sd, se in zip(*columns, strict=True)
    }


def lead_mean(names: Collection[str]) -> str:
    """Choose the row of means that stands for a model: that of the residual stream, else that of a site.

    >>> lead_mean({"mean.mlp", "mean"})
    'mean'
    """
    site_of = {RESIDUAL if name == MEAN else name.removeprefix(f"{MEAN}."): name for name in names}
    return site_of[ordered_sites(site_of)[0]]
