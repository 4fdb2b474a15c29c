"""Hidden states as an engine gives them: what each layer of a model gives, caught beside an attached probe."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def caught(model) -> Iterator[dict[str, torch.Tensor]]:
    """Catch the hidden states of each forward pass of a Llama, by the names of a probe's rows."""
    states: dict[str, torch.Tensor] = {}

    def take(name, tensor):
        states[name] = tensor.detach().clone()

    blocks, norm = model.model.layers, model.model.norm
    handles = [blocks[0].register_forward_pre_hook(lambda _m, args: take("embeddings", args[0]))]
    for i, block in enumerate(blocks, start=1):
        handles.append(block.register_forward_hook(lambda _m, _a, out, i=i: take(f"layer.{i}", out)))
    handles.append(norm.register_forward_hook(lambda _m, _a, out: take("final_norm", out)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def documents(*lengths: int, vocabulary: int = 6, seed: int = 3) -> list[list[int]]:
    """Documents of few distinct tokens, so that n-grams of all orders come again."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def random_states(docs, rows=("layer.1", "layer.2"), width=8, seed=0) -> list[dict[str, torch.Tensor]]:
    """States of each document, [T, D] by row."""
    generator = torch.Generator().manual_seed(seed)
    return [{row: torch.randn(len(doc), width, generator=generator) for row in rows} for doc in docs]
