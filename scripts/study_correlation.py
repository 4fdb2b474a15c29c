"""Coverage of the bootstrap intervals of correlations: do 95% of them hold the planted ρ?

    python scripts/study_correlation.py                    # some 4 minutes on a core
    python scripts/study_correlation.py --draws 200        # a short one

Models are drawn whose metric and score are bivariate normal with correlation ρ. Printed is the share of intervals that
hold it, by number of models and ρ: of Pearson's and Spearman's correlation (Spearman's ρ is then 6/π arcsin(ρ/2)), of
both given a control that drives both sides, and, beside them, of plain percentile intervals of the same resamples.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import pandas as pd

from softh_probe.analysis.correlation import correlations
from softh_probe.analysis.correlation_intervals import Resamples

MODELS = (10, 20, 47)
PLANTED = (0.0, 0.5, 0.8)
N_RESAMPLES = 1000


def draw(n_models: int, rho: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a metric, a score and a control [n_models, 1]; metric and score have correlation rho given the control."""
    metric, noise, control = random.standard_normal((3, n_models, 1))
    return metric, rho * metric + math.sqrt(1 - rho**2) * noise, control


def covers(n_models: int, rho: float, seed: int, n_resamples: int) -> dict[str, bool]:
    """Tell of one draw of models which intervals hold the correlation that was planted."""
    metric, score, control = draw(n_models, rho, np.random.default_rng((seed, n_models, round(100 * rho))))
    found = correlations(metric, score, n_resamples=n_resamples, seed=seed)
    driven = correlations(metric + control, score + control, control, n_resamples=n_resamples, seed=seed)
    both, one = _spearman((rho + 1) / 2), _spearman(math.sqrt(0.5))  # with each other, and with the control
    given = (both - one**2) / (1 - one**2)
    true = {"pearson": rho, "spearman": _spearman(rho), "partial_pearson": rho, "partial_spearman": given}
    found |= {kind: of for kind, of in driven.items() if kind.startswith("partial_")}
    held = {name: bool(found[name].low_XY[0, 0] <= value <= found[name].high_XY[0, 0]) for name, value in true.items()}
    columns = np.concatenate([metric, score], axis=1)
    for name in ("pearson", "spearman"):
        ranked = name == "spearman"
        drawn, _ = Resamples(columns, (1, 1), ranked=ranked, n_resamples=n_resamples, seed=seed).plain
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        held[f"{name}, percentiles"] = bool(low <= true[name] <= high)
    return held


def _spearman(rho: float) -> float:
    """Give Spearman's correlation of a bivariate normal distribution with correlation rho."""
    return 6 / math.pi * math.asin(rho / 2)


def coverage(n_models: int, rho: float, n_draws: int, *, n_resamples: int = N_RESAMPLES) -> dict[str, float]:
    """Compute the share of draws whose interval holds the planted correlation, by kind."""
    held = pd.DataFrame([covers(n_models, rho, seed, n_resamples) for seed in range(n_draws)])
    return {str(name): float(share) for name, share in held.mean().items()}


def main() -> None:
    """Print a line for each number of models and ρ."""
    parser = argparse.ArgumentParser(description="Coverage of the bootstrap intervals of correlations.")
    parser.add_argument("--draws", type=int, default=1000, help="draws of models for each number of models and ρ")
    draws = parser.parse_args().draws
    for n_models, rho in ((n_models, rho) for n_models in MODELS for rho in PLANTED):
        shares = coverage(n_models, rho, draws)
        print(
            f"{n_models} models, ρ {rho}: " + "; ".join(f"{name} {share:.1%}" for name, share in shares.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
