"""A tiny training run, saved as it goes, for what is tested on many checkpoints."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_llama

TEXTS = [f"the cat {'sat on the mat and ' * (i % 4)}saw {i % 3} dogs {'again ' * (i % 5)}." for i in range(30)]


def write_texts(path: Path, n: int = 30) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:n]))
    return path


def small_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "<pad>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def train(folder: Path, steps: int = 12, name: str = "checkpoint-{}") -> list[Path]:
    """Train and save after each step; returns the checkpoints in order."""
    tokenizer = small_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    ids = tokenizer(TEXTS[:8], return_tensors="pt", padding=True)["input_ids"]
    saved = []
    for step in range(1, steps + 1):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path = folder / name.format(step)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": 0}))
        saved.append(path)
    return saved
