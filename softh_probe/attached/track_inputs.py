"""Make the label source of an attached probe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from softh_probe.attached.online_rows import OnlineRows
from softh_probe.attached.pass_context import PassContext
from softh_probe.attached.position_rules import PositionRules
from softh_probe.attached.tracker import InputTracker
from softh_probe.labels import LabelRows, parse_label_sets
from softh_probe.positions import check_labels


def track_inputs(
    models: Sequence[nn.Module],
    labels: Sequence[str],
    *,
    count: str,
    label_rows: LabelRows,
    seed: int,
    has_backbone: bool,
    rules: PositionRules | None = None,
) -> InputTracker:
    """Make the tracker of an attached probe.

    Args:
        models: the model, and the part of it that is measured; the first that has a configuration tells its pad token.
        labels, count, label_rows, seed: as `SoftEntropyProbe` takes them.
        has_backbone: as `InputTracker` takes it.
        rules: the policies of positions; None: all count.

    Raises:
        InputError: a label set is unknown, needs a data set, or is defined at no position that policies leave.
    """
    label_sets = parse_label_sets(labels, has_columns=False)
    rules = rules or PositionRules()
    check_labels(rules.policies, label_sets)
    config = next((model.config for model in models if getattr(model, "config", None)), None)
    pad_id = getattr(config, "pad_token_id", None)
    rows = OnlineRows(
        label_sets, unique_prefixes=count == "unique_prefix", label_rows=label_rows, seed=seed, rules=rules
    )
    return InputTracker(
        rows,
        PassContext(pad_id=pad_id if isinstance(pad_id, int) else None, kept=rows.kept),
        has_ngrams=bool(label_sets),
        has_backbone=has_backbone,
    )
