"""Data of a page: results as plain JSON values, rounded to the digits that hover shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softh_probe.choices import Choice, Choices
from softh_probe.errors import InputError, short_repr
from softh_probe.metrics import ENTROPIES
from softh_probe.report.facts import task_of
from softh_probe.report.label_samples import wrong_entries
from softh_probe.result import ProbeResult

#: Most labels that a heat map shows; the most frequent ones are chosen.
MOST_LABELS = 40
UNIT_NAMES = {"efficiency": "share of log m", "nats": "nats", "bits": "bits"}
_DIGITS = 6

#: Types of the entries of a result's `info` that pages read. Callers may have put anything into it.
_INFO: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("settings", "model", "corpus", "config", "versions", "seconds", "peak_memory_gib"), (dict,)),
    **dict.fromkeys(("positions_policy", "evaluation", "tokenizer"), (dict,)),
    **dict.fromkeys(("name", "notes", "created"), (str,)),
    **dict.fromkeys(("anchors", "choices", "warnings"), (list,)),
    **dict.fromkeys(("positions", "tokens", "tokens_per_second"), (int, float)),
}
_ANCHORS: dict[str, tuple[type, ...]] = {"dim": (int,), "temperature": (int, float), "sha256": (str,)}


def title_of(result: ProbeResult) -> str:
    """Title a result by its name, else by its model: the end of the path or hub id, and the revision; or the class.

    >>> info = {"model": {"model": "a/b/tiny.gguf", "revision": "step10"}}
    >>> title_of(ProbeResult(rows=[], label_sets=[], tensors={}, info=info))
    'tiny.gguf @ step10'
    """
    return str(result.info.get("name") or "") or _model_of(result)


def full_title(result: ProbeResult) -> str:
    """Title a result by its name, model and task, as far as they are known.

    >>> info = {"name": "before training", "model": {"model": "a/tiny"}, "evaluation": {"tasks": ["lambada"]}}
    >>> full_title(ProbeResult(rows=[], label_sets=[], tensors={}, info=info))
    'before training · tiny · lambada'
    """
    name = result.info.get("name")
    model = _model_of(result) if result.info.get("model") or not name else None
    return " · ".join(dict.fromkeys(filter(None, (name, model, task_of(result)))))


def _model_of(result: ProbeResult) -> str:
    model = result.info.get("model") or {}
    name = Path(str(model.get("model") or model.get("class") or "a model")).name or "a model"
    return f"{name} @ {model['revision']}" if model.get("revision") else name


def amount(n: int) -> str:
    """Shorten a number of parameters.

    >>> amount(135_000_000), amount(6_900_000_000), amount(912)
    ('135M', '6.9B', '912')
    """
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{suffix}"
    return str(n)


def distinct_titles(results: Sequence[ProbeResult], folders: Sequence[Path]) -> list[str]:
    """Title results by their names or models; where these are not unique, with all that is known, or the folder."""
    titles = [title_of(result) for result in results]
    for found in (titles, [full_title(result) for result in results]):
        if len(set(found)) == len(found):
            return found
    named = [f"{title} ({folder.resolve().name})" for title, folder in zip(titles, folders, strict=True)]
    if len(set(named)) == len(named):
        return named
    return [f"{title} ({folder})" for title, folder in zip(titles, folders, strict=True)]


def warnings_of(result: ProbeResult) -> list[str]:
    """List the warnings of a result for readers, and whether the places of its layers are not certain."""
    note = result.places.note
    return [*(result.info.get("warnings") or []), *([note] if note else [])]


def check_info(result: ProbeResult, where: str) -> None:
    """Check the types of the entries of `info` that pages show.

    Raises:
        InputError: an entry has another type than softh_probe gives it.
    """
    entries = [(name, result.info.get(name), types) for name, types in _INFO.items() if result.info.get(name)]
    for name, value, types in entries:
        if not isinstance(value, types):
            raise _wrong_type(where, name, types, value)
    for described in result.info.get("anchors") or []:
        for name, types in _ANCHORS.items():
            value = described.get(name) if isinstance(described, dict) else None
            if not isinstance(value, types):
                raise _wrong_type(where, f"anchors: {name}", types, value)
    for name, types, value in wrong_entries(result.info.get("label_sampling") or {}):
        raise _wrong_type(where, name, types, value)
    try:
        Choices.from_json(result.info.get("choices") or [])
    except TypeError as error:
        raise _wrong_type(where, "choices", (Choice,), result.info["choices"]) from error
    for text in result.info.get("warnings") or []:
        if not isinstance(text, str):
            raise _wrong_type(where, "warnings", (str,), text)


def _wrong_type(where: str, name: str, types: tuple[type, ...], value: Any) -> InputError:
    expected = " or ".join(kind.__name__ for kind in types)
    return InputError(
        f"{where}: {name} of the result: expected {expected}, got {short_repr(value)}; change it in ProbeResult.info "
        "and save the result again, or measure again"
    )


def run_data(result: ProbeResult, title: str) -> dict[str, Any]:
    """Convert a result to JSON values: its layers, and mean and sd over anchor sets of each metric and label set.

    `layers` are the rows' indices in the model, and `depth` is the index of the final norm. Entropies and informations
    are in units of log m; `log_m` is that unit in nats. A series that is estimated from a sample of labels has the
    standard error by that, too (`e`), with intervals that over documents (`se`), and the information about labels of
    whole documents its p-value (`p`).
    """
    log_m = math.log(result.n_anchors)
    errors, over_documents = sampling_errors_by_key(result), standard_errors_by_key(result)
    p_values = {f"{metric}|{name}": p_R for (name, metric), p_R in result.p_values().items()}
    return {
        "title": title,
        "rows": result.rows,
        "layers": list(result.places.indices),
        "depth": result.places.last,
        "modules": not result.places.n_blocks,
        "label_sets": result.label_sets,
        "anchor_sets": result.tensors["mass"].shape[1],
        "log_m": log_m,
        "series": {
            key: _series(values_RS, {"e": errors.get(key), "se": over_documents.get(key), "p": p_values.get(key)})
            for key, values_RS in values_by_key(result).items()
        },
        "labels": _labels(result),
    }


def values_by_key(result: ProbeResult) -> dict[str, Tensor]:
    """Map "metric|label set" to values [R, S] (layers, anchor sets), in units of log m where they have a unit."""
    log_m = math.log(result.n_anchors)
    return {
        f"{metric}|{name}": values_RS / log_m if metric in ENTROPIES else values_RS
        for name, metric, values_RS in result.metrics()
    }


def sampling_errors_by_key(result: ProbeResult) -> dict[str, Tensor]:
    """Map "metric|label set" to standard errors by the sampling of labels [R], in units of log m as the values are.

    Values that are exact have none.
    """
    if not result.sampled_sets:
        return {}
    log_m = math.log(result.n_anchors)
    return {
        f"{metric}|{name}": error_R / log_m if metric in ENTROPIES else error_R
        for (name, metric), error_R in result.sampling_sds().items()
        if error_R.any()
    }


def standard_errors_by_key(result: ProbeResult) -> dict[str, Tensor]:
    """Map "metric|label set" to standard errors over documents [R], in units of log m as the values are."""
    log_m = math.log(result.n_anchors)
    return {
        f"{metric}|{name}": error_R / log_m if metric in ENTROPIES else error_R
        for (name, metric), error_R in result.standard_errors().items()
    }


def numbers(values: Iterable[float], digits: int = _DIGITS) -> list[float | None]:
    """Round values, with None for those that are not finite: JSON has no NaN."""
    return [round(v, digits) if math.isfinite(v) else None for v in map(float, values)]


def embedded_json(value: Any) -> str:
    r"""Encode JSON for a <script> element: no text in it can end the element or a line.

    >>> embedded_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # lone surrogates have no UTF-8


def _series(values_RS: Tensor, further: Mapping[str, Tensor | None]) -> dict[str, list[float | None]]:
    """Give a series as the page has it; `further` are its errors and p-values, where it has any."""
    found = {"v": numbers(values_RS.mean(dim=1).tolist())}
    if values_RS.shape[1] > 1:
        found["s"] = numbers(values_RS.std(dim=1).tolist())
    found |= {name: numbers(value_R.tolist()) for name, value_R in further.items() if value_R is not None}
    return found


def _labels(result: ProbeResult) -> list[dict[str, Any]]:
    """List H(Z|X=x) [label][layer] of the label sets with shown labels, frequent labels first."""
    found = []
    entropy_RL = result.tensors["label_entropy"].mean(dim=2) / math.log(result.n_anchors)
    counts_RL = result.tensors["label_positions"]
    for name in dict.fromkeys(label_set for label_set, _ in result.labels):
        of_set = [i for i, (label_set, _) in enumerate(result.labels) if label_set == name]
        counts = counts_RL[:, of_set].amax(dim=0)
        order = torch.argsort(counts, descending=True, stable=True)[:MOST_LABELS].tolist()
        chosen = [of_set[i] for i in order]
        found.append(
            {
                "label_set": name,
                "n_labels": len(of_set),
                "labels": [result.labels[i][1] for i in chosen],
                "counts": [int(counts[i]) for i in order],
                "values": [numbers(entropy_RL[:, i].tolist()) for i in chosen],
            }
        )
    return found
