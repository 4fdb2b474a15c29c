"""soft_entropy.json: a result with the keys of the package soft-entropy 0.1.5, for code that reads its numbers."""

from __future__ import annotations

import json
from typing import Any

from softh_probe.layer_places import FINAL_NORM
from softh_probe.metrics import unit_scale
from softh_probe.result import ProbeResult

SOFT_ENTROPY_JSON = "soft_entropy.json"


def as_soft_entropy(result: ProbeResult) -> dict[str, Any]:
    """Give the values that `LLMInferrer.run` returns, in units of log m.

    Returns:
        `per_layer`, one mapping for each entry of transformers' `hidden_states`: the embeddings, the output of each
        block but the last, and that of the final norm, or of the last block where there is none; and `mean`, the
        means over all but the embeddings. Keys are H(Z), I(X;Z)/SET and regularity/SET.
    """
    scale = unit_scale("efficiency", result.n_anchors)
    metrics = {(label_set, metric): values_RS.mean(dim=1) for label_set, metric, values_RS in result.metrics()}
    rows = [*range(len(result.rows))]
    if result.rows[-1] == FINAL_NORM:
        rows = [*rows[:-2], rows[-1]]
    per_layer = []
    for row in rows:
        values = {"H(Z)": metrics["", "entropy"][row].item() * scale}
        for label_set in result.label_sets:
            values[f"I(X;Z)/{label_set}"] = metrics[label_set, "mutual_information"][row].item() * scale
            values[f"regularity/{label_set}"] = metrics[label_set, "regularity"][row].item()
        per_layer.append(values)
    averaged = per_layer[1:]
    mean = {key: sum(layer[key] for layer in averaged) / len(averaged) for key in averaged[0]}
    return {"per_layer": per_layer, "mean": mean}


def soft_entropy_json(result: ProbeResult) -> str:
    """Write those values as text of a file."""
    return json.dumps(as_soft_entropy(result), indent=1)
