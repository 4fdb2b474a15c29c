"""The probe's arguments among those of a harness's model: `softh_labels=input_unigram+output_unigram,softh_seed=3`."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from softh_probe.errors import InputError, short_repr
from softh_probe.estimators.variants import SEVERAL
from softh_probe.labels import NGRAM_SETS
from softh_probe.layer_places import RESIDUAL, parse_sites
from softh_probe.probe import COUNTS, DEFAULT_LABELS, SoftEntropyProbe

PREFIX = "softh_"
_NOT_HERE = {"model", "modules", "plan"}  # not to be written as text
_LISTS = ("labels", "layers", "sites", "positions", "skip_special_tokens", *SEVERAL)
#: The probe's arguments that can be given here.
SETTINGS = tuple(name for name in inspect.signature(SoftEntropyProbe).parameters if name not in _NOT_HERE)
_LAYER = re.compile(r"-?\d+|embeddings|final_norm|layer\..+")


class HarnessProbe(SoftEntropyProbe):
    """A probe of a model that the harness evaluates, which knows the tokens of continuations."""

    _roles = ("completion",)


def split_settings(arguments: Mapping[str, Any], theirs: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the probe's arguments from the model's, and check them, as far as they do not depend on the model.

    >>> split_settings({"pretrained": "gpt2", "softh_labels": "input_unigram+output_unigram", "softh_layers": "0+-1"})
    ({'labels': ['input_unigram', 'output_unigram'], 'layers': [0, -1]}, {'pretrained': 'gpt2'})

    Args:
        arguments: all arguments by name.
        theirs: names of the model's arguments; other names that are nearly the probe's are refused.

    Returns:
        The settings of `SoftEntropyProbe`, without the prefix, and the model's arguments.

    Raises:
        InputError: an unknown name, or a value that the probe does not take.
    """
    given = {name.removeprefix(PREFIX): value for name, value in arguments.items() if name.startswith(PREFIX)}
    others = {name: value for name, value in arguments.items() if not name.startswith(PREFIX)}
    for name in given:
        if name not in SETTINGS:
            raise InputError(f"{PREFIX}{name}: {_unknown(name)}")
    for name in others:
        if name not in theirs:
            _check_other(name)
    for name in _LISTS:
        if isinstance(given.get(name), str):
            given[name] = [part for part in given[name].split("+") if part]
    _read_special(given)
    _check_values(given)
    return given, others


def _read_special(given: dict[str, Any]) -> None:
    """Read True, False or token ids."""
    ids = given.get("skip_special_tokens")
    if isinstance(ids, int) and not isinstance(ids, bool):
        given["skip_special_tokens"] = [ids]
    elif isinstance(ids, list) and all(isinstance(i, str) and i.isdigit() for i in ids):
        given["skip_special_tokens"] = [int(i) for i in ids]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    meant = f"did you mean {PREFIX}{close[0]}? " if close else ""
    return f"no such argument; {meant}expected one of {', '.join(PREFIX + setting for setting in SETTINGS)}"


def _check_other(name: str) -> None:
    """Refuse a name that the model would take for one of its own, though the probe's was meant."""
    if name in NGRAM_SETS:
        raise InputError(f"{name}: join several label sets with +, as in {PREFIX}labels=input_unigram+{name}")
    prefixed = [PREFIX + setting for setting in SETTINGS]
    if close := difflib.get_close_matches(name.replace("-", "_"), prefixed, n=1, cutoff=0.85):
        raise InputError(f"{name}: no such argument; did you mean {close[0]}?")


def _check_values(given: dict[str, Any]) -> None:
    """Check values by a probe of a module that computes nothing; the layers' names are the model's."""
    if (layers := given.get("layers")) is not None:
        layers = layers if isinstance(layers, list | tuple) else [layers]
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int | str) or not _LAYER.fullmatch(str(layer)):
                raise InputError(
                    f"{PREFIX}layers: expected embeddings, layer.1, layer.2 and so on, final_norm, or indices, joined "
                    f"with +, got {short_repr(layer)}"
                )
        given["layers"] = [int(layer) if str(layer).lstrip("-").isdigit() else layer for layer in layers] or None
    of_model = ("layers", "sites")
    settings = {"labels": list(DEFAULT_LABELS), **{name: v for name, v in given.items() if name not in of_model}}
    if settings.get("count") in COUNTS:
        del settings["count"]  # which one a model admits is the model's
    if settings.get("skip_special_tokens") is True:
        del settings["skip_special_tokens"]  # the tokenizer's
    nothing = nn.Identity()
    try:
        parse_sites(given.get("sites", RESIDUAL))
        HarnessProbe(nothing, modules={"nothing": nothing}, **settings)
    except InputError as error:
        raise InputError(f"{PREFIX}{error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{PREFIX}…: {error}; got {short_repr(settings)}") from None
