"""Information of layers on a benchmark: python scripts/attach_lm_eval.py MODEL TASK [FOLDER_OF_TASKS]

pip install '.[lm-eval]' first, which also brings softh-probe-lm-eval: the command lm_eval with --model hf-softh.
"""

import sys

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from softh_probe import SoftEntropyProbe

name, task, *folder = sys.argv[1:]
lm = HFLM(pretrained=name, batch_size=8, device="cuda" if torch.cuda.is_available() else "cpu")
with SoftEntropyProbe(lm.model, count="unique_prefix") as probe:  # a context of four answers weighs once
    results = lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=TaskManager(include_path=folder or None))
print(results["results"])
result = probe.result(name=f"{name} on {task}")
print(f"{probe.positions} positions", result.to_pandas().to_string(index=False), sep="\n")
result.save("out/lm_eval")
