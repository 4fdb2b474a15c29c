"""Differences of results that stand side by side on a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from softh_probe.analysis.alignment import equally_deep, interpolated
from softh_probe.analysis.comparable import follow_same_labels, same_anchors, tokens_differ
from softh_probe.analysis.paired import paired_differences
from softh_probe.metrics import ENTROPIES, unit_scale
from softh_probe.report.page_data import numbers, sampling_errors_by_key, values_by_key
from softh_probe.result import ProbeResult


def differences(first: ProbeResult, other: ProbeResult) -> dict[str, Any]:
    """Compute `other` minus `first`, in each layer of `first` and each metric that both have.

    Layers are matched by their index in the model. Where models have unequal numbers of blocks, they are matched by
    relative depth, and `other` is interpolated linearly; see `softh_probe.analysis.alignment`. The anchor
    spread is the root of the summed variances over anchor sets: the sd that independent draws of anchors would give.
    Where both results have the same anchors, the sd of the difference over anchor sets is given too, and mostly
    smaller. Both are missing where a result has a single set. Where the results followed different samples of labels,
    both have the standard errors by that added (as root of the sum of squares).

    Returns:
        JSON values: paired (same anchors), interpolated, tokens_differ, and series: for each "metric|label set" d
        (difference), s (anchor spread) and, if paired, p (sd of the difference), in units of log m where the metric
        has a unit; and where labels were sampled, same_labels. Where both have intervals, a series has se, the standard
        error of the difference over documents, paired, and h, its p-value after Holm's correction for the layers.
    """
    paired, same_labels = same_anchors(first, other), follow_same_labels(first, other)
    ours, theirs = values_by_key(first), values_by_key(other)
    errors = {} if same_labels else _sampling_errors(first, other)
    series = {}
    for key, a_RS in ours.items():
        if key not in theirs:
            continue
        a, b = a_RS.numpy(), interpolated(first.places, other.places, theirs[key].numpy())
        error_R = errors.get(key, np.zeros(len(a)))
        series[key] = {
            "d": numbers(b.mean(axis=1) - a.mean(axis=1)),
            "s": numbers(np.hypot(np.hypot(_sd(a), _sd(b)), error_R)),
        }
        if paired:
            series[key]["p"] = numbers(np.hypot(_sd(b - a), error_R))
    for found in paired_differences(first, other):
        if not np.isnan(found.p_holm_R).all():
            scale = unit_scale("efficiency", first.n_anchors) if found.metric in ENTROPIES else 1.0
            of_documents = {"se": numbers(found.se_R * scale), "h": numbers(found.p_holm_R)}
            series[f"{found.metric}|{found.label_set}"] |= of_documents
    return {
        "paired": paired,
        "interpolated": not equally_deep([first.places, other.places]),
        "tokens_differ": tokens_differ(first, other),
        **({"same_labels": same_labels} if first.sampled_sets or other.sampled_sets else {}),
        "series": series,
    }


def _sampling_errors(first: ProbeResult, other: ProbeResult) -> dict[str, np.ndarray]:
    """Combine the standard errors of both results by the sampling of labels, in the layers of `first` [R], by key."""
    found = {key: error_R.numpy() for key, error_R in sampling_errors_by_key(first).items()}
    for key, error_R in sampling_errors_by_key(other).items():
        of_other_R1 = interpolated(first.places, other.places, error_R.unsqueeze(1).numpy())
        found[key] = np.hypot(found.get(key, 0.0), of_other_R1[:, 0])
    return found


def _sd(values_RS: np.ndarray) -> np.ndarray:
    return values_RS.std(axis=1, ddof=1) if values_RS.shape[1] > 1 else np.full(len(values_RS), np.nan)
