"""Tiny models."""

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
