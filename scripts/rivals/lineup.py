"""The estimators that are compared: their settings, the one that is varied, and how many numbers each fits.

Shape suffixes: D width of a hidden state, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rivals.bins import Bins
from rivals.clusters import KMeans, NearestAnchor
from rivals.critics import Club, InfoNce
from rivals.estimator import Estimator
from rivals.ksg import Ksg
from rivals.ours import SoftEntropy
from rivals.renyi import Renyi
from softh_probe.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Rival:
    """An estimator, as the comparison takes it.

    Attributes:
        estimator: with its settings.
        knob: the setting that is halved and doubled; empty where there is none.
        fitted: (width D, labels L) -> how many numbers the method learns from the states before it estimates.
        source: its definition.
    """

    estimator: Estimator
    knob: str
    fitted: Callable[[int, int], int]
    source: str

    @property
    def name(self) -> str:
        return self.estimator.name

    def turned(self, factor: float) -> Estimator:
        """Multiply the knob.

        >>> line_up()[2].turned(0.5).clusters
        50

        Raises:
            InputError: there is no knob.
        """
        if not self.knob:
            raise InputError(f"knob: expected a setting that can be multiplied, got none: {self.name}")
        now = getattr(self.estimator, self.knob)
        return replace(self.estimator, **{self.knob: type(now)(now * factor)})


def line_up(seed: int = 0) -> list[Rival]:
    """List all estimators, ours last."""
    few, components = Bins(seed=seed), Bins(principal=True, seed=seed)
    means, critic, club = KMeans(seed=seed), InfoNce(seed=seed), Club(seed=seed)
    ksg = Ksg(seed=seed)
    return [
        Rival(estimator=few, knob="bins", source="Shwartz-Ziv and Tishby 2017", fitted=lambda d, n: 2 * few.dimensions),
        Rival(
            estimator=components,
            knob="bins",
            source="the same, on principal components",
            fitted=lambda d, n: (components.dimensions + 1) * d + 2 * components.dimensions,
        ),
        Rival(estimator=means, knob="clusters", source="Voita et al. 2019", fitted=lambda d, n: means.clusters * d),
        Rival(
            estimator=NearestAnchor(seed=seed),
            knob="anchors",
            source="soft entropy at temperature 0",
            fitted=lambda d, n: 0,
        ),
        Rival(estimator=Renyi(seed=seed), knob="width", source="Giraldo et al. 2015; σ: median", fitted=lambda d, n: 1),
        Rival(estimator=Renyi(kernel="linear", seed=seed), knob="", source="Skean et al. 2025", fitted=lambda d, n: 0),
        Rival(
            estimator=ksg,
            knob="dimensions",
            source="Ross 2014, on principal components",
            fitted=lambda d, n: (ksg.dimensions + 1) * d,
        ),
        Rival(
            estimator=critic,
            knob="epochs",
            source="van den Oord et al. 2018",
            fitted=lambda d, n: 2 * d + (d + 1 + critic.hidden + 1 + n) * critic.hidden,
        ),
        Rival(
            estimator=club,
            knob="epochs",
            source="Cheng et al. 2020",
            fitted=lambda d, n: 2 * d + (d + 1) * club.hidden + (club.hidden + 1) * n,
        ),
        Rival(
            estimator=SoftEntropy(seed=seed),
            knob="anchors",
            source="Conklin 2025, by softh_probe",
            fitted=lambda d, n: 0,
        ),
        Rival(
            estimator=SoftEntropy(corrected=True, seed=seed),
            knob="anchors",
            source="corrected for small counts, by softh_probe",
            fitted=lambda d, n: 0,
        ),
    ]
