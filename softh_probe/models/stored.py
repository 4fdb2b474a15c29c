"""Names and values of the tensors in a checkpoint's files, read without loading a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from softh_probe.errors import InputError, abbreviated
from softh_probe.models.loading_errors import RELOAD_HINT, as_input_error, model_error

#: Names that wrappers put into those of weights, and what did it.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_forward_module": "Lightning Fabric",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "pretrained_model": "trl's model with a value head",
    "base_model.model": "PEFT",
}
#: Of these, names that a model of its own may give a module; only in front of all weights are they a wrapper's.
_ONLY_FIRST = ("module", "pretrained_model", "base_model.model")
_ADAPTER = re.compile(
    r"(^|\.)(lora_(A|B|E|embedding_[AB]|magnitude_vector)|ia3_l|hada_w\d_[ab]|lokr_w\d|oft_R|vera_lambda_[bd]|"
    r"base_layer|modules_to_save)(\.|$)"
)


class StoredTensors:
    """The tensors of a folder's weight files, by name.

    Attributes:
        folder: the folder.
        files: name of a tensor -> name of its file.
    """

    def __init__(self, model: str, folder: Path, files: Iterable[str]) -> None:
        self.folder, self.files = folder, dict[str, str]()
        self._pickles: dict[str, dict[str, Any]] = {}
        for file in files:
            for name in self._names(model, file):
                if name in self.files and not torch.equal(self.read(name), self._read(file, name)):
                    pair = f"{self.files[name]} and {file}"
                    raise model_error(model, f"{pair} hold different tensors named {name!r}; {RELOAD_HINT}")
                self.files[name] = file

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor."""
        return self._read(self.files[name], name)

    def _names(self, model: str, file: str) -> list[str]:
        with as_input_error(f"model {model!r}: damaged file {self.folder / file}", RELOAD_HINT):
            if file.endswith(".safetensors"):
                with safe_open(self.folder / file, framework="pt") as opened:
                    return list(opened.keys())
            if file.endswith(".gguf"):
                return list(self._gguf(file))
            return list(self._unpickled(file))

    def _read(self, file: str, name: str) -> torch.Tensor:
        if file.endswith(".safetensors"):
            with safe_open(self.folder / file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
                return tensor
        if file.endswith(".gguf"):
            return _dequantized(self._gguf(file)[name])
        unpickled: torch.Tensor = self._unpickled(file)[name]
        return unpickled

    def _gguf(self, file: str) -> dict[str, Any]:
        from gguf import GGUFReader  # an optional package

        return {tensor.name: tensor for tensor in GGUFReader(self.folder / file).tensors}

    def _unpickled(self, file: str) -> dict[str, Any]:
        """Read a pickle, which holds tensors alone or is refused; its values stay on disk where its format allows."""
        if file not in self._pickles:
            path = self.folder / file
            with path.open("rb") as opened:
                is_zip = opened.read(4) == b"PK\x03\x04"
            read = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            if not isinstance(read, dict):
                raise InputError(f"file {path}: expected a mapping of names to tensors, got {type(read).__name__}")
            self._pickles[file] = {name: value for name, value in read.items() if isinstance(value, torch.Tensor)}
        return self._pickles[file]


def _dequantized(tensor: Any) -> torch.Tensor:
    from gguf import dequantize

    return torch.tensor(dequantize(tensor.data, tensor.tensor_type))


def check_names(model: str, names: Iterable[str]) -> None:
    """Check that names of weights are those of a model, not of a wrapper around it or of an adapter beside it.

    Raises:
        InputError: a name holds that of a wrapper (torch.compile, FSDP, …), or an adapter's weights (LoRA, …).
    """
    names = list(names)
    if adapter := [name for name in names if _ADAPTER.search(name)]:
        raise model_error(
            model,
            f"the files hold the weights of an adapter ({abbreviated(adapter)}); merge it into its base model with "
            "PEFT's merge_and_unload() and save that",
        )
    for wrapper, origin in _WRAPPERS.items():
        part = f"{wrapper}."
        if wrapper in _ONLY_FIRST:
            wrapped = [name for name in names if name.startswith(part)]
            wrapped = wrapped if len(wrapped) == len(names) or wrapper == "pretrained_model" else []
        else:
            wrapped = [name for name in names if f".{part}" in f".{name}"]
        if wrapped:
            renamed = f"{{k.replace({part!r}, ''): v for k, v in load_file(f).items()}}"
            raise model_error(
                model,
                f"names of weights hold {part!r} ({abbreviated(wrapped, 1)}), the wrapper of {origin}; save the model "
                f"inside it, or rename them by safetensors.torch: save_file({renamed}, f, {{'format': 'pt'}})",
            )


def check_one_name(model: str, names: Iterable[str], prefix: str) -> None:
    """Check that no weight is stored twice, with the prefix of a class with a head and without it.

    Raises:
        InputError: two names are of one weight; only one of them would be loaded.
    """
    known = set(names)
    twins = [name for name in sorted(known) if prefix and f"{prefix}.{name}" in known]
    twins += [n for n in sorted(known) if f".{n}".endswith(".LayerNorm.gamma") and f"{n[:-5]}weight" in known]
    if twins:
        other = f"{prefix}.{twins[0]}" if f"{prefix}.{twins[0]}" in known else f"{twins[0][:-5]}weight"
        raise model_error(model, f"the files hold {twins[0]!r} and {other!r}, of which one is used; keep one")
