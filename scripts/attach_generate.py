"""Layers while a model writes: python scripts/attach_generate.py MODEL PROMPTS.txt (a line is a prompt)"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from softh_probe import SoftEntropyProbe

name, prompts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(name).eval()
with open(prompts, encoding="utf-8") as lines:
    batch = tokenizer([line.strip() for line in lines], return_tensors="pt", padding=True)
probe = SoftEntropyProbe(model, labels=["input_unigram", "output_unigram"])
with probe:
    written = model.generate(**batch, max_new_tokens=40, do_sample=True)
print(*tokenizer.batch_decode(written, skip_special_tokens=True), sep="\n")
print(f"{probe.positions} positions", probe.result(name=f"{name} writes").to_pandas().to_string(index=False), sep="\n")
