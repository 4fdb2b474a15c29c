"""Measure how much information each layer of an LLM holds: soft entropy in one forward pass, no activations stored."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softh_probe.lazy_names import lazy_getattr

if TYPE_CHECKING:
    from softh_probe.estimators.anchors import Anchors, sample_anchors
    from softh_probe.estimators.calibration import temperature
    from softh_probe.estimators.soft_entropy import soft_entropy, soft_mutual_information
    from softh_probe.meter import SoftEntropyMeter
    from softh_probe.probe import SoftEntropyProbe
    from softh_probe.result import ProbeResult

__all__ = [
    "Anchors",
    "ProbeResult",
    "SoftEntropyMeter",
    "SoftEntropyProbe",
    "sample_anchors",
    "soft_entropy",
    "soft_mutual_information",
    "temperature",
]

_MODULES = {
    "Anchors": "softh_probe.estimators.anchors",
    "ProbeResult": "softh_probe.result",
    "SoftEntropyMeter": "softh_probe.meter",
    "SoftEntropyProbe": "softh_probe.probe",
    "sample_anchors": "softh_probe.estimators.anchors",
    "soft_entropy": "softh_probe.estimators.soft_entropy",
    "soft_mutual_information": "softh_probe.estimators.soft_entropy",
    "temperature": "softh_probe.estimators.calibration",
}

#: Modules that `import softh_probe` alone makes available, as attributes.
_SUBMODULES = ("estimators", "labels", "probe", "result")

if not TYPE_CHECKING:  # a type checker would take any name to exist

    def __getattr__(name: str) -> Any:
        """Import a public name, or a submodule, on first use."""
        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        return lazy_getattr(__name__, _MODULES)(name)


def __dir__() -> list[str]:
    """List what users need; other modules are imported by their names."""
    return sorted(__all__)
