"""Record pieces of sequences that come from elsewhere: hidden states of all layers in, running sums out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from softh_probe.accumulators.dispatch import DecodeStep
from softh_probe.accumulators.model_sums import ModelSums
from softh_probe.attached.fed_pieces import FedPieces
from softh_probe.attached.fed_states import FedStates
from softh_probe.attached.open_sequences import OpenSequences
from softh_probe.choices import Choice, Choices
from softh_probe.hooks.batch_recorder import BatchRecorder
from softh_probe.layer_places import with_centered


class PieceRecorder(BatchRecorder):
    """Add the hidden states of one update after the other to the sums of their layers.

    Args:
        source: the sequences that are fed.
        sums: the sums of every layer.
        centers: whether states minus their mean are measured, too.

    Attributes:
        n_evicted: sequences that were ended because others came.
    """

    _source: OpenSequences

    def __init__(self, source: OpenSequences, sums: ModelSums, *, centers: bool = False) -> None:
        super().__init__(source, sums, centers=centers)
        self.n_evicted = 0
        self._kinds: list[Any] = []
        self._expected: dict[str, tuple[int, torch.device]] = {}

    def wants(self, layer: str) -> bool:
        """Whether a layer is to be measured: all that are fed."""
        return True

    def expected_layers(self) -> dict[str, tuple[int, torch.device]]:
        """Give width and device of the rows that are fed, in the model's order."""
        return self._expected

    def add(self, pieces: FedPieces, states: FedStates) -> None:
        """Add an update, which was checked."""
        if states.kinds != self._kinds:
            self.flush()
            self._kinds = states.kinds
        self.drain()
        labels = self._source.begin(pieces)
        self.drain()
        rows = {layer: with_centered(layer, centers=self._centers) for layer in states.of_rows}
        kinds = {layer: (hidden.shape[-1], hidden.device) for layer, hidden in states.of_rows.items()}
        self._expected = {row: kinds[layer] for layer, of_layer in rows.items() for row in of_layer}
        if isinstance(labels, DecodeStep):
            places_BT = pieces.tokens.places_BT  # where there is padding
            for layer, hidden in states.of_rows.items():
                real = hidden if places_BT is None else hidden[torch.from_numpy(places_BT.ravel()).to(hidden.device)]
                self._queue_step(rows[layer], real.reshape(*labels.shape, -1))
        else:
            accumulator = self.make_accumulator(labels)
            for layer, hidden in states.of_rows.items():
                self._add(accumulator, rows[layer], hidden)
            self._finish(accumulator)
        self._source.finish()
        self.drain()

    def choices_made(self) -> list[dict[str, Any]]:
        """Give all choices as JSON values, the number of evicted sequences among them."""
        return Choices([*self.choices, *self._evictions()]).to_json()

    def notes(self) -> dict[str, Any]:
        """Give choices and counts as JSON values, for `add_notes`."""
        return {**super().notes(), **({"evicted": self.n_evicted} if self.n_evicted else {})}

    def add_notes(self, notes: Mapping[str, Any]) -> None:
        """Add those of another part of the same measurement."""
        super().add_notes(notes)
        self.n_evicted += notes.get("evicted", 0)

    def _evictions(self) -> list[Choice]:
        if not self.n_evicted:
            return []
        reason = "others came, and most_sequences are open at most; end those that are finished: meter.end(name)"
        return [Choice(about="most_sequences", chosen=f"{self.n_evicted:,} sequences were evicted", reason=reason)]
