"""The page and the figures that a run writes beside its results."""

from __future__ import annotations

import logging
from pathlib import Path

from softh_probe.result import ProbeResult

logger = logging.getLogger(__name__)


def write_report(result: ProbeResult, folder: Path) -> None:
    """Write the page and the figures; a failure is only a warning, so that the result is kept."""
    try:
        from softh_probe.report.page import (
            write_run_report,  # imports matplotlib and plotly, for which sweeps do not wait
        )

        write_run_report(result, folder)
    except Exception as error:
        text = f"the report could not be written ({type(error).__name__}: {error}); try `softh-probe report` later"
        result.info["warnings"].append(text)
        logger.warning("%s", text)
