"""Shapes of well-known models, to be filled with random weights, and a corpus of random tokens."""

from __future__ import annotations

import numpy as np
from transformers import LlamaConfig, Olmo2Config, PreTrainedConfig

from softh_probe.data.corpus import Corpus

#: Class of the configuration, width, blocks, heads, key-value heads, width of the MLP, vocabulary.
SHAPES: dict[str, tuple[type[PreTrainedConfig], int, int, int, int, int, int]] = {
    "tiny": (LlamaConfig, 64, 3, 4, 2, 128, 500),
    "smollm2-135m": (LlamaConfig, 576, 30, 9, 3, 1536, 49_152),
    "olmo-2-1b": (Olmo2Config, 2048, 16, 16, 16, 8192, 100_352),
    "olmo-2-7b": (Olmo2Config, 4096, 32, 32, 32, 11_008, 100_352),
    "olmo-2-32b": (Olmo2Config, 5120, 64, 40, 8, 27_648, 100_352),
}


#: Tokens that a position needs around it to have a label of each of the 8 n-gram sets.
LONGEST_NGRAM_SPAN = 8


def model_config(shape: str, blocks: int | None = None) -> PreTrainedConfig:
    """Make the configuration of a shape, with so many blocks at most."""
    kind, width, n_blocks, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    return kind(
        hidden_size=width,
        num_hidden_layers=n_blocks if blocks is None else min(n_blocks, blocks),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        pad_token_id=None,
    )


def random_corpus(n_documents: int, n_tokens: int, vocabulary: int) -> Corpus:
    """Make documents of equal length, whose tokens are about as frequent as words of English."""
    drawn = np.random.default_rng(0).pareto(0.9, n_documents * n_tokens) * 20
    return Corpus(
        tokens=np.minimum(drawn, vocabulary - 1).astype(np.int32),
        offsets=np.arange(n_documents + 1, dtype=np.int64) * n_tokens,
        source=np.arange(n_documents, dtype=np.int32),
        columns={},
        n_read=n_documents,
        n_empty=0,
        n_truncated=0,
    )
