"""Check that a loaded model is what its files hold: nothing is missing, and nothing inside the body is left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from softh_probe.choices import Choices
from softh_probe.errors import abbreviated
from softh_probe.models.constants import is_computed
from softh_probe.models.fingerprint import is_pooler
from softh_probe.models.loading_errors import model_error
from softh_probe.models.stored import StoredTensors
from softh_probe.patching import replaced

#: Heads of files whose names have no prefix for the body.
_HEADS = re.compile(r"(\w*head|score|classifier|cls|qa_outputs|embed_out|mtp)")
_PREDICTION = re.compile(r"(^|\.)(mtp\w*|nextn\w*)(\.|$)")
_SCALES = re.compile(r"(^|\.)([kv]_scale|kv_scale|k_proj\.output_scale|v_proj\.output_scale)$")
_TOWERS = re.compile(
    r"(^|\.)(visual|vision_\w+|image_\w+|audio_\w+|speech_\w+|multi_modal_\w+|mm_\w+|talker|token2wav|code2wav)(\.|$)"
)
#: Names of .gguf files for what is inside a body.
_GGUF = re.compile(r"(blk|enc|dec|token_\w+|output_norm|position_embd|rope_\w+)\.")
_NUMBER = re.compile(r"(.*?)\.(\d+)\.")


@contextmanager
def left_over_names() -> Iterator[set[str]]:
    """Collect the names that transformers does not load inside the block, those included that it does not report."""
    found: set[str] = set()

    def adjust(original: Callable[..., Any], model: nn.Module, info: Any, *args: Any) -> Any:
        found.update(getattr(info, "unexpected_keys", ()))
        return original(model, info, *args)

    with replaced(PreTrainedModel, "_adjust_missing_and_unexpected_keys", adjust):
        yield found


def check_nothing_missing(name: str, loaded: nn.Module, body: nn.Module, report: Mapping[str, Any]) -> None:
    """Check that the checkpoint holds all weights of a model's body (`loaded` or a part of it).

    Raises:
        InputError: weights are missing, or have another shape than config.json says.
    """
    prefix = path_of(loaded, body)
    tensors = {**dict(loaded.named_parameters(remove_duplicate=False)), **dict(loaded.named_buffers())}
    # By identity: tied weights have several names.
    inside = {id(tensor) for tensor in (*body.parameters(), *body.buffers())}
    # Tensors that the model computes itself; some classes declare them under the names they have behind a head.
    not_stored = getattr(loaded, "_keys_to_ignore_on_load_missing", None) or ()

    def counts(key: str) -> bool:
        if is_pooler(key) or any(declared.endswith(f".{key}") for declared in not_stored):
            return False
        by_name = key.startswith(f"{prefix}." if prefix else "")
        return id(tensors[key]) in inside if key in tensors else by_name

    missing = sorted(key for key in report["missing_keys"] if counts(key))
    misfits = sorted(
        f"{key} {tuple(stored)} instead of {tuple(expected)}"
        for key, stored, expected in report["mismatched_keys"]
        if counts(key)
    )
    if missing or misfits:
        problem = f"the files lack {abbreviated(missing)}" if missing else f"wrong shapes: {abbreviated(misfits)}"
        remedy = "get config.json and weights from one source, whole"
        raise model_error(name, f"weights do not fit config.json, {problem}; {remedy}")


def check_nothing_left_out(
    name: str,
    loaded: PreTrainedModel,
    body: nn.Module,
    left_over: set[str],
    stored: StoredTensors,
    choices: Choices,
) -> None:
    """Check that the files hold nothing inside the body that is not loaded.

    Heads, and what a model computes itself, may be left out. Modules that predict several tokens, towers for images and
    the like, and scales of quantized caches may be, too; `choices` records them.

    Args:
        name: the model's name, for errors.
        loaded: the model as loaded, perhaps with a head.
        body: the part of it that is measured.
        left_over: names that were not loaded, as `left_over_names` collects them.
        stored: what the files hold.
        choices: records what was left out.

    Raises:
        InputError: weights inside the body are left over; config.json has another shape than they.
    """
    inside = [key for key in sorted(left_over) if is_inside(loaded, body, key, stored.files) and not is_pooler(key)]
    optional = {key for key in inside if _is_optional(key, body, inside)}
    left_out = [key for key in inside if key not in optional and not _is_known(key, stored, loaded)]
    if left_out:
        problem = "the files hold weights inside the model that config.json does not tell of"
        remedy = "get config.json and weights from one source (biases, number of layers, quantization_config, …)"
        if _GGUF.match(left_out[0]):
            problem = f"the file holds tensors that transformers {transformers.__version__} does not read"
            remedy = "give the checkpoint's safetensors"
        raise model_error(name, f"{problem}: {abbreviated(left_out)}; {remedy}")
    parts = sorted(key for key in optional if "lm_head" not in key.split("."))
    if parts:
        reason = "no part of the layers that read text: towers for other inputs, prediction of several tokens, caches"
        choices.add("weights left out", abbreviated(parts), reason, certain=True)


def path_of(outer: nn.Module, inner: nn.Module) -> str:
    """Find the path of a module inside another one; empty for itself."""
    paths: dict[nn.Module, str] = {module: path for path, module in outer.named_modules()}
    return paths[inner]


def is_inside(loaded: PreTrainedModel, body: nn.Module, key: str, names: Iterable[str]) -> bool:
    """Test by its name whether a stored tensor that was not loaded belongs to the body of a model."""
    if _GGUF.match(key):
        return True
    own = path_of(loaded, body)
    base = loaded.base_model_prefix
    has_base = bool(base) and hasattr(loaded, base)
    prefixed = bool(base) and key.startswith(f"{base}.")
    if prefixed and not has_base:  # the files are those of a class with a head
        key = key.removeprefix(f"{base}.")
        return not own or _under(key, own)
    if has_base and not prefixed and hasattr(getattr(loaded, base), key.partition(".")[0]):
        key = f"{base}.{key}"
    if own:
        return _under(key, own)
    first = key.partition(".")[0]
    if hasattr(body, first):
        return not _HEADS.fullmatch(first)
    with_head = bool(base) and any(name.startswith(f"{base}.") for name in names)
    return not with_head and not _HEADS.fullmatch(first)


def _under(key: str, path: str) -> bool:
    return key.startswith(f"{path}.")


def _is_optional(key: str, body: nn.Module, all_keys: list[str]) -> bool:
    """Test for modules that predict further tokens, towers for other inputs, and scales of quantized caches."""
    if _PREDICTION.search(key) or _SCALES.search(key) or "lm_head" in key.split("."):
        return True
    block = _NUMBER.match(key)
    if block and any(name.startswith(f"{block[0]}eh_proj.") for name in all_keys):  # DeepSeek's, after the last block
        n_layers = getattr(getattr(body, "config", None), "num_hidden_layers", None)
        return isinstance(n_layers, int) and int(block[2]) >= n_layers
    tower = _TOWERS.search(key)
    return tower is not None and not any(tower[2] in path.split(".") for path, _ in body.named_modules())


def _is_known(key: str, stored: StoredTensors, loaded: nn.Module) -> bool:
    """Test whether a left-over tensor holds what the model computes; transformers may have renamed it."""
    name = key if key in stored.files else _same_end(key, stored.files)
    return name is not None and is_computed(key, stored.read(name), loaded)


def _same_end(key: str, names: Iterable[str]) -> str | None:
    """Find the name that ends as another one does from its number of the block on."""
    block = re.search(r"\d+\..*$|[^.]+\.[^.]+$", key)
    found = [name for name in names if block and name.endswith(block[0])]
    return found[0] if len(found) == 1 else None
