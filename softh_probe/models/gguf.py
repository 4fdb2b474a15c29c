"""A .gguf file: checks before memory is allocated, what of it is read, and how its tokenizer splits text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.choices import Choices
from softh_probe.errors import first_sentence, short_repr
from softh_probe.models.loading_errors import RELOAD_HINT, model_error
from softh_probe.patching import replaced


@contextmanager
def gguf_names_read() -> Iterator[set[str]]:
    """Collect the names of tensors of .gguf files that transformers' reader looks for inside the block.

    It says nothing of the others. The set stays empty for the types whose tensors it loads as those of safetensors.
    """
    found: set[str] = set()

    def weights_map(original: Callable[..., dict[str, str]], *args: Any, **kwargs: Any) -> dict[str, str]:
        mapped = original(*args, **kwargs)
        found.update(mapped)
        return mapped

    with replaced(import_module("transformers.modeling_gguf_pytorch_utils"), "get_gguf_hf_weights_map", weights_map):
        yield found


def gguf_names_left(names: Iterable[str], read: set[str]) -> set[str]:
    """Select the tensors inside a body that were not read: neither the head nor experts, which are read apart.

    Args:
        names: names of the file's tensors.
        read: names that the reader looked for, as `gguf_names_read` collects them.
    """
    if not read:
        return set()
    return {name for name in names if name not in read and not name.startswith("output.") and "_exps" not in name}


#: Names under `tokenizer.ggml.pre` for GPT-2's splitting of text, and for that after each digit is split off
#: (llama.cpp, src/llama-vocab.cpp).
_GPT2_SPLITS = {"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion"}
_DIGIT_SPLITS = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}


def check_gguf_sizes(name: str, file: Path, model_class: Any, config: PretrainedConfig) -> None:
    """Check that the tensors of a .gguf file are as many and as large as its header says.

    For sizes that a header lacks, transformers takes defaults, which are those of another model.

    Args:
        name: the model's name, for errors.
        file: the .gguf file.
        model_class: class that the model will have.
        config: configuration that transformers read from the header.

    Raises:
        InputError: the header declares more blocks or weights than the file holds, or tensors overlap.
    """
    from gguf import GGUFReader  # an optional package

    tensors = sorted(GGUFReader(file).tensors, key=lambda tensor: int(tensor.data_offset))
    for one, following in pairwise(tensors):
        if int(one.data_offset) + int(one.n_bytes) > int(following.data_offset):
            raise model_error(name, f"its tensors {one.name!r} and {following.name!r} overlap; {RELOAD_HINT}")
    n_blocks = len({t.name.split(".")[1] for t in tensors if t.name.startswith("blk.")}) or len(tensors)
    declared = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(declared, int) or declared > n_blocks:
        raise model_error(
            name, f"its header declares {short_repr(declared)} blocks, the file holds {n_blocks}; {RELOAD_HINT}"
        )
    try:
        with torch.device("meta"):
            n_declared = sum(parameter.numel() for parameter in model_class.from_config(config).parameters())
    except RuntimeError as error:  # sizes that no tensor can have
        raise model_error(
            name, f"its header declares impossible sizes ({first_sentence(error)}); {RELOAD_HINT}"
        ) from error
    n_held = sum(int(t.n_elements) for t in tensors)
    if n_declared > 2 * n_held:
        raise model_error(name, f"its header declares {n_declared:,} weights, the file holds {n_held:,}; {RELOAD_HINT}")


def follow_gguf(tokenizer: PreTrainedTokenizerBase, file: Path, choices: Choices) -> None:
    """Make a tokenizer split text as its .gguf file says.

    Of byte-level vocabularies, a file names the splitting alone. transformers knows some names, and takes GPT-2's
    splitting for all others.

    Args:
        tokenizer: what transformers loaded from the file; changed where needed.
        file: the .gguf file.
        choices: collects a splitting that is not known.
    """
    from gguf import GGUFReader  # an optional package

    fields = GGUFReader(file).fields
    model, named = (fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    name = "" if named is None else str(named.contents())
    if model is None or model.contents() != "gpt2" or name in _GPT2_SPLITS | _known_splits():
        return
    if name in _DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return
    what = f"splits text as {name!r}" if name else "does not say how it splits text"
    reason = f"{file.name} {what}, which transformers {transformers.__version__} does not know; tokens may be others"
    choices.add("tokenizer", "GPT-2's splitting of text", f"{reason}; name the model's own by --tokenizer")


def _known_splits() -> set[str]:
    """List the names of splittings that transformers knows; none in versions that know no names."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return set()
    return set(GGUF_PRE_TOKENIZER_SPLITS)
