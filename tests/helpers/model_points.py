"""Made-up models as points of the information plane."""

import numpy as np

from softh_probe.analysis.model_points import ModelPoint, PointValue

FAMILIES = ("llama", "qwen2", "gpt_neox", "gemma3_text", "olmo2")
RAW, CORRECTED = "mutual_information", "mutual_information_corrected"


def values_of(x: float, y: float, *, order="unigram", corrected=0.7, sd=0.005) -> dict[tuple[str, str], PointValue]:
    """A model's informations about the n-grams of an order, its optimality and its entropy."""
    return {
        ("", "entropy"): PointValue(value=0.8, sd=sd),
        (f"input_{order}", RAW): PointValue(value=x, sd=sd),
        (f"output_{order}", RAW): PointValue(value=y, sd=sd),
        (f"input_{order}", CORRECTED): PointValue(value=corrected * x, sd=sd),
        (f"output_{order}", CORRECTED): PointValue(value=corrected * y, sd=sd),
        (order, "optimality"): PointValue(value=y / x, sd=sd),
    }


def models(n: int, seed: int = 0) -> list[ModelPoint]:
    """Models of several families and sizes, in a cloud below the bound."""
    random = np.random.default_rng(seed)
    x = 0.35 + 0.05 * random.standard_normal(n)
    y = x * (0.6 + 0.08 * random.standard_normal(n))
    sizes = 10 ** random.uniform(7.5, 10.5, n)
    return [
        ModelPoint(
            name=f"{FAMILIES[i % 5]}-{('base', 'instruct', 'v2')[i % 3]}-{i}",
            model=f"org/model-{i}",
            family=FAMILIES[i % 5],
            n_parameters=int(sizes[i]),
            values=values_of(float(x[i]), float(y[i])),
        )
        for i in range(n)
    ]


def training_run(steps, model="org/small", *, shift=0.0, n_parameters=160_000_000) -> list[ModelPoint]:
    """Checkpoints of one run, in the order of `steps`: they learn of what they read, and later forget some of it."""
    found = []
    for step in steps:
        t = np.log1p(step) / 12
        x, y = 0.2 + 0.3 * min(t, 0.6) - 0.15 * max(0, t - 0.6) + shift, 0.05 + 0.2 * t + shift / 2
        found.append(
            ModelPoint(
                name=f"{model.rpartition('/')[2]}-step{step}",
                model=model,
                revision=f"step{step}",
                series=model,
                step=step,
                family="gpt_neox",
                n_parameters=n_parameters,
                values=values_of(float(x), float(y)),
            )
        )
    return found
