"""The feed of a planned run: the corpus is tokenised and planned before the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from softh_probe.choices import Choice
from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus
from softh_probe.data.prepared import read_corpus
from softh_probe.hashing import arrays_sha256
from softh_probe.kept import Kept
from softh_probe.planned.held_sets import unknown_intervals
from softh_probe.planned.memory import place_sums
from softh_probe.planned.plan import Plan
from softh_probe.planned.prepared import plan_run
from softh_probe.planned.second_pass import SecondPass
from softh_probe.planned.sums_memory import SumsMemory
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.feed import evenly_chosen, placing
from softh_probe.run.forward import Batch, planned_batches
from softh_probe.run.processes import Processes
from softh_probe.run.provenance import corpus_info, too_short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PlannedFeed:
    """Tokenise a corpus, and plan its batches and rows; a `Feed`.

    Args:
        config: the run, with `tokens_per_batch` and `max_length`.
        tokenizer: the model's tokenizer.
        processes: those that share the batches.
        choices: what was chosen while the tokenizer was loaded.
        progress: show a progress bar.
        kept: keeps tokens and plan in memory, for the runs that follow.

    Raises:
        InputError: the data cannot be read, or the tokenizer does not fit it.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        processes: Processes,
        *,
        choices: Iterable[Choice],
        progress: bool,
        kept: Kept | None = None,
    ) -> None:
        self._config, self._processes, self._kept = config, processes, kept
        self.trial = read_corpus(config, tokenizer, choices=choices, progress=progress, kept=kept)
        self.rows: Plan
        self._unknown: tuple[Choice, ...] = ()

    @property
    def choices(self) -> Iterable[Choice]:
        """What was chosen for the user, for tokenizer and data, and what intervals are not known once it is planned."""
        return [*self.trial.choices, *self._unknown]

    @property
    def n_longer(self) -> int:
        """Documents longer than `max_length`."""
        return self.trial.n_truncated

    @property
    def n_batches(self) -> int:
        """Batches of this process."""
        return len(self._share)

    @property
    def n_tokens(self) -> int:
        """Tokens of the batches of this process."""
        return sum(int(self.trial.lengths[self.rows.batches[index]].sum()) for index in self._share)

    @property
    def n_defined(self) -> int:
        """Positions that count without policies of positions."""
        return self.rows.population.n_defined

    def group(self, batching: str) -> None:
        """Plan batches in one of the `BATCHINGS`, or load the plan from the cache."""
        self.rows = plan_run(self._config, self.trial, self._processes.n_shares, batching, self._kept)
        if self._config.intervals:
            self._unknown = tuple(unknown_intervals(self.rows, self._config.label_rows))

    def describe_corpus(self) -> str:
        """Describe the documents."""
        return f"corpus: {self.trial.n_documents:,} documents, {self.trial.n_tokens:,} tokens"

    def describe_batches(self) -> str:
        """Describe the batches, and the intervals."""
        batches = f"{len(self.rows.batches):,} batches of up to {self._config.tokens_per_batch:,} tokens"
        found = f"plan: {self.rows.n_positions:,} positions in {batches}{self._processes.describe_sharing()}"
        if not self._config.intervals:
            return found
        second = SecondPass(self.rows, self._config.interval_documents)
        documents = f"{len(second.documents):,} of {second.n_documents:,} documents"
        return f"{found}; intervals of {', '.join(['entropy', *second.measured])} by a second pass over {documents}"

    def sizes(self) -> dict[str, int | None]:
        """Give the number of documents, tokens, positions and batches."""
        return {
            "documents": self.trial.n_documents,
            "tokens": self.trial.n_tokens,
            "positions": self.rows.n_positions,
            "batches": len(self.rows.batches),
        }

    def place_sums(
        self,
        devices: Mapping[str, torch.device],
        needed: Mapping[str, int] | None = None,
        widths: Mapping[str, int | None] | None = None,
    ) -> SumsMemory:
        """Decide where the sums of each layer go."""
        settings = placing(self._config, self._processes)
        return place_sums(self.rows, devices, needed=needed, widths=widths, **settings)

    def fingerprint(self) -> dict[str, Any]:
        """Identify tokens, columns and batches."""
        return {
            "corpus": self.trial.sha256,
            "columns": arrays_sha256(*(column.ids for column in self.trial.columns.values())),
            **({"counted": self.trial.counted_sha256} if self.trial.counted is not None else {}),
            "batches": arrays_sha256(*self.rows.batches),
        }

    def batches(self, first: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give the batches of this process's share; the documents were checked before."""
        return planned_batches(self.rows, self._share[first:])

    def some_batches(self, n: int, check: Callable[[Corpus], None]) -> Iterator[Batch]:
        """Give some batches of this process's share, evenly chosen."""
        return planned_batches(self.rows, evenly_chosen(self._share, n))

    def state(self) -> dict[str, Any]:
        """Give nothing: all is read."""
        return {}

    def join(self, probe: SoftEntropyProbe) -> None:
        """Add up the sums of all shares, in which labels have the same rows; with intervals, in every process."""
        processes = self._processes
        if processes.measures and processes.n_shares > 1:
            probe.merge_shares(processes.add_all if self._config.intervals else processes.add_others)
        if processes.is_first:
            probe.retire()

    def corpus_info(self) -> dict[str, Any]:
        """Describe the corpus."""
        digests = {name: getattr(self.trial, name) for name in ("sha256", "chained_sha256", "texts_sha256")}
        commit = self.trial.data_commit
        left_out = {"n_too_short": self.rows.n_too_short, "n_left_out": self.rows.n_left_out}
        return corpus_info(self._config, commit, digests, self.trial, **left_out)

    def warnings(self) -> list[str]:
        """Say how many documents are too short."""
        return too_short(self._config, self.rows.n_too_short, self.rows.n_left_out, self.trial.n_documents)

    @property
    def _share(self) -> range:
        return self.rows.shares[self._processes.share]
