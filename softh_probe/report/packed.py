"""Arrays of numbers as short text for pages: a third of what digits take, and read at once by a browser.

>>> packed(np.array([[0.25, np.nan, 0.25]]))
{'u2': 'AAD//wAA', 'low': 0.25, 'step': 0.0, 'shape': [1, 3]}

Values of a small range are whole numbers of 16 bits between the least and the greatest (`u2`), of an error of at most
1e-5; others have single precision (`f4`). Pages read them in assets/packed.js.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

#: The greatest whole number of 16 bits stands for what is missing.
_MISSING = 2**16 - 1
#: Largest error of whole numbers.
_ERROR = 1e-5


def packed(values: np.ndarray) -> dict[str, Any]:
    """Pack an array, row by row: {`u2`, `low`, `step`, `shape`} or {`f4`, `shape`}; infinite values are missing."""
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    shape = list(values.shape)
    step = (high - low) / (_MISSING - 1)
    if step > 2 * _ERROR:
        return {"f4": _text(np.where(known, values, np.nan).astype("<f4")), "shape": shape}
    places = np.full(values.shape, _MISSING, dtype="<u2")
    places[known] = np.round((values[known] - low) / step) if step else 0
    return {"u2": _text(places), "low": low, "step": step, "shape": shape}


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
