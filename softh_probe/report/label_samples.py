"""Samples of labels in words: how many labels of a set were followed, and the standard error of that."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from softh_probe.accumulators.label_sampling import describe_sample, samples_of
from softh_probe.result import ProbeResult

#: Samples by label set, as `info["label_sampling"]` of a result has them.
Samples = Mapping[str, Mapping[str, Any]]
_TYPES: dict[str, tuple[type, ...]] = {
    "labels": (int,),
    "followed": (int,),
    "threshold": (int, float),
    "estimated": (bool,),
}
#: The metrics of which the standard error is told.
TOLD = ("mutual_information", "mutual_information_corrected")


def wrong_entries(sampling: Any) -> Iterator[tuple[str, tuple[type, ...], Any]]:
    """Yield the name, the expected types and the value of each entry of `label_sampling` that has another type."""
    if not isinstance(sampling, dict):
        yield "label_sampling", (dict,), sampling
        return
    for label_set, of_set in sampling.items():
        for name, types in _TYPES.items():
            value = of_set.get(name) if isinstance(of_set, dict) else None
            if not isinstance(value, types):
                yield f"label_sampling: {label_set}: {name}", types, value


def sample_sentences(result: ProbeResult) -> list[str]:
    """Say of each sampled label set how many labels were followed, which, and the standard error of its information."""
    log_m = math.log(result.n_anchors)
    sds = {key: sd_R / log_m for key, sd_R in result.sampling_sds().items()} if result.sampled_sets else {}
    return sentences(samples_of(result.info), sds, result.unknown_by_sampling())


def sentences(
    samples: Samples, errors: Mapping[tuple[str, str], ArrayLike], unknown: Mapping[str, str] | None = None
) -> list[str]:
    """Say of each sample what `sentence` says.

    Args:
        samples: by label set.
        errors: standard errors by the sampling of labels, by label set and metric, in units of log m.
        unknown: what is not known of label sets since too few of their labels were followed.
    """
    return [
        sentence(name, of_set, [_most(errors.get((name, metric), [])) for metric in TOLD], (unknown or {}).get(name))
        for name, of_set in samples.items()
    ]


def sentence(name: str, of_set: Mapping[str, Any], errors: Sequence[float], unknown: str | None = None) -> str:
    """Say how many labels of a set were followed, which, and how large the standard error of its information is.

    >>> planned = {"labels": 193456, "followed": 8123, "threshold": 309.2, "estimated": False}
    >>> print(sentence("input_bigram", planned, [0.00065, 0.0012]))  # doctest: +NORMALIZE_WHITESPACE
    input_bigram: 8,123 of 193,456 labels were followed (all that occur once, or 310 times or more); the standard error
    of that is at most 0.0007 log m, corrected 0.0012.

    Args:
        name: of the set.
        of_set: its sample, as `RowLabels.sampling` gives it.
        errors: the most of the standard errors of `TOLD`, in units of log m; NaN where they are not known.
        unknown: what is not known since too few labels were followed.
    """
    threshold = math.ceil(of_set["threshold"])
    if of_set["estimated"]:
        which = f"at the end, one in {threshold:,} of those that were new"
    else:
        which = f"all that occur once, or {threshold:,} times or more"
    raw, corrected = errors
    said = [f"{name}: {describe_sample(of_set)} were followed" + (f" ({which})" if of_set["followed"] else "")]
    if not math.isnan(raw):
        also = "" if math.isnan(corrected) else f", corrected {_rounded_up(corrected)}"
        said.append(f"the standard error of that is at most {_rounded_up(raw)} log m{also}")
    if unknown:
        said.append(f"{unknown} is not known, since too few were followed: raise --label-rows")
    return f"{'; '.join(said)}."


def sample_line(result: ProbeResult) -> str:
    """Say in one line in which sets labels were sampled, and how large the error of that is; empty where in none."""
    names = result.sampled_sets
    if not names:
        return ""
    sds, unknown = result.sampling_sds(), result.unknown_by_sampling()
    greatest = _most(np.stack([sds[name, "mutual_information"] for name in names])) / math.log(result.n_anchors)
    told = "not known" if math.isnan(greatest) else f"at most {_rounded_up(greatest)} log m"
    remedy = f"; too few were followed in {', '.join(unknown)}: raise --label-rows" if unknown else ""
    return f"labels were sampled in {', '.join(names)}: the standard error of information by that is {told}{remedy}"


def distinct_samples(infos: Iterable[Mapping[str, Any]]) -> tuple[list[Samples], list[int | None]]:
    """Find the different samples of labels of several results.

    Returns:
        The samples, and the number of that of each result; None where all labels were followed.
    """
    found: list[Samples] = []
    numbers: list[int | None] = []
    number_of: dict[str, int] = {}
    for samples in map(samples_of, infos):
        key = json.dumps(samples, sort_keys=True)
        if samples and key not in number_of:
            number_of[key] = len(found)
            found.append(samples)
        numbers.append(number_of.get(key))
    return found, numbers


def sample_notes(numbers: Iterable[int | None]) -> list[str]:
    """Say of the results of a sweep whether they follow different labels, by the numbers of their samples."""
    n = len({*numbers})
    if n < 2:
        return []
    return [
        f"labels differ: checkpoints followed {n} different samples of labels, so their differences have the standard "
        "errors by that of both"
    ]


def _most(values: ArrayLike) -> float:
    """Find the greatest value; NaN where none is known."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return float(known.max()) if len(known) else math.nan


def _rounded_up(error: float) -> str:
    return f"{math.ceil(round(error * 1e4, 3)) / 1e4:.4f}"
