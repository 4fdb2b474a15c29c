"""Load the tokenizer of a checkpoint, or another one that is named for it.

    choices = Choices()
    tokenizer = load_tokenizer(resolve_model("EleutherAI/pythia-160m"), choices=choices)

Nothing is taken silently: where the library's class, settings and files disagree, `tokenizer_file` lets tokenizer.json
decide and records it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.choices import Choices
from softh_probe.errors import InputError, is_of_tokenizers
from softh_probe.hashing import file_sha256, text_sha256
from softh_probe.kept import Kept
from softh_probe.models.gguf import follow_gguf
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, quiet_transformers
from softh_probe.models.source import ModelSource, fetch, small_files
from softh_probe.models.tokenizer_file import TOKENIZER_JSON, follow_file

#: Files beside a tokenizer's, which differ from checkpoint to checkpoint.
_OF_TRAINING = ("trainer_state.json", "generation_config.json", "*.index.json", "*_results.json")
#: Folder of further chat templates.
_TEMPLATES = "additional_chat_templates"
_EXPECTED = f"expected a hub id, a folder with a tokenizer's files, a {TOKENIZER_JSON} file or a .gguf file"


def load_tokenizer(
    source: ModelSource,
    *,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    choices: Choices | None = None,
    kept: Kept | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, or the one that is named instead.

        load_tokenizer(resolve_model("EleutherAI/pythia-160m"))("a b").input_ids

    Args:
        source: the checkpoint, as `resolve_model` finds it.
        tokenizer: another tokenizer: a hub id, a folder, a tokenizer.json file (alone, without settings beside it) or
            a .gguf file; an existing path takes precedence over a hub id. None is the checkpoint's own.
        trust_remote_code: allow Python code that comes with the checkpoint or the tokenizer.
        choices: collects what was chosen where files, settings and the library's class disagree.
        kept: keeps the tokenizer for checkpoints with the same files, whose tokenizer nobody may change then.

    Raises:
        InputError: the tokenizer is missing or damaged, or needs code of its own.
    """
    made = Choices()
    key = None if kept is None or trust_remote_code else _key(source, tokenizer)
    found = None if kept is None or key is None else kept.find("tokenizer", key)
    if found is None:
        found = _load_any(source, tokenizer, trust_remote_code, made), made
        if kept is not None and key is not None:
            kept.keep("tokenizer", key, found)
    if choices is not None:
        choices.update(found[1])
    return found[0]


def load_named_tokenizer(tokenizer: str, *, choices: Choices | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer without a checkpoint; no code of its own runs.

        load_named_tokenizer("EleutherAI/pythia-160m")("a b").input_ids

    Args:
        tokenizer: as `load_tokenizer` takes it.
        choices: collects which one it is, and what was chosen where files, settings and the library's class disagree.

    Raises:
        InputError: the tokenizer is missing or damaged, or needs code of its own.
    """
    made = Choices()
    given, name = _load_given(tokenizer, False, made)
    if choices is not None:
        choices.add("tokenizer", name, f"as asked for, {len(given.get_vocab()):,} tokens", certain=True)
        choices.update(made)
    return given


def _key(source: ModelSource, tokenizer: str | None) -> str | None:
    """Digest all that decides which tokenizer is loaded, and what is said of it; None where that is unknown."""
    if source.gguf_file:
        return None
    try:
        folder = source.folder or fetch(source, small_files(False))
    except InputError:  # loading it tells why
        return None
    given = None if tokenizer is None else Path(os.path.expanduser(tokenizer))
    files = [*_files(folder), *(() if given is None else [given] if given.is_file() else _files(given))]
    digests = [(file.name, file_sha256(file)) for file in files]
    # The library knows the tokenizers of some repositories by their names.
    name = source.name if source.folder is None else None
    return text_sha256(json.dumps([name, tokenizer, digests]))


def _files(folder: Path) -> list[Path]:
    """List the files in a folder that a tokenizer may be read from, and the model's config."""
    patterns = small_files(False)
    there = [*folder.glob("*"), *folder.glob(f"{_TEMPLATES}/*")]
    named = [file for file in there if any(fnmatch(file.name, pattern) for pattern in patterns)]
    return sorted(file for file in named if file.is_file() and not any(fnmatch(file.name, n) for n in _OF_TRAINING))


def _load_any(
    source: ModelSource, tokenizer: str | None, trust_remote_code: bool, choices: Choices
) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        where = (
            "" if source.gguf_file else f"put its files ({TOKENIZER_JSON}, tokenizer_config.json) beside config.json"
        )
        remedy = f"{where or RELOAD_HINT}, or name a tokenizer by --tokenizer"
        return _load(source, f"model {source.name!r}: its tokenizer", remedy, trust_remote_code, choices)
    given, name = _load_given(tokenizer, trust_remote_code, choices)
    _tell_given(given, name, _own(source, trust_remote_code), choices)
    return given


def _load_given(tokenizer: str, trust_remote_code: bool, choices: Choices) -> tuple[PreTrainedTokenizerBase, str]:
    """Load a tokenizer that the user names.

    Returns:
        The tokenizer; and its name, with the commit of one of the hub.
    """
    what = f"tokenizer {tokenizer!r}"
    path = Path(os.path.expanduser(tokenizer)).absolute()
    if path.is_file() and path.suffix == ".json":
        with quiet_transformers(), as_input_error(what, _EXPECTED, TypeError), _rust_errors():
            return PreTrainedTokenizerFast(tokenizer_file=str(path)), tokenizer
    source, name = _resolve(tokenizer, path, what), tokenizer
    if source.folder is None:
        try:
            folder = fetch(source, small_files(trust_remote_code))
        except InputError as error:
            raise InputError(f"tokenizer{str(error).removeprefix('model')}") from error
        name = f"{tokenizer} at commit {folder.name}"
    return _load(source, what, _EXPECTED, trust_remote_code, choices), name


def _resolve(tokenizer: str, path: Path, what: str) -> ModelSource:
    """Locate a tokenizer that the user names: a .gguf file, a folder or a hub id."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{what}: no tokenizer is read from a {path.suffix or 'nameless'} file; {_EXPECTED}")
        return ModelSource(name=tokenizer, folder=path.parent, gguf_file=path.name)
    if path.is_dir():
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        has_files = any((path / name).is_file() for name in (TOKENIZER_JSON, "tokenizer_config.json", "config.json"))
        if len(ggufs) == 1 and not has_files:
            return ModelSource(name=tokenizer, folder=path, gguf_file=ggufs[0])
        if not has_files and not any(path.glob("*vocab*")) and not any(path.glob("*.model")):
            raise InputError(f"{what}: the folder holds no tokenizer; {_EXPECTED}")
        return ModelSource(name=tokenizer, folder=path)
    if tokenizer.startswith((".", "/", "~")) or tokenizer.endswith((".gguf", ".json")):
        raise InputError(f"{what}: no such file or folder; {_EXPECTED}")
    try:
        validate_repo_id(tokenizer)
    except hub_errors.HFValidationError as error:
        raise InputError(f"{what}: no such path, and no hub id; {_EXPECTED}") from error
    return ModelSource(name=tokenizer)


def _own(source: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Load a checkpoint's own tokenizer, if it has one that can be read."""
    try:
        return load_tokenizer(source, trust_remote_code=trust_remote_code)
    except InputError:
        return None


def _tell_given(
    given: PreTrainedTokenizerBase, name: str, own: PreTrainedTokenizerBase | None, choices: Choices
) -> None:
    """Record the tokenizer that the user named, and warn if the checkpoint's own has other numbers for tokens."""
    vocabulary = given.get_vocab()
    size = f"{len(vocabulary):,} tokens"
    if own is None:
        choices.add("tokenizer", name, f"as asked for, {size}; the checkpoint has none", certain=True)
        return
    theirs = own.get_vocab()
    if vocabulary == theirs:
        choices.add("tokenizer", name, f"as asked for, {size}, those of the checkpoint's own", certain=True)
        return
    n_others = sum(vocabulary.get(token) != index for token, index in theirs.items())
    of_own = f"the checkpoint's own has {len(theirs):,}, of which {n_others:,} are missing or have other numbers here"
    choices.add("tokenizer", name, f"as asked for, {size}; {of_own}")


def _load(
    source: ModelSource, what: str, remedy: str, trust_remote_code: bool, choices: Choices
) -> PreTrainedTokenizerBase:
    folder = source.folder or fetch(source, small_files(trust_remote_code))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    with quiet_transformers(), as_input_error(what, remedy, TypeError), _rust_errors():
        if not source.gguf_file and not (folder / "config.json").is_file():
            options["config"] = PretrainedConfig()  # a tokenizer without a model
        elif source.folder is None:  # transformers knows the tokenizers of some repositories by their names
            options["config"] = AutoConfig.from_pretrained(folder, **options)
            options["config"].name_or_path = source.name
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
        # Without files, many classes load an empty vocabulary (two word boundaries at most) without an error.
        if tokenizer.vocab_files_names and len(tokenizer) - len(tokenizer.added_tokens_decoder) <= 2:
            raise InputError(f"{what} has no vocabulary; {remedy}")
        if source.gguf_file:
            follow_gguf(tokenizer, folder / source.gguf_file, choices)
            return tokenizer
        if not type(tokenizer).__module__.startswith("transformers."):  # code of its own that the user allowed
            return tokenizer
        return follow_file(tokenizer, folder, choices)


@contextmanager
def _rust_errors() -> Iterator[None]:
    """Raise ValueError for the plain Exception of the tokenizers library (Rust), as for a damaged file."""
    try:
        yield
    except Exception as error:
        if is_of_tokenizers(error):
            raise ValueError(str(error)) from error
        raise
