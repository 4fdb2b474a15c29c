"""The configuration of `softh-probe ingest`: a folder of stored hidden states, and the settings of the measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from softh_probe.config import check_anchors, check_numbers, split_calibrations, split_names
from softh_probe.config_checks import check_secrets, check_types
from softh_probe.errors import InputError
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, Kind
from softh_probe.estimators.variants import Variant, variants
from softh_probe.ingest.row_names import row_names
from softh_probe.labels import DEFAULT_LABEL_ROWS, check_label_rows, parse_label_sets
from softh_probe.layer_places import parse_layers
from softh_probe.positions import check_labels, parse_positions, positions_text


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Hidden states that others stored, and the settings of the measurement. Lists may be written with commas: `a,b`.

    Fields without a text of their own are those of `RunConfig`.
    """

    folder: str
    """Folder of .safetensors and .npz files, each of which holds the hidden states and the tokens of one sequence; they
    are read in the order of a manifest, or of their names. A damaged one is skipped, and the result says why."""
    tokenizer: str
    """Tokenizer of the tokens: a hub id, a folder, a tokenizer.json file or a .gguf file. A file with token ids that it
    does not have is skipped."""
    layout: Literal["vllm", "plain", "rows"] | None = None
    """What the arrays of a file are: vllm (hidden_states [T, L, D] and token_ids [T], T tokens, L layers, as vLLM's
    ExampleHiddenStatesConnector writes each request), plain (hidden_states [L, T, D] and token_ids [T]) or rows
    (token_ids [T] and one array [T, D] for each row, named as it is: layer.1, …). null is what files or manifest say,
    or rows, where there is no hidden_states."""
    layers: str | Sequence[str | int] | None = None
    """Layers that hidden_states holds, in its order: numbers, of which k is the output of block k and 0 the embeddings,
    as vLLM's layer ids are (0-32 stands for 0, 1, …, 32), or names of rows. The last block's output is layer.L; states
    after the final norm, as the last of transformers' hidden_states, are final_norm. vLLM stores layers in the order of
    the model. null is what files or manifest say; of rows, all that the first file holds."""
    manifest: str | None = None
    """File that lists the files in the order in which they are read, a JSON object a line: {"file": "a.npz",
    "language": "de"}, with layout and layers where they say so, and columns of labels; null is manifest.jsonl in the
    folder, if there is one."""
    n_blocks: int | None = None
    """Blocks of the model; null is the last one that files hold."""
    max_documents: int | None = None
    """Files to read, the first ones; null reads all."""
    positions: str = "all"
    """Positions that count, beside that all n-gram labels are defined: all, last (the last token of each sequence),
    first:N or skip:N (its first N tokens, or all but these). With commas, all have to hold. Labels see the tokens
    around a position in any case."""
    skip_special_tokens: bool = False
    labels: str | Sequence[str] = ("input_unigram", "output_unigram")
    """Label sets: input_ or output_ with unigram, bigram, trigram or quadgram, and column:NAME for a column of the
    manifest; empty counts every token and measures entropy alone."""
    label_rows: int | Literal["all"] = DEFAULT_LABEL_ROWS
    n_anchors: int | str | Sequence[int] = 100
    anchors: Kind | str = "iid"
    anchors_sha256: str | None = None
    anchor_sets: int = DEFAULT_ANCHOR_SETS
    seed: int = 0
    calibration: Literal["exact", "leading_order", "amos"] | float | str | Sequence[str | float] = "exact"
    mean_over: str | Sequence[str | int] | None = None
    device_map: str | None = None
    """Device on which states are measured: cpu, cuda:0, …; null is one accelerator if there is one, else the CPU."""
    tokens_per_batch: int | None = None
    """Tokens of a file that are read at a time; longer sequences come in pieces. null is 1,024 on a CPU and 8,192
    elsewhere. Numbers of other pieces differ by rounding alone."""
    sums_memory_gb: float | None = None
    name: str | None = None
    """What was measured, in a few words, by which pages are titled; null is the name of the folder."""
    notes: str | None = None
    """Whatever a reader of the result should know: model, engine, prompts."""
    out: str
    report: bool = True
    overwrite: bool = False
    resume: bool = True
    snapshot_minutes: float = 10.0
    """Minutes between snapshots of an unfinished measurement, which take at most 1% of its time; 0 writes one only when
    a signal stops it (SIGTERM, SIGUSR1, Ctrl-C)."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every number of anchors with every calibration; the first one is what the result shows."""
        return variants(self.n_anchors, self.calibration)

    def __post_init__(self) -> None:
        check_secrets(self)
        check_types(self)
        object.__setattr__(self, "labels", split_names(self.labels))
        for field in ("layers", "mean_over"):
            if (given := getattr(self, field)) is not None:
                object.__setattr__(self, field, parse_layers(field, given))
        if self.layers is not None:
            row_names(self.layers)
        split_calibrations(self)
        for field in ("folder", "tokenizer", "out"):
            if not getattr(self, field):
                raise InputError(f"{field}: expected a name, got nothing")
        policies = parse_positions(self.positions, roles=())
        check_labels(policies, parse_label_sets(self.labels))
        object.__setattr__(self, "positions", positions_text(policies))
        check_label_rows(self.label_rows)
        check_anchors(self)
        check_numbers(self)
