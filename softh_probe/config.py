"""The configuration of a run: one checkpoint, one corpus, and the settings of the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import yaml

from softh_probe.config_checks import (
    check_model_kwargs,
    check_not_negative,
    check_positive,
    check_range,
    check_secrets,
    check_types,
)
from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.recipes import DEFAULT_ANCHOR_SETS, KINDS, Kind
from softh_probe.estimators.variants import SEVERAL, Variant, several, variants
from softh_probe.labels import COLUMN_PREFIX, DEFAULT_LABEL_ROWS, check_label_rows, parse_label_sets
from softh_probe.layer_places import RESIDUAL, parse_layers, parse_sites, require_residual
from softh_probe.positions import check_labels, parse_positions, positions_text
from softh_probe.presets import Like, check_both_directions, preset_values

#: Fields for where and how results are computed, and for means of what is measured. All others decide what is measured.
EXECUTION_FIELDS = frozenset(
    (
        "out",
        "report",
        "overwrite",
        "resume",
        "snapshot_minutes",
        "cache",
        "sums_memory_gb",
        "device_map",
        "tensor_parallel",
        "trust_remote_code",
        "allow_pickle",
        "mean_over",
    )
)

#: Tokens of a document where neither a configuration nor the model sets fewer.
DEFAULT_MAX_LENGTH = 512

#: Documents from which standard errors over documents are measured.
DEFAULT_INTERVAL_DOCUMENTS = 2048

#: Least and greatest values of whole numbers. Temperatures are known, and positions fit 32 bits, within them.
_RANGES = {
    "anchor_sets": (1, 1024),
    "tensor_parallel": (1, 65_536),
    "max_length": (2, 2**31 - 1),
    "tokens_per_batch": (1, 2**31 - 1),
    "max_documents": (1, 2**31 - 1),
    "interval_documents": (2, 2**31 - 1),
    "max_tokens": (1, 10**15),
    "n_blocks": (1, 10**6),
}

#: Numbers that a file of anchors decides.
_SIZES = ("n_anchors", "anchor_sets")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One checkpoint, one corpus, and the settings of the measurement. Lists may be written with commas: `a,b`."""

    model: str
    """Checkpoint: a hub id (owner/name), a local folder, or a .gguf file. Of an encoder-decoder, the encoder runs."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint; null is its default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights: float32, bfloat16, float16, or auto: float32 on a CPU, else the checkpoint's."""
    device_map: str | None = None
    """Device of the model: cpu, cuda:0, …, or auto, which spreads it over devices by accelerate; null is one
    accelerator if there is one, else the CPU."""
    tensor_parallel: int = 1
    """Processes that hold one model between them, each a part of its weights, by transformers' plan for it;
    torchrun starts this number, or a multiple, of which the models share the batches. 1 is a whole model in each."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. It can do anything you can: read it first."""
    allow_pickle: bool = False
    """Load weights from pickle files (pytorch_model.bin) where there are no safetensors."""
    tokenizer: str | None = None
    """Tokenizer: a hub id, a folder, a tokenizer.json file (alone) or a .gguf file, for a checkpoint without one or in
    place of its own; null is the checkpoint's own."""
    model_kwargs: Mapping[str, Any] | None = None
    """Further arguments of transformers' from_pretrained by name ({attn_implementation: eager}): quantization_config,
    variant, experts_implementation, max_memory, …; null gives none."""
    data: str
    """Corpus: a hub id, a local .txt, .jsonl, .json, .csv, .tsv or .parquet file, or a folder of them. Text is UTF-8;
    other encodings and separators than the format's are refused where they are not certain."""
    data_revision: str | None = None
    """Branch, tag or commit of a data set on the hub; null is its default branch."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as `en` of allenai/c4."""
    split: str | None = None
    """Split of the data set; null is its only one, else `train`."""
    text_column: str | None = None
    """Column of the text or conversation, dotted inside structs (translation.en); several (chosen,rejected) make one
    document each, labelled by column:text_column; null infers it (text, content, messages, …, or the only column that
    can hold text)."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """Unit of .txt files that makes a document: line, paragraph or document (the whole file)."""
    max_documents: int | None = None
    """Rows of the data set to read; null reads all."""
    max_tokens: int | None = None
    """Tokens of the corpus: it ends with the document that reaches them; null reads all. Not the length of a document,
    which is max_length."""
    stream: bool = False
    """Read, tokenise and measure documents as they come, without a plan, so that memory does not grow with the corpus.
    Rows of n-gram labels are then shared by all sets and kept to the end."""
    shuffle_seed: int | None = None
    """Seed of a random order of the rows; with max_documents, of a uniform sample of them, for which the whole split is
    read. null takes the rows in the data's order."""
    max_length: int | None = None
    """Tokens a document (or window) has at most; null is 512, or what the model takes if that is fewer."""
    overflow: Literal["truncate", "split"] = "truncate"
    """Treatment of longer documents: truncate, or split into successive windows."""
    add_special_tokens: bool | None = None
    """Add the tokenizer's special tokens (such as a first <s>) to each text: true or false; null is the tokenizer's
    default. A conversation has those of its chat template alone."""
    chat_template_kwargs: Mapping[str, Any] | None = None
    """Variables of the chat template by name ({enable_thinking: false}), for conversations; null gives none."""
    positions: str = "all"
    """Positions that count, beside that all n-gram labels are defined: all, last (the last token of a document, or of
    each window of a split one, which no output n-gram follows), first:N or skip:N (its first N tokens, or all but
    these), assistant (what the assistant says in a conversation), completion (of a pair such as chosen,rejected what
    follows the common tokens; of columns prompt and completion, which are joined, the latter; text_column
    prompt,chosen,rejected joins the prompt with each). With commas, all have to hold. Labels see the tokens around a
    position in any case."""
    skip_special_tokens: bool = False
    """Leave out positions whose token is one of the tokenizer's special tokens (<s>, <|im_end|>, …)."""
    labels: str | Sequence[str] = ("input_unigram", "output_unigram")
    """Label sets: input_ or output_ with unigram, bigram, trigram or quadgram, and column:NAME for a column of the
    data set; empty counts every token and measures entropy alone."""
    per_label: str | Sequence[str] = ()
    """Label sets whose single labels get an entropy each in results, such as input_unigram; columns of up to 1,000
    values always do."""
    label_rows: int | Literal["all"] = DEFAULT_LABEL_ROWS
    """Rows of n-gram labels that a layer holds at a time, over all sets, or all. Where a corpus needs more, a sample of
    labels is followed, frequent ones always, and values carry the standard error of that (sampling_sd)."""
    permute_within: str | None = None
    """Column of groups, dotted inside structs: chance is what labels of whole documents (column:NAME) give where they
    are exchanged between documents of equal value of this column, or between those without one; null exchanges them
    between all. Labels of column:text_column are exchanged within their row always."""
    intervals: bool = False
    """Measure the standard error of entropy, information, regularity and optimality over documents (se), by a second
    forward pass. Label sets keep their rows for it, up to label_rows more of them; where they do not fit, there is
    none."""
    interval_documents: int | None = DEFAULT_INTERVAL_DOCUMENTS
    """Documents of that second pass, a uniform sample of the rows of the data; null takes all."""
    by_position: bool = False
    """Measure the same metrics also by the position in the document (in the window, where documents are split), in bins
    that double in width: 0, 1, 2-3, 4-7, …; into by_position.csv and .parquet. Each bin has sums of its own, whose
    memory is told before the run; 48 short texts took 1.2 times as long on SmolLM2. Intervals are of all positions
    together."""
    n_anchors: int | str | Sequence[int] = 100
    """Anchors of a set: points on the unit sphere to which hidden states are softly assigned. Several numbers, as in
    100,50,200,400, are measured in the same pass, each with the anchors and the temperature that it has alone: the
    first one is the result, and by_anchors.csv and .parquet have all. Intervals and bins of positions are of the first
    alone."""
    like: Like | None = None
    """Settings by which the numbers of another tool go on: soft-entropy-0.1.5 stands for its anchors, one set of them,
    calibration amos, 128 tokens, float32 and the mean over the layers that it averages, and writes soft_entropy.json
    with its keys. labels have to name both directions of each order. null takes the settings as they are given."""
    anchors: Kind | str = "iid"
    """Sampling of the anchors: iid, independent, from a stream of their own; published, the draw of the published code
    and of versions that recorded no recipe; antithetic, in pairs w and -w, which makes entropies vary less from one
    draw to the next; published_antithetic, the pairs of those versions. Or a .npy, .npz or .safetensors file of your
    own, [M, D] or [S, M, D] of unit rows, one array for each width, which decides n_anchors and anchor_sets."""
    anchors_sha256: str | None = None
    """Digest of the anchors of a file, which a run writes into its config.yaml; the file has to have it."""
    anchor_sets: int = DEFAULT_ANCHOR_SETS
    """Independent sets of anchors, measured in the same pass; their spread is the sd of results. It is unknown
    with one set."""
    seed: int = 0
    """Seed of the first set of anchors; set s uses seed + s."""
    calibration: Literal["exact", "leading_order", "amos"] | float | str | Sequence[str | float] = "exact"
    """Temperature of the soft assignment: exact, leading_order (its limit for wide states), amos (that of soft-entropy
    0.1.5, to continue its numbers), or the temperature itself as a number; or several of these, as n_anchors."""
    layers: str | Sequence[str | int] | None = None
    """Rows to measure: embeddings, layer.1, …, final_norm, or indices (-1 the last), which stand for all sites of a
    layer; null measures all."""
    mean_over: str | Sequence[str | int] | None = None
    """Layers whose mean is the row `mean`, by names and indices as in layers, or a slice of indices (1:-2, which begins
    at 1 and ends before the last but one); null is layer.1 to the last block, as far as they are measured. The mean can
    be taken anew of a finished result: this changes nothing that is measured."""
    sites: str | Sequence[str] = (RESIDUAL,)
    """Places in each block to measure: residual (what the block gives), attention and mlp (what they give, before a
    norm or the residual stream is added), router (logits of a mixture of experts), attention_heads (what each head
    gives to the output projection). Rows are layer.3, layer.3.mlp, layer.3.head.0 (heads count from 0), …"""
    center: bool = False
    """Measure also states minus their mean, as rows layer.3.centered of the site centered: a direction that all states
    share (anisotropy) lowers entropy and every information. The mean is that of a sample of documents, taken by a
    forward pass before the run."""
    modules: str | Sequence[str] | None = None
    """Patterns of paths of modules (model.layers.*.mlp.act_fn) whose outputs are measured in place of blocks, as rows
    of these names: * is one name, ** any number of them; null measures blocks."""
    tokens_per_batch: int | None = None
    """Tokens a forward pass takes at most, padding included; null is 1,024 on a CPU and 8,192 elsewhere."""
    sums_memory_gb: float | None = None
    """Memory that sums may take on each device, in GiB; on an accelerator, the excess goes to host memory. null is
    four fifths of the free memory."""
    cache: str = "auto"
    """Folder that keeps tokenised corpora and their plans for later runs; auto is softh_probe in your cache folder,
    none keeps nothing."""
    out: str
    """Folder for the results; it appears when they are complete."""
    report: bool = True
    """Write report.html and figures too; `softh-probe report` writes them later."""
    overwrite: bool = False
    """Replace the results of an earlier run in that folder, or an unfinished run of another configuration."""
    resume: bool = True
    """Resume from the last snapshot if the folder holds an unfinished run of the same configuration; false starts it
    anew."""
    snapshot_minutes: float = 10.0
    """Minutes between snapshots of an unfinished run, which take at most 1% of its time; 0 writes one only when a
    signal stops the run (SIGTERM, SIGUSR1, Ctrl-C). With intervals, there is one before their pass in any case."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every number of anchors with every calibration; the first one is what the result shows."""
        return variants(self.n_anchors, self.calibration)

    def __post_init__(self) -> None:
        check_secrets(self)
        check_types(self)
        self._split_lists()
        self._apply_preset()
        self._check_names()
        self._check_numbers()

    def _split_lists(self) -> None:
        object.__setattr__(self, "labels", split_names(self.labels))
        object.__setattr__(self, "layers", None if self.layers is None else parse_layers("layers", self.layers))
        if self.mean_over is not None:
            object.__setattr__(self, "mean_over", parse_layers("mean_over", self.mean_over))
        split_calibrations(self)
        object.__setattr__(self, "per_label", split_names(self.per_label))
        object.__setattr__(self, "sites", parse_sites(split_names(self.sites)))
        object.__setattr__(self, "modules", None if self.modules is None else split_names(self.modules))

    def _apply_preset(self) -> None:
        if self.like is None:
            return
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in preset_values(self.like, fields(self), values).items():
            object.__setattr__(self, name, value)
        check_both_directions(self.like, self.labels)

    def _check_names(self) -> None:
        policies = parse_positions(self.positions)
        check_labels(policies, parse_label_sets(self.labels))
        object.__setattr__(self, "positions", positions_text(policies))
        for name in self.per_label:
            if name not in self.labels:
                raise InputError(f"per_label: expected names among labels ({', '.join(self.labels)}), got {name!r}")
        check_label_rows(self.label_rows)
        check_anchors(self)
        self._check_stream()
        self._check_permute_within()
        self._check_modules()
        check_model_kwargs(self.model_kwargs)
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected a name, got nothing")

    def _check_stream(self) -> None:
        """Refuse what needs the whole corpus before the first forward pass."""
        if not self.stream:
            return
        if self.intervals:
            raise InputError(
                "intervals: a stream cannot be read twice, and they need a second pass over its documents; leave out "
                "--intervals, or leave out --stream"
            )
        if self.by_position:
            raise InputError(
                "by_position: a stream does not know the labels of each bin of positions beforehand; leave out "
                "--by-position, or leave out --stream"
            )
        if self.shuffle_seed is not None and self.max_documents is None:
            raise InputError(
                "shuffle_seed: a random order of all rows is none of a stream; give --max-documents too, for a uniform "
                "sample of the rows, or leave out --stream"
            )
        if ngrams := [name for name in self.per_label if not name.startswith(COLUMN_PREFIX)]:
            raise InputError(
                f"per_label: a stream does not keep all labels of {', '.join(ngrams)} to the end; leave it out, or "
                "leave out --stream"
            )

    def _check_modules(self) -> None:
        if self.center:
            require_residual(self.sites)
        if self.modules is None:
            return
        if not self.modules:
            raise InputError("modules: expected at least one pattern, got none; null measures blocks")
        if self.sites != (RESIDUAL,):
            raise InputError("sites: they are those of blocks, and modules are measured instead; leave one of them out")

    def _check_permute_within(self) -> None:
        """Refuse groups where there are no labels to exchange within them."""
        if self.permute_within is None:
            return
        if not self.permute_within:
            raise InputError("permute_within: expected the name of a column, got nothing; leave it out")
        columns = [s.column for s in parse_label_sets(self.labels) if s.direction == "column"]
        if not columns:
            raise InputError(
                "permute_within: it is for labels of whole documents, and labels name no column; add column:NAME to "
                "--labels, or leave it out"
            )
        if set(columns) == {self.permute_within}:
            raise InputError(
                f"permute_within: within equal values of {self.permute_within!r}, column:{self.permute_within} has one "
                "label, which nothing can be exchanged for; name another column, or leave it out"
            )

    def _check_numbers(self) -> None:
        check_numbers(self)
        check_range("shuffle_seed", self.shuffle_seed, -(2**63), 2**63 - 1)


def split_calibrations(config: Any) -> None:
    """Split numbers of anchors and calibrations at commas, in a configuration that is being made."""
    for name in SEVERAL:
        values = several(name, getattr(config, name))
        object.__setattr__(config, name, values[0] if len(values) == 1 else values)


def check_anchors(config: Any) -> None:
    """Read a file of anchors, in a configuration that is being made; the numbers of sets and anchors are then its own.

    Raises:
        InputError: there is no such draw or file, or its anchors are others than before.
    """
    given = None
    if config.anchors not in KINDS:
        from softh_probe.estimators.given_anchors import given_anchors  # imports numpy

        given = given_anchors(config.anchors)
    if given is None and config.anchors not in KINDS:
        kinds = f"{', '.join(KINDS[:-1])}, {KINDS[-1]}"
        raise InputError(f"anchors: expected {kinds}, or a .npy, .npz or .safetensors file, got {config.anchors!r}")
    found = given.sha256 if given else None
    if config.anchors_sha256 not in (None, found):
        raise InputError(
            f"anchors_sha256: expected the anchors with SHA-256 {short_repr(config.anchors_sha256)}, and those of "
            f"{config.anchors} have {found}; name the file they were in, or leave it out"
        )
    object.__setattr__(config, "anchors_sha256", found)
    if given is not None:
        for name, value in zip(_SIZES, given.sizes(config.n_anchors, config.anchor_sets), strict=True):
            object.__setattr__(config, name, value)


def check_numbers(config: Any) -> None:
    """Check the numbers that configurations of measurements have, as far as this one has them.

    Raises:
        InputError: one of them is too small or too large.
    """
    for name, (least, most) in _RANGES.items():
        check_range(name, getattr(config, name, None), least, most)
    for variant in config.variants:
        check_range("n_anchors", variant.n_anchors, 2, 65_536)
    check_range("seed", config.seed, -(2**63), 2**63 - config.anchor_sets)
    check_positive("sums_memory_gb", config.sums_memory_gb)
    check_not_negative("snapshot_minutes", config.snapshot_minutes)
    for variant in config.variants:
        if variant.calibration != "exact":
            from softh_probe.estimators.calibration import resolve_temperature  # imports scipy

            resolve_temperature(variant.calibration, variant.n_anchors, dim=3)


def plain_config(config: Any) -> dict[str, Any]:
    """Convert a configuration to values of JSON and YAML."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def config_yaml(config: Any) -> str:
    """Write a configuration as the YAML that --config of its command reads."""
    return yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)


def tokens_per_batch_on(device: str) -> int:
    """Choose the tokens of a forward pass: few enough for a CPU's caches, enough to fill an accelerator."""
    return 1024 if device == "cpu" else 8192


def split_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Split text at commas; make a tuple of a list.

    >>> split_names("input_unigram, output_unigram")
    ('input_unigram', 'output_unigram')
    """
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value)
