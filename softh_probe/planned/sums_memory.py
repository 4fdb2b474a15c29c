"""The memory of a run's sums, by label set, site and place: for logs, dry runs and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from softh_probe.accumulators.label_sampling import ALL
from softh_probe.layer_places import RESIDUAL, site_of

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class SetSampling:
    """The sample of the labels of one set.

    Attributes:
        followed: labels that take part; None where nobody knows them yet, as in a stream.
        threshold: labels of fewer positions take part by chance, with a probability of positions / threshold.
        expected_se: expected standard error of the set's information by the sampling of labels, in log m; 0 is exact.
    """

    followed: int | None
    threshold: float | None
    expected_se: float | None

    @classmethod
    def together(cls, sets: Iterable[SetSampling]) -> SetSampling:
        """Describe the samples of several sets as one: all their labels, the largest threshold and error."""
        found = list(sets)
        return cls(
            followed=_sum(one.followed for one in found),
            threshold=_max(one.threshold for one in found),
            expected_se=_max(one.expected_se for one in found),
        )


@dataclass(frozen=True, kw_only=True)
class SumsMemory:
    """Size and place of the sums of each layer.

    Attributes:
        bytes_by_set: bytes of one layer's sums for each label set, and for all positions.
        labels_by_set, rows_by_set: distinct labels of each set, None where nobody knows them yet, and its table rows
            when most are in use.
        sampling: the sample of each label set's labels.
        devices: the device of each layer.
        on_host: layers whose tables are in host memory although the layer is on an accelerator.
        budgets: bytes that sums may take on each device and, as "cpu", in host memory.
        anchors: bytes of the anchors on each device, a set of them for each width of hidden states.
        directions: bytes of the sums of unit vectors on each device, one for each layer.
    """

    bytes_by_set: dict[str, int]
    labels_by_set: dict[str, int | None]
    rows_by_set: dict[str, int]
    sampling: dict[str, SetSampling]
    devices: dict[str, torch.device]
    on_host: frozenset[str]
    budgets: dict[str, int]
    anchors: dict[str, int]
    directions: dict[str, int]

    @property
    def bytes_per_layer(self) -> int:
        """Bytes of one layer's sums."""
        return sum(self.bytes_by_set.values())

    @property
    def bytes_by_place(self) -> dict[str, int]:
        """Bytes on each device, and in host memory as "cpu"."""
        places = ["cpu" if layer in self.on_host else str(device) for layer, device in self.devices.items()]
        beside = Counter(self.anchors) + Counter(self.directions)
        return {
            place: places.count(place) * self.bytes_per_layer + beside[place]
            for place in dict.fromkeys([*places, *beside])
        }

    @property
    def rows_by_site(self) -> dict[str, int]:
        """Rows of each site."""
        return dict(Counter(map(site_of, self.devices)))

    def info(self) -> dict[str, object]:
        """Describe the memory for a result's records (JSON values), in GiB, and the sample of labels."""
        n = len(self.devices)
        return {
            "by_label_set_gib": {name: n * size / GIB for name, size in self.bytes_by_set.items()},
            "by_place_gib": {place: size / GIB for place, size in self.bytes_by_place.items()},
            **({"by_site_gib": self._by_site_gib()} if set(self.rows_by_site) != {RESIDUAL} else {}),
            "in_host_memory": sorted(self.on_host),
            "label_sets": {name: asdict(sampling) for name, sampling in self.sampling.items()},
        }

    def _by_site_gib(self) -> dict[str, float]:
        return {site: n * self.bytes_per_layer / GIB for site, n in self.rows_by_site.items()}

    def _describe_sites(self) -> str:
        parts = [
            f"{site} {self.rows_by_site[site]:,} rows, {size:.2f} GiB" for site, size in self._by_site_gib().items()
        ]
        anchors = sum(self.anchors.values())
        return "; ".join(parts) + f"; anchors of all widths {anchors / GIB:.2f} GiB" * bool(anchors)

    def describe(self) -> str:
        """Format a table of the memory of each label set, over all layers, its labels and their sample; and the place.

        Its `se` is the expected standard error of a set's information by the sampling of its labels, in log m.
        """
        n, all_of_it = len(self.devices), SetSampling(followed=0, threshold=ALL, expected_se=0.0)
        sampled = [s for s in self.sampling.values() if s.threshold is None or s.threshold > ALL]
        lines = [_line("label set", "labels", "followed", "rows at once", "se / log m", "GiB")]
        for name, size in self.bytes_by_set.items():
            counts = self.labels_by_set[name], self.rows_by_set[name]
            lines.append(_row(name, *counts, n * size, self.sampling.get(name, all_of_it)))
        whole = SetSampling.together(self.sampling.values()) if sampled else all_of_it
        total = sum(self.bytes_by_place.values())
        counts = _sum(self.labels_by_set.values()), sum(self.rows_by_set.values())
        lines.append(_row("all (largest se)" if sampled else "all", *counts, total, whole))
        places = "; ".join(
            f"{size / GIB:.2f} GiB on {place}, at most {self.budgets[place] / GIB:.1f}"
            for place, size in self.bytes_by_place.items()
        )
        if sampled:
            lines.append("  se: the standard error of the information to be expected of a sample of labels")
        if set(self.rows_by_site) != {RESIDUAL}:
            lines.append(f"  by site: {self._describe_sites()}")
        return "\n".join([*lines, f"  {places}"])


def _line(*cells: str) -> str:
    widths = (12, 12, 14, 13, 8)
    return f"  {cells[0]:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))


def _row(name: str, n_labels: int | None, n_rows: int, size: int, sampling: SetSampling) -> str:
    followed, error = _known(sampling.followed, ","), _known(sampling.expected_se, ".5f")
    if sampling.threshold == ALL:
        followed, error = "all", "exact"
    return _line(name, _known(n_labels, ","), followed, f"{n_rows:,}", error, f"{size / GIB:.2f}")


def _known(number: float | None, spec: str) -> str:
    return "?" if number is None else format(number, spec)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Add numbers; None where one is not known."""
    found = list(numbers)
    return None if None in found else sum(n or 0 for n in found)


def _max(numbers: Iterable[float | None]) -> float | None:
    """Find the largest number; None where one is not known."""
    found = list(numbers)
    return None if None in found else max(n or 0.0 for n in found)
