"""What several test modules share."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(**changes) -> LlamaForCausalLM:
    """Random weights, large enough that layers differ."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def assert_same_values(one, other):
    """Up to float32 rounding, which a correction for labels that occur twice makes larger."""
    one, other = (t.set_index(["name", "label_set", "metric"]).value for t in (one, other))
    pd.testing.assert_index_equal(one.index, other.index)
    corrected = one.index.get_level_values("metric").str.contains("corrected")
    np.testing.assert_allclose(one[~corrected], other[~corrected], atol=1e-6)
    np.testing.assert_allclose(one[corrected], other[corrected], atol=1e-4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    """No test finds what another one, or a user, has kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real checkpoint, which scripts/test fetches."""
    path = Path(os.environ.get("SMOLLM2_GGUF", ""))
    if not path.is_file():
        pytest.skip("SMOLLM2_GGUF does not name the real checkpoint; run scripts/test, which fetches it")
    return path
