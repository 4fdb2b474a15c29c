"""Find a checkpoint on disk or on the hub, download its files and check them before they are loaded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from softh_probe.choices import Choices
from softh_probe.errors import InputError, abbreviated, first_sentence
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, model_error

_SAFE, _PICKLE = "model.safetensors", "pytorch_model.bin"  # sharded: the same name and ".index.json"
# The base of the HTTP client's errors; which client that is changes with huggingface_hub's version.
_HTTP_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", hub_errors.HfHubHTTPError)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Location of a checkpoint: a local folder, or the hub.

    Attributes:
        name: the model as the user wrote it; its hub id if `folder` is None.
        revision: branch, tag or commit on the hub; None is the default branch.
        folder: the local folder.
        gguf_file: name of the .gguf file in `folder`, if the checkpoint is one.
    """

    name: str
    revision: str | None = None
    folder: Path | None = None
    gguf_file: str | None = None


def resolve_model(model: str, *, revision: str | None = None, need_weights: bool = True) -> ModelSource:
    """Locate a model without loading or downloading anything.

    >>> resolve_model("EleutherAI/pythia-160m", revision="step1000").revision
    'step1000'

    Args:
        model: a local folder, a .gguf file or a hub id; an existing path takes precedence over a hub id.
        revision: branch, tag or commit of a hub id.
        need_weights: raise an error for a folder without weights.

    Raises:
        InputError: no such path; a folder without config.json or weights, or with several .gguf files; a revision of a
            local model.
    """
    path = os.path.expanduser(model)
    if os.path.exists(path):
        if revision is not None:
            raise InputError(f"revision {revision!r}: model {model!r} is local and has none; leave it out")
        return _resolve_local(model, Path(path).absolute(), need_weights)
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1:
        raise model_error(model, "no such file or folder; check the path, or give a hub id")
    try:
        validate_repo_id(model)
    except hub_errors.HFValidationError as error:
        raise model_error(model, "no such path, and no hub id; expected a path or owner/name") from error
    return ModelSource(name=model, revision=revision)


def _resolve_local(name: str, path: Path, need_weights: bool) -> ModelSource:
    if path.is_file():
        if path.suffix != ".gguf":
            raise model_error(name, "is a file; give its folder (with config.json), or a .gguf file")
        return ModelSource(name=name, folder=path.parent, gguf_file=path.name)
    has_config, has_weights = (path / "config.json").is_file(), any(_weight_files(path)) or bool(_variants(path))
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if ggufs and not (has_config and has_weights):
        if len(ggufs) > 1:
            raise model_error(name, f"the folder has several .gguf files; name one: {', '.join(ggufs)}")
        return ModelSource(name=name, folder=path, gguf_file=ggufs[0])
    if not has_config:
        expected = "expected what save_pretrained writes, or one .gguf file"
        if (path / "adapter_config.json").is_file():
            expected = "it is an adapter: merge it into its base model and save that"
        raise model_error(name, f"folder {path} has no config.json; {expected}")
    if need_weights and not has_weights:
        raise model_error(name, f"folder {path} has no weights; expected {_SAFE} beside config.json")
    return ModelSource(name=name, folder=path)


def _weight_files(folder: Path, variant: str | None = None) -> tuple[list[str], list[str]]:
    """List the names of the (safetensors, pickle) files that transformers would load; shards as in the index."""

    def files(name: str) -> list[str]:
        single, index = _with_variant(name, variant), folder / _with_variant(f"{name}.index.json", variant)
        if (folder / single).is_file() or not index.is_file():
            return [single] if (folder / single).is_file() else []
        with as_input_error(f"file {index}", "copy or download it again", TypeError, AttributeError):
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))

    return files(_SAFE), files(_PICKLE)


def _with_variant(name: str, variant: str | None) -> str:
    """Insert a variant into a file's name, as transformers does.

    >>> _with_variant("model.safetensors", "fp16"), _with_variant("model.safetensors.index.json", "fp16")
    ('model.fp16.safetensors', 'model.safetensors.index.fp16.json')
    """
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


def _variants(folder: Path) -> list[str]:
    """List the variants of weights in a folder, such as fp16."""
    pattern = re.compile(
        r"(?:model|pytorch_model)\.([^.-]+)\.(?:safetensors|bin)|model\.safetensors\.index\.([^.]+)\.json"
    )
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return sorted({found[1] or found[2] for name in names if (found := pattern.fullmatch(name))})


def check_weights(
    name: str, folder: Path, allow_pickle: bool, *, variant: str | None = None, choices: Choices | None = None
) -> list[str]:
    """List the weight files of a folder after checking them; safetensors take precedence over pickles.

    Args:
        name: the model's name, for errors.
        folder: the checkpoint's folder.
        allow_pickle: allow pickle files, which can hold code.
        variant: variant of the weights, such as fp16.
        choices: records which of several sets of weights was taken.

    Raises:
        InputError: files are missing or damaged, or pickles that are not allowed; shards that no index lists; an
            adapter beside the weights.
    """
    safe, pickled = _weight_files(folder, variant)
    if not safe and not pickled and (others := [other for other in _variants(folder) if other != variant]):
        hint = f"add --model-kwargs '{json.dumps({'variant': others[0]})}'" if not variant else "name one of these"
        raise model_error(name, f"folder {folder} holds weights of the variant {' and '.join(others)} only; {hint}")
    if not safe and pickled and not allow_pickle:
        problem = f"its weights are pickles ({abbreviated(pickled)}), which can carry code"
        raise model_error(name, f"{problem}; convert them to safetensors, or add --allow-pickle")
    files = safe or pickled or [_with_variant(_SAFE, variant)]
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise model_error(name, f"folder {folder} has no {abbreviated(missing)}; copy or download it again")
    for file in safe:  # opening compares the file's length with its header
        with as_input_error(f"model {name!r}: damaged file {folder / file}", RELOAD_HINT):
            safe_open(folder / file, framework="pt").__exit__(None, None, None)
    if (folder / "adapter_config.json").is_file():  # transformers would add the adapter without a word
        raise model_error(
            name, f"folder {folder} holds an adapter beside the weights; merge it and save that, or move its files away"
        )
    _check_shards(name, folder, files, variant, choices)
    return files


def weight_paths(source: ModelSource, *, variant: str | None = None) -> list[Path]:
    """List the weight files of a checkpoint on this machine; none where it is not here.

    Args:
        source: the checkpoint.
        variant: variant of the weights, such as fp16.

    Raises:
        InputError: an index of shards is damaged.
    """
    folder = source.folder
    if source.gguf_file and folder is not None:
        return [folder / source.gguf_file]
    if folder is None:
        try:
            folder = Path(snapshot_download(source.name, revision=source.revision, local_files_only=True))
        except hub_errors.LocalEntryNotFoundError:
            return []
    safe, pickled = _weight_files(folder, variant)
    return [path for name in safe or pickled if (path := folder / name).is_file()]


def weights_at_hand(source: ModelSource, allow_pickle: bool, *, variant: str | None = None) -> bool:
    """Tell whether all weights of a checkpoint are on this machine, in its folder or in the hub's cache."""
    if source.gguf_file:
        return True
    try:
        folder = source.folder or Path(snapshot_download(source.name, revision=source.revision, local_files_only=True))
        check_weights(source.name, folder, allow_pickle, variant=variant)
    except (InputError, hub_errors.LocalEntryNotFoundError):
        return False
    return True


def _check_shards(name: str, folder: Path, files: list[str], variant: str | None, choices: Choices | None) -> None:
    """Check that no shard is left out by the index; record shards beside a whole file."""
    stem, ending = files[0].split("-")[0].removesuffix(Path(files[0]).suffix), Path(files[0]).suffix
    shards = sorted(file.name for file in folder.glob(f"{stem}-*-of-*{ending}"))
    unread = [shard for shard in shards if shard not in files]
    if not unread:
        return
    if files != [f"{stem}{ending}"]:
        remedy = "copy or download model.safetensors.index.json again, or remove shards of another checkpoint"
        raise model_error(name, f"folder {folder} holds {abbreviated(unread)}, which its index does not list; {remedy}")
    if choices is not None:
        reason = f"as transformers does; the folder also holds {abbreviated(unread)}, which are not read"
        choices.add("weights", files[0], reason)


def fetch_weights(
    source: ModelSource, *, trust_remote_code: bool, allow_pickle: bool, variant: str | None = None
) -> Path:
    """Download the config and the weights that will be loaded, in one of the formats of the repository.

    Args:
        source: a checkpoint on the hub.
        trust_remote_code: fetch Python files too.
        allow_pickle: fetch pickles where there are no safetensors.
        variant: variant of the weights, such as fp16.

    Returns:
        The cache folder, named by the commit.

    Raises:
        InputError: the repository cannot be reached, or has no config.json or no weights that are allowed.
    """
    folder = fetch(source, small_files(trust_remote_code))
    if not (folder / "config.json").is_file():
        remedy = "give a transformers model; a .gguf file has to be downloaded and given by its path"
        raise model_error(source.name, f"the hub has no config.json of it; {remedy}")
    pinned = replace(source, revision=folder.name)
    safe, pickled = _weight_files(folder, variant)  # as the indices say, which are among the small files
    whole, whole_pickle = _with_variant(_SAFE, variant), _with_variant(_PICKLE, variant)
    folder = fetch(pinned, ["config.json", *(safe or [whole])])
    if not _weight_files(folder, variant)[0]:
        if not allow_pickle:
            raise model_error(source.name, f"no {whole} on the hub; if it has {whole_pickle}, add --allow-pickle")
        folder = fetch(pinned, ["config.json", *(pickled or [whole_pickle])])
    return folder


def small_files(code: bool) -> list[str]:
    """List patterns of a repository's files beside its weights: configs, tokenizers, indices of shards.

    Args:
        code: include Python files.
    """
    endings = ["json", "txt", "model", "jinja", "tiktoken", "bpe", "codes", "spm", "vocab", "tokenizer"]
    return [f"*.{ending}" for ending in endings + ["py"] * code]


def fetch(source: ModelSource, patterns: list[str]) -> Path:
    """Download files of a repository's root that are not in the hub's cache.

    Args:
        source: a checkpoint on the hub.
        patterns: patterns of file names.

    Returns:
        The cache folder, named by the commit.

    Raises:
        InputError: no such repository or revision, no access, or no connection.
    """
    name, revision, deeper = source.name, source.revision, "*/*"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=deeper))
    except hub_errors.GatedRepoError as error:
        remedy = "ask for it on the model's page, then log in with 'hf auth login'"
        raise model_error(name, f"access is restricted by its owner; {remedy}") from error
    except hub_errors.RepositoryNotFoundError as error:
        remedy = "check the name, or log in with 'hf auth login' if it is private"
        raise model_error(name, f"no such path here and no such model on the hub; {remedy}") from error
    except hub_errors.RevisionNotFoundError as error:
        remedy = "see 'Files and versions' on the model's page"
        raise model_error(name, f"has no revision {revision!r}; {remedy}") from error
    except (hub_errors.LocalEntryNotFoundError, _HTTP_ERROR) as error:
        reason = first_sentence(error.__cause__ or error)
        problem = f"no such path here, not in the hub's local cache, and no download ({reason})"
        remedy = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder"
        raise model_error(name, f"{problem}; {remedy}") from error
