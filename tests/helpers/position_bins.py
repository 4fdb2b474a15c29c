"""Corpora whose positions are measured in bins, and a module whose states depend on the position."""

import numpy as np
import torch
from torch import nn

from softh_probe import SoftEntropyProbe
from softh_probe.data.corpus import pad_batch
from softh_probe.planned.plan import Plan
from softh_probe.planned.position_bins import plan_bins
from tests.helpers.probes import planned


def planned_in_bins(corpus, names, tokens_per_batch, per_label=(), **settings) -> Plan:
    """Plan a corpus and its bins of positions.

    Args:
        settings: n_shares, label_rows and seed, as `Plan` takes them.
    """
    batches = planned(corpus, names, tokens_per_batch).batches
    sets = planned(corpus, names, tokens_per_batch).label_sets
    plan = Plan(corpus, sets, batches, per_label, **settings)
    plan.bins = plan_bins(plan, batches, per_label, **settings)
    return plan


def bin_of(place: int) -> str:
    """Name the bin of a place, by doubling."""
    first, width = 0, 1
    while place >= first + width:
        first, width = first + width, max(1, first + width)
    return str(first) if width == 1 else f"{first}-{first + width - 1}"


class Planted(nn.Module):
    """States that are noise, a vector of each token as strong as the position's bin, and a vector of the bin.

    Args:
        strength_B: of the token's vector in each bin.
        drift: of the bin's vector.
    """

    def __init__(self, strength_B, drift: float, vocabulary: int = 20, dim: int = 24) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Parameter(torch.randn(vocabulary, dim, generator=generator))
        self.bins = nn.Parameter(torch.randn(len(strength_B), dim, generator=generator))
        self.strength_B, self.drift = torch.tensor(strength_B), drift
        self.eval()
        self.noise = torch.Generator().manual_seed(1)

    def forward(self, input_ids, attention_mask):
        place_T = torch.arange(input_ids.shape[1])
        bin_T = torch.tensor([int(place).bit_length() for place in place_T])
        noise = torch.randn(*input_ids.shape, self.tokens.shape[1], generator=self.noise)
        planted = self.strength_B[bin_T].unsqueeze(1) * self.tokens[input_ids] + self.drift * self.bins[bin_T]
        return noise + planted


def measured(module: nn.Module, plan: Plan, **settings) -> SoftEntropyProbe:
    """Measure the states of a module by a plan."""
    probe = SoftEntropyProbe(module, n_anchors=20, plan=plan, modules={"planted": module}, anchor_sets=1, **settings)
    with probe, torch.inference_mode():
        for i, docs in enumerate(plan.batches):
            ids, mask = pad_batch(plan.corpus, docs)
            with probe.batch(plan.batch(i)):
                module(input_ids=ids, attention_mask=mask)
    return probe


def tokens_of_lengths(lengths, vocabulary: int = 20, seed: int = 0) -> list[list[int]]:
    """Random token sequences of these lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocabulary, size=length).tolist() for length in lengths]
