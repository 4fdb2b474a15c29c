"""From results to what a page draws: plain JSON values, rounded to what hover shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softh_probe.errors import InputError, short_repr
from softh_probe.metrics import ENTROPIES
from softh_probe.result import ProbeResult

#: Labels that a heat map shows at most; the most frequent ones are chosen.
MOST_LABELS = 40
UNIT_NAMES = {"efficiency": "share of log m", "nats": "nats", "bits": "bits"}
_DIGITS = 6

#: What pages read of a result's `info`, where it is there. Callers may have put anything into it.
_INFO: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("settings", "model", "corpus", "config", "versions", "seconds", "peak_memory_gib"), (dict,)),
    **dict.fromkeys(("anchors", "warnings"), (list,)),
    **dict.fromkeys(("positions", "tokens", "tokens_per_second"), (int, float)),
}
_ANCHORS: dict[str, tuple[type, ...]] = {"dim": (int,), "temperature": (int, float), "sha256": (str,)}


def title_of(result: ProbeResult) -> str:
    """What a reader calls the model: the end of its path or hub id, and its revision.

    >>> info = {"model": {"model": "a/b/tiny.gguf", "revision": "step10"}}
    >>> title_of(ProbeResult(rows=[], label_sets=[], tensors={}, info=info))
    'tiny.gguf @ step10'
    """
    model = result.info.get("model") or {}
    name = Path(str(model.get("model") or "a model")).name or "a model"
    return f"{name} @ {model['revision']}" if model.get("revision") else name


def check_info(result: ProbeResult, where: str) -> None:
    """Refuse what pages cannot show.

    Raises:
        InputError: something in `info` is of another type than what softh_probe puts there.
    """
    entries = [(name, result.info.get(name), types) for name, types in _INFO.items() if result.info.get(name)]
    for name, value, types in entries:
        if not isinstance(value, types):
            raise _unfit(where, name, types, value)
    for described in result.info.get("anchors") or []:
        for name, types in _ANCHORS.items():
            value = described.get(name) if isinstance(described, dict) else None
            if not isinstance(value, types):
                raise _unfit(where, f"anchors: {name}", types, value)
    for text in result.info.get("warnings") or []:
        if not isinstance(text, str):
            raise _unfit(where, "warnings", (str,), text)


def _unfit(where: str, name: str, types: tuple[type, ...], value: Any) -> InputError:
    expected = " or ".join(kind.__name__ for kind in types)
    return InputError(
        f"{where}: {name} of the result: expected {expected}, got {short_repr(value)}; change it in ProbeResult.info "
        "and save the result again, or measure again"
    )


def run_data(result: ProbeResult, title: str) -> dict[str, Any]:
    """One result as JSON values: its rows, and of each metric and label set the mean and sd over anchor sets.

    Entropies and informations are in units of log m; `scale` says what that is in nats.
    """
    log_m = math.log(result.n_anchors)
    return {
        "title": title,
        "rows": result.rows,
        "label_sets": result.label_sets,
        "anchor_sets": result.tensors["mass"].shape[1],
        "log_m": log_m,
        "series": {key: _mean_and_sd(values_RS) for key, values_RS in values_by_key(result).items()},
        "labels": _labels(result),
    }


def values_by_key(result: ProbeResult) -> dict[str, Tensor]:
    """Of each "metric|label set" its values [R, S], in units of log m where the metric has a unit."""
    log_m = math.log(result.n_anchors)
    return {
        f"{metric}|{name}": values_RS / log_m if metric in ENTROPIES else values_RS
        for name, metric, values_RS in result.metrics()
    }


def numbers(values: Iterable[float], digits: int = _DIGITS) -> list[float | None]:
    """Rounded, with null for what is missing: JSON knows no NaN."""
    return [round(v, digits) if math.isfinite(v) else None for v in map(float, values)]


def embedded_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: no text in it ends the element or a line.

    >>> embedded_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be written


def _mean_and_sd(values_RS: Tensor) -> dict[str, list[float | None]]:
    mean = {"v": numbers(values_RS.mean(dim=1).tolist())}
    return mean if values_RS.shape[1] < 2 else {**mean, "s": numbers(values_RS.std(dim=1).tolist())}


def _labels(result: ProbeResult) -> list[dict[str, Any]]:
    """H(Z|X=x) [label][row] of the label sets that show their labels one by one, frequent labels first."""
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
