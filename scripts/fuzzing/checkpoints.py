"""Weights in safetensors and in GGUF."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from fault_campaign import write_checkpoint

from fuzzing.damage import damage_safetensors, damaged
from fuzzing.kinds import Kind, WrongError
from softh_probe.models.checkpoint import load_checkpoint
from softh_probe.models.source import resolve_model


class Weights(Kind):
    """model.safetensors of a checkpoint; loaded weights are compared with the bytes of the file."""

    share = 0.8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_checkpoint(folder / "model")

    def write(self, case: Path, chance: random.Random) -> None:
        shutil.copytree(self.folder / "model", case, dirs_exist_ok=True)
        damage_safetensors(case / "model.safetensors", chance)

    def attempt(self, case: Path, chance: random.Random) -> None:
        with load_checkpoint(resolve_model(str(case)), device_map="cpu") as checkpoint:
            there = {
                name.removeprefix("model."): t for name, t in safetensors_by_hand(case / "model.safetensors").items()
            }
            for name, ours in checkpoint.model.state_dict().items():
                if not np.array_equal(ours.float().numpy(), there[name], equal_nan=True):
                    raise WrongError(f"{name} is not what the file holds")


class Gguf(Kind):
    """GGUF files; what loads has to run and to give what the tensors of the file are."""

    share = 0.8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_gguf(folder / "model.gguf")
        self.content = (folder / "model.gguf").read_bytes()
        self.header = self.content.index(b"output_norm.weight") + 100

    def write(self, case: Path, chance: random.Random) -> None:
        content = self.content
        if chance.random() < 0.85:  # where names, sizes and offsets are
            content = damaged(content[: self.header], chance) + content[self.header :]
        else:
            content = damaged(content, chance)
        (case / "model.gguf").write_bytes(content)

    def attempt(self, case: Path, chance: random.Random) -> None:
        with load_checkpoint(resolve_model(str(case / "model.gguf")), device_map="cpu") as checkpoint:
            n = checkpoint.model.config.vocab_size
            with torch.no_grad():
                states = checkpoint.model(input_ids=torch.arange(5)[None] % n).last_hidden_state
            if states.shape[:2] != (1, 5):
                raise WrongError(f"hidden states are {list(states.shape)}")
            reader = gguf.GGUFReader(case / "model.gguf")
            (tensor,) = [t for t in reader.tensors if t.name == "token_embd.weight"]
            if not np.array_equal(checkpoint.model.embed_tokens.weight.numpy(), tensor.data, equal_nan=True):
                raise WrongError("embeddings are not what the file holds")


def write_gguf(file: Path) -> None:
    """A llama of two layers; heads are one wide pair each, so that rows need no reordering."""
    n, width, words = 2, 8, 14
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(n)
    writer.add_feed_forward_length(16)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    shapes = {"token_embd": (words, width), "output_norm": (width,)}
    for i in range(n):
        shapes |= {f"blk.{i}.{part}": (width, width) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{part}": (16, width) for part in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{i}.ffn_down": (width, 16), f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def safetensors_by_hand(file: Path) -> dict[str, np.ndarray]:
    """float32 of every tensor, by the format's definition."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    types = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }
    found = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = content[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in types:
            values = np.frombuffer(raw, types[entry["dtype"]])
        else:
            continue
        found[name] = values.astype(np.float32).reshape(entry["shape"])
    return found
