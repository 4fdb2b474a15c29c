"""Readable errors and quiet libraries while a checkpoint is loaded, and when it first runs."""

from __future__ import annotations

import errno
import pickle
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import transformers
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from huggingface_hub.utils import enable_progress_bars as enable_hub_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging as hf_logging

from softh_probe.errors import InputError, ProbeError, SofthProbeError, first_sentence

_SHAPES = re.compile(r"\b(sizes?|shapes?|index|dimensions?|out of bounds)\b")

RELOAD_HINT = f"copy or download it again; if it is whole, transformers {transformers.__version__} cannot read it"


def model_error(model: str, problem: str) -> InputError:
    """Make an error about a model; the caller raises it."""
    return InputError(f"model {model!r}: {problem}")


@contextmanager
def as_input_error(what: str, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """Turn errors that libraries raise for bad files into an `InputError` of one line.

    Other errors, such as those for lack of memory, pass unchanged.

    Args:
        what: the subject of the message, such as "model 'x': its tokenizer".
        remedy: the end of the message.
        also: types of errors that mean a bad file here, beside the usual ones.
    """
    known: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, LookupError, EOFError, *also)
    known += (ArithmeticError, SafetensorError, pickle.UnpicklingError, struct.error, hub_errors.StrictDataclassError)
    signs = ("PytorchStreamReader", "unexpected EOF", "automatic conversion of the weights")
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{what} needs a package that is not installed: {first_sentence(error)}") from error
    except known as error:
        broken = not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError)
        broken |= any(sign in str(error) for sign in signs)
        if not broken or getattr(error, "errno", None) == errno.ENOMEM:
            raise
        if "trust_remote_code" in str(error):
            trust = "read the Python code that comes with it, then add --trust-remote-code"
            raise InputError(f"{what} cannot be used without running code; {trust}") from error
        raise InputError(f"{what}: {first_sentence(error)}; {remedy}") from error


@contextmanager
def running_on_tokens(model: Any) -> Iterator[None]:
    """Turn errors of a model that token ids alone do not satisfy into a `ProbeError` of one line.

    Args:
        model: the model that runs inside the block.
    """
    try:
        yield
    except SofthProbeError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and (not _SHAPES.search(str(error)) or "memory" in str(error)):
            raise
        raise ProbeError(
            f"model: {type(model).__name__} cannot be run on these token ids alone ({first_sentence(error)}); if its "
            "documents are too long, set a shorter --max-length, else attach SoftEntropyProbe to code that runs it"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers and the hub inside the block."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    reader: dict[str, Any] = {}
    with suppress(ImportError):  # its progress bar obeys no setting
        reader = vars(import_module("transformers.modeling_gguf_pytorch_utils"))
    reader_bar = reader.get("tqdm")
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()  # the hub's too
    if reader_bar:
        reader["tqdm"] = hf_logging.tqdm
    try:
        yield
    finally:
        if reader_bar:
            reader["tqdm"] = reader_bar
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
        (enable_hub_progress_bars if hub_bars else disable_progress_bars)()
