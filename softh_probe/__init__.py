"""How much information each layer of an LLM holds: soft entropy in one forward pass, no activations stored."""

from softh_probe.estimators.anchors import Anchors, sample_anchors
from softh_probe.estimators.calibration import temperature
from softh_probe.estimators.soft_entropy import soft_entropy, soft_mutual_information
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult

__all__ = [
    "Anchors",
    "ProbeResult",
    "SoftEntropyProbe",
    "sample_anchors",
    "soft_entropy",
    "soft_mutual_information",
    "temperature",
]
