"""Probe a checkpoint from Python: python scripts/probe_checkpoint.py MODEL TEXTS.txt (a line is a document)"""

import sys

import torch
from transformers import AutoModel, AutoTokenizer

from softh_probe import SoftEntropyProbe

name, texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModel.from_pretrained(name).eval()  # the language-model head is not needed
probe = SoftEntropyProbe(model, labels=["input_unigram", "output_unigram"])
with probe, torch.no_grad(), open(texts, encoding="utf-8") as documents:
    for text in documents:
        model(**tokenizer(text.strip(), return_tensors="pt", truncation=True, max_length=512))
print(
    f"{probe.positions} positions", probe.result(name=f"{name} on {texts}").to_pandas().to_string(index=False), sep="\n"
)
