"""Texts, a tokenizer trained on them, and small models with checkpoints at log-spaced steps.

Shape suffixes: T tokens.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

END_OF_TEXT = "<|endoftext|>"
#: Characters of a piece of text: what is held out or not, and a document of the sweep.
PIECE = 2000
#: Fewest characters that are worth a training.
LEAST = 100_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and asked; written to OUT/plan.json.

    Attributes:
        shapes: of each model: blocks, width, attention heads.
        steps: of training.
        n_checkpoints: of each model, step 0 included.
        sequences, length: of a batch, length in tokens.
        n_items: of the cloze task, at most.
    """

    steps: int
    texts_sha256: str
    shapes: dict[str, tuple[int, int, int]]
    n_checkpoints: int
    sequences: int = 16
    length: int = 128
    vocabulary: int = 2048
    n_items: int = 400
    learning_rate: float = 3e-3

    def checkpoints(self) -> list[int]:
        """List the steps that are saved: 0, and from 1 to the last at equal ratios."""
        return [0, *sorted({round(step) for step in np.geomspace(1, self.steps, self.n_checkpoints - 1)})]


def read_texts(data: str | None) -> list[str]:
    """Read the texts of a file of JSON lines, or Python's help texts.

    Raises:
        SystemExit: the file cannot be read.
    """
    if data is None:
        return [text for _, text in sorted(topics.items())]
    try:
        return [str(json.loads(line)["text"]) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"--data: expected JSON lines with a key text, got {data!r}: {error!r}") from error


def cut(texts: list[str]) -> list[str]:
    """Cut texts into pieces of whole paragraphs; each paragraph stands where it first occurs, and nowhere else.

    Raises:
        SystemExit: they are too short to learn from.
    """
    seen: set[str] = set()
    pieces = []
    for text in texts:
        piece = ""
        for paragraph in (" ".join(lines.split()) for lines in text.split("\n\n")):
            if paragraph not in seen:
                seen.add(paragraph)
                piece += paragraph + "\n"
            if len(piece) >= PIECE:
                pieces.append(piece)
                piece = ""
        if piece:
            pieces.append(piece)
    if (size := sum(map(len, pieces))) < LEAST:
        raise SystemExit(f"--data: expected at least {LEAST:,} characters of distinct paragraphs, got {size:,}")
    return pieces


def write_texts(folder: Path, pieces: list[str]) -> tuple[list[str], list[str]]:
    """Hold out one piece in six, and write those as the texts of the sweep."""
    pieces = [*pieces]
    random.Random(0).shuffle(pieces)
    held_out, train = pieces[: len(pieces) // 6], pieces[len(pieces) // 6 :]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in held_out)
    (folder / "held_out.jsonl").write_text(lines, encoding="utf-8")
    return train, held_out


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def as_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Join texts to one line of tokens, [T], with a mark after each."""
    return torch.tensor([token for text in texts for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id]])


@torch.inference_mode()
def loss_on(model: LlamaForCausalLM, stream_T: torch.Tensor, length: int) -> float:
    """Mean loss of a next token, in nats."""
    blocks = stream_T[: len(stream_T) // length * length].view(-1, length)
    losses = [model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in blocks.split(32)]
    return sum(losses) / len(blocks)


def train_model(
    name: str, folder: Path, plan: Plan, tokenizer: Any, train_T: torch.Tensor, held_T: torch.Tensor
) -> None:
    """Train one model, save its checkpoints, and write what was lost at each: training.json, when all is done."""
    disable_progress_bar()  # of saving: there is one of training
    blocks, width, heads = plan.shapes[name]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            intermediate_size=3 * width,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, plan.steps // 16)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / plan.steps))
    )
    chance = torch.Generator().manual_seed(0)
    losses = []
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"{name} ({blocks} blocks of {width}, {n_parameters / 1e6:.1f}M parameters)"
    with tqdm(total=plan.steps * plan.sequences * plan.length, desc=title, unit="tokens", unit_scale=True) as bar:
        for step in range(plan.steps + 1):
            if step in plan.checkpoints():
                model.eval()
                losses.append({"step": step, "loss": loss_on(model, held_T, plan.length)})
                bar.set_postfix(step=step, held_out=f"{losses[-1]['loss']:.2f} nats")
                model.save_pretrained(folder / f"checkpoint-{step}")
                tokenizer.save_pretrained(folder / f"checkpoint-{step}")
                model.train()
            if step < plan.steps:
                starts = torch.randint(len(train_T) - plan.length, (plan.sequences,), generator=chance)
                batch = torch.stack([train_T[start : start + plan.length] for start in starts])
                model(input_ids=batch, labels=batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.update(batch.numel())
    (folder / "training.json").write_text(json.dumps(losses))
