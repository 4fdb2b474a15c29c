"""Sweep checkpoints from Python: python scripts/launch_sweep.py 'RUN/checkpoint-*' TEXTS OUT [local|slurm]"""

import sys

import pandas as pd

from softh_probe.sweep import SweepConfig, sweep

if __name__ == "__main__":
    model, data, out, *launcher = sys.argv[1:]
    config = SweepConfig(
        model=model,  # with hub ids, revision="step*" takes branches and tags
        data=data,
        out=out,
        labels=["input_unigram", "output_unigram"],
        launcher=launcher[0] if launcher else "local",
    )
    outcome = sweep(config)  # the same call again does what is left
    for point, failure in outcome.failed:
        print(f"{point.checkpoint}: {failure.reason}")
    table = pd.read_parquet(f"{out}/sweep.parquet")  # checkpoint, step, layer, name, label_set, metric, value, sd …
    entropy = table[table.metric == "entropy"].pivot_table(index="name", columns="step", values="value", sort=False)
    print(entropy.to_string(float_format="{:.4f}".format))
    sys.exit(1 if outcome.failed else 0)
