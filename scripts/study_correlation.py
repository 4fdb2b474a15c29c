"""Coverage of the bootstrap intervals of correlations: do 95% of them hold the planted ρ?

    python scripts/study_correlation.py                    # some 3 minutes on a core
    python scripts/study_correlation.py --draws 500        # a short one

Models are drawn whose metric and score are bivariate normal with correlation ρ. Printed is the share of intervals that
hold it, by number of models and ρ: of Pearson's and Spearman's correlation (Spearman's ρ is then 6/π arcsin(ρ/2)), of
Pearson's given a control that drives both sides, and, beside them, of plain percentile intervals of the same resamples.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import pandas as pd
from tqdm import tqdm

from softh_probe.analysis.correlation import correlations
from softh_probe.analysis.correlation_intervals import Resamples

MODELS = (10, 20, 47)
PLANTED = (0.0, 0.5, 0.8)
N_RESAMPLES = 2000


def draw(n_models: int, rho: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a metric, a score and a control [n_models, 1]; metric and score have correlation rho given the control."""
    metric, noise, control = random.standard_normal((3, n_models, 1))
    return metric, rho * metric + math.sqrt(1 - rho**2) * noise, control


def covers(n_models: int, rho: float, seed: int) -> dict[str, bool]:
    """Tell of one draw of models which intervals hold the correlation that was planted."""
    metric, score, control = draw(n_models, rho, np.random.default_rng((seed, n_models, round(100 * rho))))
    found = correlations(metric, score, n_resamples=N_RESAMPLES, seed=seed)
    driven = correlations(metric + control, score + control, control, n_resamples=N_RESAMPLES, seed=seed)
    true = {"pearson": rho, "spearman": 6 / math.pi * math.asin(rho / 2), "partial_pearson": rho}
    found |= {"partial_pearson": driven["partial_pearson"]}
    held = {name: bool(found[name].low_XY[0, 0] <= value <= found[name].high_XY[0, 0]) for name, value in true.items()}
    columns = np.concatenate([metric, score], axis=1)
    for name in ("pearson", "spearman"):
        ranked = name == "spearman"
        drawn, _ = Resamples(columns, (1, 1), ranked=ranked, n_resamples=N_RESAMPLES, seed=seed).plain
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        held[f"{name}, percentiles"] = bool(low <= true[name] <= high)
    return held


def coverage(n_models: int, rho: float, n_draws: int) -> dict[str, float]:
    """Compute the share of draws whose interval holds the planted correlation, by kind."""
    held = pd.DataFrame([covers(n_models, rho, seed) for seed in range(n_draws)])
    return {str(name): float(share) for name, share in held.mean().items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Coverage of the bootstrap intervals of correlations.")
    parser.add_argument("--draws", type=int, default=2000, help="draws of models for each number of models and ρ")
    draws = parser.parse_args().draws
    cells = [(n_models, rho) for n_models in MODELS for rho in PLANTED]
    rows = [
        {
            "models": n_models,
            "ρ": rho,
            **{name: f"{share:.1%}" for name, share in coverage(n_models, rho, draws).items()},
        }
        for n_models, rho in tqdm(cells)
    ]
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
