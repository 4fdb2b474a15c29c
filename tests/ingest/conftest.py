"""Configurations of `softh-probe ingest`."""

import pytest

from softh_probe.ingest import IngestConfig
from tests.helpers.stored_states import FEW, LABELS


@pytest.fixture
def configured(checkpoint, tmp_path):
    def make(**changes) -> IngestConfig:
        paths = {"folder": str(tmp_path / "states"), "tokenizer": str(checkpoint), "out": str(tmp_path / "out")}
        told = {"layout": "vllm", "layers": "1,2"} if not changes.keys() & {"layout", "layers"} else {}
        return IngestConfig(**{**paths, **told, **FEW, "labels": LABELS, "report": False, **changes})

    return make
