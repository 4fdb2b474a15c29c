"""The running sums of every layer of a model, each on the device of its layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import dropwhile, islice, takewhile
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from softh_probe.accumulators.dispatch import Dispatch, MergeMap, Regrouping
from softh_probe.accumulators.host_offload import HostWorker
from softh_probe.accumulators.layer_sums import CENTER, LayerStack, LayerSums
from softh_probe.accumulators.row_labels import RowLabels, TableSizes
from softh_probe.errors import InputError, ProbeError
from softh_probe.estimators.anchors import Anchors
from softh_probe.estimators.given_anchors import GivenAnchors
from softh_probe.estimators.projection import Projection
from softh_probe.layer_places import RESIDUAL, SITES, is_centered, layer_of

#: Layers whose sums lie in one tensor: tables of a stack grow together, and briefly take the memory of both.
MOST_IN_STACK = 8


class ModelSums:
    """Create, hold and merge the sums of the layers of one model.

    A layer's state is that of `LayerSums`, and that of its sums with other anchors behind "other.0." and so on.

    Args:
        sizes: gives the sizes of a new layer's sums.
        n_anchors, calibration: of the anchors.
        anchor_sets, seed, anchors: as `SoftEntropyProbe` takes them.
        others: sums of the same positions with other anchors, of which every method takes care, too.
        alone: whether they stand for themselves; others have no sum of unit vectors and no bins of positions.
        centers: means that rows of centered states subtract, by name of the layer; those of their first states if none.

    Attributes:
        measured: names of the layers that have counted a position, or were loaded.
        others: as above.

    Raises:
        InputError: no anchors can be drawn with these settings.
    """

    def __init__(
        self,
        sizes: Callable[[], TableSizes],
        *,
        n_anchors: int,
        anchor_sets: int,
        seed: int,
        anchors: str | GivenAnchors,
        calibration: str | float,
        others: Sequence[ModelSums] = (),
        alone: bool = True,
        centers: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.measured: set[str] = set()
        self.others = tuple(others)
        self._alone, self._given_centers = alone, centers
        self._sizes = sizes
        self._anchor_settings: dict[str, Any] = {
            "n_anchors": n_anchors,
            "n_sets": anchor_sets,
            "seed": seed,
            "kind": anchors,
            "calibration": calibration,
        }
        self._layers: dict[str, LayerSums] = {}
        self._anchors: dict[int, Anchors] = {}
        self._projections: dict[tuple[int, torch.device], Projection] = {}
        self._on_host: frozenset[str] = frozenset()
        self._host = HostWorker()
        self._given = anchors if isinstance(anchors, GivenAnchors) else None
        # Settings that no anchors can be drawn with fail here, not in a hook.
        self._anchors_of(self._given.widths[0] if self._given else 3)
        self._anchors.clear()

    def __getitem__(self, layer: str) -> LayerSums:
        return self._layers[layer]

    def values(self) -> Iterable[LayerSums]:
        """Sums of all layers, in the order in which they were made."""
        return self._layers.values()

    def of(
        self,
        layer: str,
        hidden: Tensor,
        expected: Callable[[], Mapping[str, tuple[int | None, torch.device]]] = dict,
    ) -> LayerSums:
        """Find the sums that hidden states are added to, on the device of the hidden states.

        Args:
            layer: the layer's name.
            hidden: [..., D].
            expected: gives width and device of the layers that are measured, in their order, as far as they are known:
                sums of layers that will follow this one are made together with it.

        Raises:
            ProbeError: the layer's states had another width before.
        """
        sums, kind = self._layers.get(layer), (hidden.shape[-1], hidden.device)
        if sums is not None and sums.dim != kind[0] and layer in self.measured:
            raise ProbeError(f"{layer}: expected hidden states of width {sums.dim}, got {list(hidden.shape)}")
        if sums is None or (sums.dim, sums.device) != kind:
            self._make(layer, kind, expected())
        self.measured.add(layer)
        return self._layers[layer]

    def reserve(self, expected: Mapping[str, tuple[int | None, torch.device]], on_host: Collection[str] = ()) -> None:
        """Take the memory of the sums before the model runs.

        Args:
            expected: as in `of`; a width of None reserves nothing.
            on_host: layers whose label tables go to host memory although the layer is on an accelerator.
        """
        for other in self.others:
            other.reserve(expected, on_host)
        self._on_host = frozenset(on_host)
        for layer, (dim, device) in expected.items():
            if dim is not None and layer not in self._layers:
                self._make(layer, (dim, device), expected)

    def drop(self, numbers: Iterable[int]) -> None:
        """Discard the waiting positions of sequences that ended, by the numbers of these sequences."""
        for number in numbers:
            for sums in self._all():
                sums.drop(number)

    def regroup(self, moved: Regrouping) -> None:
        """Keep waiting positions of all layers under another number."""
        for sums in self._all():
            sums.regroup(moved)

    def move_rows(
        self, dispatch: Dispatch, changed: Collection[LayerSums] = (), added: Collection[LayerSums] = ()
    ) -> None:
        """Move the live rows and documents of layers that lack the states of a batch: later batches find them moved.

        Args:
            dispatch: that of the batch.
            changed: sums whose label tables the batch was added to; added: likewise of their documents.
        """
        labels = dispatch.on_host
        if not labels.moves_rows:
            return
        done = set(map(id, changed))
        for sums in self._all():
            if id(sums) not in done:
                sums.tables.grow("live", labels.n_live)
                sums.tables.move(labels.freed_rows, labels.left_rows, labels.taken_rows)
        if labels.emptied_slots is not None:
            done = set(map(id, added))
            for sums in self._all():
                if id(sums) not in done:
                    sums.take_documents(labels.n_documents, labels.emptied_slots.to(sums.documents.device))

    def centers(self, layers: Iterable[str]) -> dict[str, Tensor]:
        """Give the means that rows of centered states subtract [D], on the CPU, by name of the layer."""
        named = ((name, self._layers[name].center) for name in layers if name in self._layers)
        return {layer_of(name): mean.cpu() for name, mean in named if mean is not None}

    def require_same_centers(self, other: ModelSums) -> None:
        """Refuse sums of states that other means were subtracted from.

        Raises:
            InputError: they are other ones.
        """
        ours, theirs = self.centers(self._layers), other.centers(other._layers)
        for layer in ours.keys() & theirs.keys():
            if not torch.equal(ours[layer], theirs[layer]):
                raise InputError(
                    "merge: states minus different means cannot be added; give both probes the same ones, as in "
                    "SoftEntropyProbe(model, center=first.centers)"
                )

    def merge(self, other: ModelSums, rows: MergeMap) -> None:
        """Add the sums of another part of the data; `rows` maps its rows to rows here."""
        for ours, theirs_too in zip(self.others, other.others, strict=True):
            ours.merge(theirs_too, rows)
        kinds = {layer: (of.dim, self._layers.get(layer, of).device) for layer, of in other._layers.items()}
        for layer, theirs in other._layers.items():
            if layer not in self._layers:
                self._make(layer, kinds[layer], kinds)
            self._layers[layer].merge(theirs, rows)
        for layer in self._layers.keys() - other._layers.keys():
            self._layers[layer].tables.make_room(rows)
            self._layers[layer].merge_documents(None, rows)
        self.measured |= other.measured

    def merge_shares(self, layers: Iterable[str], add_others: Callable[[Tensor], None]) -> None:
        """Add the sums of all other shares of a planned run.

        Args:
            layers: names of the layers, in the same order in every process.
            add_others: adds to a tensor in host memory, in place, the tensors of all other shares.
        """
        layers = list(layers)
        for other in self.others:
            other.merge_shares(layers, add_others)
        for layer in layers:
            sums = self._layers[layer]
            state = {key: tensor.cpu() for key, tensor in sums.state_dict().items()}
            for key, tensor in state.items():
                if key != CENTER:  # all shares have the same
                    add_others(tensor)
            sums.load_state_dict(state)

    def retire(self, layers: Iterable[str], rows: RowLabels) -> None:
        """Add live rows to their buckets, in layers that are given by name; the rows stay as they are."""
        for layer in layers:
            for sums in (self, *self.others):
                sums[layer].retire(rows)

    def state(self, layers: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give the state of each of the layers that were measured, copied when its turn comes."""
        return ((layer, self._state_of(layer)) for layer in layers if layer in self.measured)

    def load(self, layers: Mapping[str, Mapping[str, Any]], live_rows: Tensor | None = None) -> None:
        """Replace all sums by the states of layers; memory that was reserved for them is used.

        Args:
            layers: the states by name.
            live_rows: the live rows of the states that are taken, in their order here; None for all.
        """
        for i, other in enumerate(self.others):
            other.load({layer: _of_other(state, i) for layer, state in layers.items()}, live_rows)
        dims = {layer: state["dim"] for layer, state in layers.items()}
        self._layers = {layer: sums for layer, sums in self._layers.items() if dims.get(layer) == sums.dim}
        here = {layer: sums.device for layer, sums in self._layers.items()}
        kinds = {layer: (dim, here.get(layer, torch.device("cpu"))) for layer, dim in dims.items()}
        for layer, state in layers.items():
            if layer not in self._layers:
                self._make(layer, kinds[layer], kinds)
            sums = self._layers[layer]
            sums.waiting.clear()
            sums.waiting_units.clear()
            sums.load_state_dict(state, live_rows)
        self._layers = {layer: self._layers[layer] for layer in layers}
        self.measured = set(self._layers)

    def describe_anchors(self, site_of: Mapping[str, str]) -> list[dict[str, Any]]:
        """Describe the anchors of each width, for a result (JSON values).

        Args:
            site_of: the site of each layer; where these are several, every width has its own (`sites`).
        """
        described = [self._anchors[dim].describe() for dim in sorted(self._anchors)]
        if set(site_of.values()) <= {RESIDUAL}:
            return described
        widths = {(site, self._layers[layer].dim) for layer, site in site_of.items()}
        return [{**one, "sites": [site for site in SITES if (site, one["dim"]) in widths]} for one in described]

    def _all(self) -> Iterator[LayerSums]:
        return (layer for sums in (self, *self.others) for layer in sums.values())

    def _state_of(self, layer: str) -> dict[str, Any]:
        state = {"dim": self._layers[layer].dim, **self._layers[layer].state_dict()}
        for i, other in enumerate(self.others):
            state |= {f"other.{i}.{key}": tensor for key, tensor in other[layer].state_dict().items()}
        return state

    def _make(self, layer: str, kind: tuple[int, torch.device], expected: Mapping[str, object]) -> None:
        """Make the sums of a layer, and of those of its kind that follow it and have none, as many as a stack takes.

        Those that were on another device are moved.

        Args:
            layer: the layer's name.
            kind: width and device.
            expected: those of layers that follow one another.
        """
        on_host = layer in self._on_host

        def is_alike(name: str) -> bool:
            sums = self._layers.get(name)
            is_there = sums is not None and sums.device == kind[1]
            return not is_there and expected[name] == kind and (name in self._on_host) == on_host

        following = takewhile(is_alike, dropwhile(lambda name: name != layer, expected))
        made = self._stacked(list(islice(following, MOST_IN_STACK)) or [layer], *kind)
        for name, sums in made.items():
            if name in self._layers and self._layers[name].dim == sums.dim:
                sums.take_over(self._layers[name])
        self._layers |= made

    def _stacked(self, layers: Sequence[str], dim: int, device: torch.device) -> dict[str, LayerSums]:
        """Make the sums of some layers, whose tables are on the device or in host memory, all of them."""
        anchors = self._anchors_of(dim)
        if (dim, device) not in self._projections:
            with torch.inference_mode(False):
                points_SMD = anchors.points_SMD.to(device)
                self._projections[dim, device] = Projection(points_SMD, anchors.temperature)
        sizes = self._sizes()
        stack = LayerStack(
            self._projections[dim, device],
            n_layers=len(layers),
            host=self._host if layers[0] in self._on_host else None,
            sizes=sizes if self._alone else replace(sizes, bins=()),
            with_direction=self._alone,
        )
        found = {layer: LayerSums(stack, i, centers=is_centered(layer)) for i, layer in enumerate(layers)}
        for layer, sums in found.items():
            if sums.centers and self._given_centers:
                sums.center = self._center_of(layer_of(layer), dim).to(device, copy=True)
        return found

    def _center_of(self, layer: str, dim: int) -> Tensor:
        found = self._given_centers.get(layer)
        if found is None or len(found) != dim:
            got = "none" if found is None else f"one of {len(found)}"
            raise ProbeError(f"center: expected a vector of {dim} numbers for {layer}, got {got}")
        return found

    def require_widths(self, widths: Mapping[str, int]) -> None:
        """Check that there are anchors for states of some widths, by name of the layer.

        Raises:
            InputError: there are none.
        """
        for layer, dim in widths.items():
            try:
                self._anchors_of(dim)
            except InputError as error:
                raise InputError(f"{layer}: {error}") from error
        for other in self.others:
            other.require_widths(widths)

    def _anchors_of(self, dim: int) -> Anchors:
        if dim not in self._anchors:
            if self._given is not None:
                settings = {name: self._anchor_settings[name] for name in ("n_anchors", "calibration")}
                self._anchors[dim] = Anchors.take(self._given, dim=dim, **settings)
            else:
                self._anchors[dim] = Anchors.sample(dim=dim, **self._anchor_settings)
        return self._anchors[dim]


def _of_other(state: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Take the state of a layer's sums with other anchors out of the layer's."""
    start = f"other.{i}."
    own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    return {"dim": state["dim"], **own}
