"""What limits a result: labels of one value, states that were left out or point one way, samples of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softh_probe.accumulators.document_labels import record_documents
from softh_probe.accumulators.label_sampling import describe_sample, samples_of
from softh_probe.anisotropy import ANISOTROPY, MEANING, high_rows, rows_without_anisotropy
from softh_probe.choices import Choices
from softh_probe.errors import abbreviated

if TYPE_CHECKING:
    from softh_probe.result import ProbeResult


def record_limits(result: ProbeResult, choices: Choices, told: Choices) -> None:
    """Record label sets of a single value, states that were left out or point one way, and samples of labels.

    Args:
        result: it has the limits.
        choices: those of this result; counts are exact.
        told: those that were warned of before; without counts, so that a later result does not warn again.
    """
    for name, label in result.single_values().items():
        reason = "all labelled positions have it, so the information is 0 by construction; label several values"
        for record in (told, choices):
            record.add(name, f"the single value {label!r}", reason)
    for name, n in (invalid := result.invalid_positions()).items():
        left_out = f"{n:,} of {result.info['positions']:,} positions were left out"
        choices.add(name, left_out, "their hidden states are zero or not finite, so they have no direction")
    if invalid:
        reason = "they have no direction; result.invalid_positions() counts them by layer"
        told.add("hidden states", "those that are zero or not finite were left out", reason)
    _record_directions(result, choices)
    _record_samples(result, choices, told)
    for name, of_set in result.info.get("document_labels", {}).items():
        record_documents(name, of_set, choices, told)


def _record_directions(result: ProbeResult, choices: Choices) -> None:
    if unknown := rows_without_anisotropy(result):
        reason = (
            "a part was measured by an earlier version, or states on an accelerator are not finite; measure again, or "
            "with another dtype"
        )
        choices.add(ANISOTROPY, f"not known of {abbreviated(unknown, 6)}", reason)
    if (high := high_rows(result)) is not None:
        choices.add(ANISOTROPY, high, MEANING)


def _record_samples(result: ProbeResult, choices: Choices, told: Choices) -> None:
    rows = result.info["settings"].get("label_rows")
    at_most = f"at most {rows:,} rows" if isinstance(rows, int) else "a limited number of rows"
    for name, sample in samples_of(result.info).items():
        followed = f"{'a sample of ' if sample['labels'] else ''}{describe_sample(sample)} of {name}"
        reason = f"a layer holds {at_most} of n-gram labels at a time; 'all' follows every label"
        choices.add("label_rows", followed, reason, certain=True)
    for name, unknown in result.unknown_by_sampling().items():
        for record in (told, choices):
            reason = "too few of its labels were followed; raise label_rows (--label-rows)"
            record.add(name, f"{unknown} is not known", reason)
