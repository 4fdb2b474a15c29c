"""What a run is told: one checkpoint, one corpus, how to measure."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any

import yaml

from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.anchors import KINDS
from softh_probe.estimators.calibration import resolve_temperature
from softh_probe.labels import parse_label_sets
from softh_probe.redaction import holds_secret

#: Fields that say where results go and how they are computed, not what is measured.
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
        "trust_remote_code",
        "allow_pickle",
    )
)

#: Least and most of whole numbers. Beyond them temperatures are not known, or positions no longer fit 32 bits.
_RANGES = {
    "n_anchors": (2, 65_536),
    "anchor_sets": (1, 1024),
    "max_length": (2, 2**31 - 1),
    "tokens_per_batch": (1, 2**31 - 1),
    "max_documents": (1, 2**31 - 1),
}
_MOST = 1e15  # of what need not be whole


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One checkpoint, one corpus, and how to measure. Lists may be written with commas: `a,b`."""

    model: str
    """Checkpoint: a hub id (owner/name), a local folder, or a .gguf file. Of an encoder-decoder, its encoder is run."""
    revision: str | None = None
    """Branch, tag or commit of a hub checkpoint; null is its default branch."""
    dtype: str = "auto"
    """Number format of the weights: float32, bfloat16, float16, or auto: float32 on a CPU, else the checkpoint's."""
    device_map: str | None = None
    """Where the model lives: cpu, cuda:0, …, or auto to spread it by accelerate; null is one accelerator if there
    is one, else the CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. It can do anything you can: read it first."""
    allow_pickle: bool = False
    """Load weights from pickle files (pytorch_model.bin) where there are no safetensors."""
    data: str
    """Corpus: a hub id, a local .txt, .jsonl, .json, .csv or .parquet file, or a folder of them."""
    subset: str | None = None
    """Configuration of a hub data set that has several, such as `en` of allenai/c4."""
    split: str | None = None
    """Split of the data set; null is its only one, else `train`."""
    text_column: str | None = None
    """Column of the text or conversation; several (chosen,rejected) make one document each, labelled by
    column:text_column; null infers it (text, content, messages, …)."""
    sample_by: str = "line"
    """What a document is in .txt files: line, paragraph or document (the whole file)."""
    max_documents: int | None = None
    """Rows of the data set to read; null reads all."""
    max_length: int = 512
    """Tokens a document (or window) has at most."""
    overflow: str = "truncate"
    """What happens to longer documents: truncate, or split into successive windows."""
    labels: str | Sequence[str] = ("input_unigram", "output_unigram")
    """Label sets: input_ or output_ with unigram, bigram, trigram or quadgram, and column:NAME for a column of the
    data set; empty counts every token and measures entropy alone."""
    per_label: str | Sequence[str] = ()
    """Label sets of which results show the entropy of every single label (input_unigram, say); columns of up to
    1,000 values always do."""
    n_anchors: int = 100
    """Anchors a set: points on the unit sphere onto which hidden states are softly assigned."""
    anchors: str = "iid"
    """How anchors are drawn: iid, independently, as published; antithetic, in pairs w and -w, with which entropies
    vary less from one draw to the next."""
    anchor_sets: int = 1
    """Independent sets of anchors, measured in the same pass; the spread over them is the results' sd."""
    seed: int = 0
    """Seed of the first set of anchors; set s uses seed + s."""
    calibration: float | str = "exact"
    """Temperature of the soft assignment: exact, leading_order, or the temperature itself as a number."""
    layers: str | Sequence[str | int] | None = None
    """Rows to measure: embeddings, layer.1, …, final_norm, or their indices (-1 the last); null measures all."""
    tokens_per_batch: int | None = None
    """Tokens a forward pass takes at most, padding included; null is 1,024 on a CPU and 8,192 elsewhere."""
    sums_memory_gb: float | None = None
    """Memory that sums may take on each device, in GiB; what exceeds it on an accelerator goes to host memory. null
    is four fifths of what is free."""
    cache: str = "auto"
    """Folder that keeps tokenised corpora and plans of rows for the next run on them; auto is softh_probe in your
    cache folder, none keeps nothing."""
    out: str
    """Folder for the results; it appears when they are whole."""
    report: bool = True
    """Write report.html and figures too; `softh-probe report` does so later."""
    overwrite: bool = False
    """Replace the results of an earlier run in that folder, or an unfinished run of another configuration."""
    resume: bool = True
    """Go on from the last snapshot where the folder holds an unfinished run of the same configuration; false starts
    it anew."""
    snapshot_minutes: float = 10.0
    """Minutes between snapshots of an unfinished run, which never take more than 1% of its time; 0 writes one only
    when it is stopped (SIGTERM, SIGUSR1, Ctrl-C)."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            if holds_secret(getattr(self, field.name)):
                raise InputError(
                    f"{field.name}: holds a secret (an access token, or a password in a URL), which results and logs "
                    "would carry on; give it in the environment (HF_TOKEN), or log in with 'hf auth login'"
                )
        object.__setattr__(self, "labels", _names(self.labels))
        object.__setattr__(self, "layers", None if self.layers is None else _rows(self.layers))
        object.__setattr__(self, "per_label", _names(self.per_label))
        parse_label_sets(self.labels)
        for name in self.per_label:
            if name not in self.labels:
                raise InputError(f"per_label: expected names among labels ({', '.join(self.labels)}), got {name!r}")
        for name in ("model", "data", "out"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected a name, got nothing")
        for name, (least, most) in _RANGES.items():
            check_range(name, getattr(self, name), least, most)
        check_range("seed", self.seed, -(2**63), 2**63 - self.anchor_sets)
        check_positive("sums_memory_gb", self.sums_memory_gb)
        if not 0 <= self.snapshot_minutes <= _MOST:
            raise InputError(f"snapshot_minutes: expected 0 or more, got {short_repr(self.snapshot_minutes)}")
        for name, valid in (
            ("anchors", KINDS),
            ("overflow", ("truncate", "split")),
            ("sample_by", ("line", "paragraph", "document")),
        ):
            if getattr(self, name) not in valid:
                raise InputError(f"{name}: expected {' or '.join(valid)}, got {getattr(self, name)!r}")
        resolve_temperature(self.calibration, self.n_anchors, dim=2)


def plain_config(config: RunConfig) -> dict[str, Any]:
    """The configuration as values that JSON and YAML know."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def config_yaml(config: RunConfig) -> str:
    """The configuration as a file that `softh-probe run --config` takes."""
    return yaml.safe_dump(plain_config(config), sort_keys=False, allow_unicode=True)


def tokens_per_batch_on(device: str) -> int:
    """Tokens a forward pass takes by default: few enough for a CPU's caches, enough to fill an accelerator."""
    return 1024 if device == "cpu" else 8192


def check_types(config: Any) -> None:
    """Refuse what YAML, JSON or Python code put into a field that takes something else.

    Raises:
        InputError: a value of another type, or a name with a NUL in it, which no file can have.
    """
    kind: Any = type(config)
    for name, hint in type_hints(kind).items():
        value = getattr(config, name)
        if not _is(value, hint):
            raise InputError(f"{name}: expected {in_words(hint)}, got {short_repr(value)}")
        for text in [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ():
            if "\0" in str(text):
                raise InputError(f"{name}: expected a name, got one that holds a NUL character: {text!r}")


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Refuse a whole number that is too small or too large; None is the default."""
    if value is not None and value < least:
        raise InputError(f"{name}: expected at least {least}, got {short_repr(value)}")
    if value is not None and value > most:
        raise InputError(f"{name}: expected at most {most}, got {short_repr(value)}")


def check_positive(name: str, value: float | None) -> None:
    """Refuse a number that is not above 0, or that no memory, time or corpus has; None is the default."""
    if value is not None and not 0 < value <= _MOST:
        raise InputError(f"{name}: expected more than 0 and at most {_MOST:g}, or null, got {short_repr(value)}")


@cache
def type_hints(config: Any) -> dict[str, Any]:
    """Type of each field of a class of configurations."""
    return typing.get_type_hints(config)


def in_words(hint: Any) -> str:
    """A field's type, as an error says it.

    >>> in_words(str | Sequence[str | int] | None)
    'str, a list of str or int, or null'
    """
    if typing.get_origin(hint) in (typing.Union, UnionType):
        *most, last = (in_words(part) for part in typing.get_args(hint))
        lists = any(" " in word for word in most)
        return f"{', '.join(most)}{',' * lists} or {last}"
    if typing.get_origin(hint) is Sequence:
        return f"a list of {in_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is Mapping:
        return f"a mapping of {' to '.join(map(in_words, typing.get_args(hint)))}"
    return {NoneType: "null", bool: "true or false"}.get(hint, hint.__name__)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that configurations use."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return any(_is(value, part) for part in parts)
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(_is(item, parts[0]) for item in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(_is(k, parts[0]) and _is(v, parts[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _rows(value: str | Sequence[str | int]) -> tuple[str | int, ...]:
    """Names and indices of rows."""
    rows = _names(value) if isinstance(value, str) else tuple(value)
    if not rows:
        raise InputError("layers: expected at least one, got none; null measures all")
    return tuple(int(row) if re.fullmatch(r"-?\d{1,9}", str(row)) else row for row in rows)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names from a list, or from text with commas."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return tuple(value)
