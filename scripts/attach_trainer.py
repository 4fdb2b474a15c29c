"""Change of layers in training: python scripts/attach_trainer.py MODEL TEXTS.txt (a line is a document)"""

import sys

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from softh_probe.integrations.trainer import SoftEntropyCallback

name, texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
with open(texts, encoding="utf-8") as lines:
    rows = [tokenizer(line.strip(), truncation=True, max_length=256) for line in lines]
trainer = Trainer(
    model=AutoModelForCausalLM.from_pretrained(name),
    args=TrainingArguments("out/trainer", num_train_epochs=1, eval_strategy="epoch", save_strategy="no", report_to=[]),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_dataset=rows[len(rows) // 4 :],
    eval_dataset=rows[: len(rows) // 4],
)
trainer.add_callback(SoftEntropyCallback(trainer, labels=["input_unigram", "output_unigram"]))
before, _ = trainer.evaluate(), trainer.train()
after = trainer.evaluate()
for metric in (key for key in before if "/" in key):
    print(f"{metric}: {before[metric]:.4f} before, {after[metric]:.4f} after")
