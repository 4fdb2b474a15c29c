"""Read the files of a folder one after the other into a meter, and count what they hold."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from softh_probe.errors import InputError
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.damage import DamagedFileError, Skipped
from softh_probe.ingest.feeding import feed_file
from softh_probe.ingest.files import ListedFile
from softh_probe.ingest.prepared import Prepared
from softh_probe.ingest.spec import require_unchanged
from softh_probe.labels import parse_label_sets, shortest_document
from softh_probe.meter import SoftEntropyMeter
from softh_probe.run.snapshots import SnapshotTimer


class FileReading:
    """Read the files one after the other, and count what they hold.

    Attributes:
        skipped: the files that are damaged.
        n_short: files with too few tokens for a position to count.
    """

    def __init__(self, config: IngestConfig, found: Prepared, meter: SoftEntropyMeter) -> None:
        self.skipped = Skipped()
        self.n_short = 0
        self._config, self._found, self._files, self._meter = config, found, found.files, meter
        self._n_vocabulary = max(found.tokenizer.get_vocab().values()) + 1
        self._shortest = shortest_document(parse_label_sets(config.labels))
        self._bar: Any = None

    def run(self, done: int, timer: SnapshotTimer, *, progress: bool) -> None:
        """Read the files that are not done.

        Args:
            done: number of files that are.
            timer: is called after each file.
            progress: show a progress bar.
        """
        n_before = sum(max(0, file.size) for file in self._files[:done])
        n_tokens, began = 0, time.monotonic()
        with (
            choices_told_later(),
            torch.inference_mode(),
            tqdm(
                total=self._found.n_bytes,
                initial=n_before,
                desc="read",
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=not progress,
                file=sys.stderr,
            ) as self._bar,
        ):
            for file in self._files[done:]:
                n_tokens += self._read(file)
                n_before += max(0, file.size)
                done += 1
                self._bar.update(n_before - self._bar.n)
                rate = n_tokens / max(1e-9, time.monotonic() - began)
                self._bar.set_postfix_str(
                    f"{done:,}/{len(self._files):,} files, {self.skipped.n:,} skipped, {rate:,.0f} tok/s", refresh=False
                )
                timer(done)

    def _read(self, file: ListedFile) -> int:
        """Read one file; returns its number of tokens, 0 where it is skipped."""
        try:
            with self._found.spec.open(file) as states:
                per_token = file.size / (2 * states.n_tokens)
                feed_file(
                    self._meter,
                    states,
                    name=file.name,
                    labels=file.labels,
                    n_vocabulary=self._n_vocabulary,
                    piece=self._found.piece,
                    device=self._found.device,
                    confirm=lambda: require_unchanged(file),
                    after_piece=lambda n: self._bar.update(n * per_token),
                )
                self.n_short += states.n_tokens < self._shortest
                return states.n_tokens
        except DamagedFileError as error:
            self.skipped.add(file.name, error)
            return 0

    def require_some(self) -> None:
        """Check that some file was measured.

        Raises:
            InputError: none was, or all of them are too short.
        """
        n = len(self._files)
        if self.skipped.n == n:
            raise InputError(f"folder: none of {n:,} files can be measured: {self.skipped.reasons()}")
        if self.n_short == n - self.skipped.n:
            raise InputError(
                f"labels: every sequence is too short: one position needs {self._shortest} tokens; ask for lower "
                "n-gram orders"
            )

    def corpus_info(self) -> dict[str, Any]:
        """Describe the files for a result (JSON values)."""
        n = len(self._files)
        return {
            "data": self._config.folder,
            "documents_read": n,
            "documents": n - self.skipped.n,
            "documents_too_short": self.n_short,
        }

    def warnings(self) -> list[str]:
        """Say which files were skipped, and how many are too short."""
        found = self.skipped.warnings(len(self._files))
        if self.n_short:
            found.append(
                f"{self.n_short:,} of {len(self._files):,} sequences are shorter than the {self._shortest} tokens that "
                "one position needs, and were left out"
            )
        return found

    def state(self) -> dict[str, Any]:
        """Give what `restore` reads (JSON values)."""
        return {**self.skipped.to_json(), "n_short": self.n_short}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a snapshot; an empty one is that of the beginning."""
        if state:
            self.skipped, self.n_short = Skipped.from_json(state), state["n_short"]


@contextmanager
def choices_told_later() -> Iterator[None]:
    """Silence the warnings of a meter: its choices are in the result, and told at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
