"""Comparisons of results."""

import numpy as np
import pandas as pd


def assert_same_but_corrections(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare tables of one process and of several, but for corrected values, which rounding moves more."""
    found, expected = (table[~table.metric.str.contains("corrected")] for table in (found, expected))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6, atol=1e-6)


def assert_same_values(one, other):
    """Up to float32 rounding, which a correction for labels that occur twice makes larger."""
    one, other = (t.set_index(["name", "label_set", "metric"]).value for t in (one, other))
    pd.testing.assert_index_equal(one.index, other.index)
    corrected = one.index.get_level_values("metric").str.contains("corrected")
    np.testing.assert_allclose(one[~corrected], other[~corrected], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[corrected], other[corrected], atol=1e-4)
