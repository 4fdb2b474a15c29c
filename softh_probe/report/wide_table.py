"""The table of a result for reading: one line a layer, one column a label set."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from softh_probe.result import ProbeResult


def wide_table(result: ProbeResult, metrics: Sequence[str] = ("entropy", "mutual_information")) -> pd.DataFrame:
    """Arrange the tidy table for reading: one line a layer, with its entropy and each label set's information."""
    table = result.to_pandas(means=False)
    table = table[table.metric.isin(metrics)]
    column = table.label_set.where(table.label_set != "", "entropy").where(
        table.metric != "mutual_information", "I(" + table.label_set + ")"
    )
    wide = table.assign(column=column).pivot_table(
        index=["layer", "name"], columns="column", values="value", sort=False
    )
    return wide.reset_index().rename_axis(columns=None)
