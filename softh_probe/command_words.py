"""Words of the command line: how flags are spelled, and what is answered to those that are wrong."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from softh_probe.config import RunConfig
from softh_probe.config_checks import in_words, type_hints
from softh_probe.errors import InputError, short_repr
from softh_probe.ingest.config import IngestConfig
from softh_probe.other_names import our_name
from softh_probe.sweep.config import SWEEP_CONTROLLED_FIELDS, SweepConfig

#: Fields of a run that name the model and its device.
LAYERS_FIELDS = ("model", "revision", "device_map", "trust_remote_code", "sites", "modules")
REPORT_FIELDS = ("folders", "out", "allow_different", "groups")
COMPARE_FIELDS = ("a", "b", "unit", "metric", "out", "json")
CORRELATE_FIELDS = ("results", "scores", "control", "by", "out", "mean_over", "allow_different", "json")
#: Flags that are no fields.
GLOBAL_FLAGS = ("version", "config", "print_config", "debug")
_OWN_FIELDS = {
    "layers": LAYERS_FIELDS,
    "report": REPORT_FIELDS,
    "compare": COMPARE_FIELDS,
    "correlate": CORRELATE_FIELDS,
    "status": ("folder",),
    "collect": ("folder",),
}
#: Switches that are no fields of a configuration, by command; those that can be negated, and those that cannot.
_OWN_SWITCHES = {"layers": ("trust_remote_code",), "report": ("allow_different",), "correlate": ("allow_different",)}
_DRY = ("dry_run", "json")
_ALONE = {"run": _DRY, "ingest": _DRY, "sweep": ("dry_run",), "compare": ("json",), "correlate": ("json",)}
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
#: Words that a command takes without a flag, by command and field, as its help writes them.
_POSITIONAL = {
    ("layers", "model"): "MODEL",
    ("report", "folders"): "FOLDER",
    ("compare", "a"): "A",
    ("compare", "b"): "B",
    ("correlate", "results"): "RESULTS",
    ("ingest", "folder"): "FOLDER",
    ("status", "folder"): "FOLDER",
    ("collect", "folder"): "FOLDER",
}


def spelled(words: Sequence[str]) -> list[str]:
    """Write flags with hyphens, and --print_config as jsonargparse wants it; values stay as they are."""
    spelled: list[str] = []
    for word in words:
        flag = None if "--" in spelled else re.fullmatch(r"(--[A-Za-z][\w-]*)([=.].*)?", word, re.DOTALL)
        if flag is None:
            spelled.append(word)
            continue
        name, rest = flag[1].replace("_", "-"), flag[2] or ""
        if name == "--print-config":
            name, rest = "--print_config", rest or "=comments"
        spelled.append(name + rest)
    return spelled


def refuse_other_names(words: Sequence[str], command: str) -> None:
    """Answer flags of other tools with our name for them, before anything else is found missing.

    Raises:
        InputError: there is such a flag.
    """
    for word in words[: words.index("--")] if "--" in words else words:
        name = re.split(r"[=.]", word)[0]
        if name.startswith("--") and (answer := _other_name(name, command)):
            raise InputError(answer)


def refuse_values_of_switches(words: Sequence[str], command: str) -> None:
    """Answer a switch that is given a value, as in `--report false`, with the switch that says so.

    Raises:
        InputError: there is such a value.
    """
    words = words[: words.index("--")] if "--" in words else words
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, is_joined, joined = word.partition("=")
        value = (joined if is_joined else following).lower()
        # `0` and `1` may stand beside a switch as the name of a folder.
        is_value = value in (*_YES, *_NO) and (bool(is_joined) or not value.isdigit())
        if flag.startswith("--") and is_value and (answer := _switch(flag, value in _YES, command)):
            raise InputError(f"{flag}: takes no value, got {value!r}; {answer}")


def _switch(flag: str, wanted: bool, command: str) -> str | None:
    """Say how a switch is turned on or off; None where a flag is none."""
    name = flag.lstrip("-").replace("-", "_")
    if name in _ALONE.get(command, ()):
        return f"give {flag} alone" if wanted else f"leave {flag} out"
    field = name.removeprefix("no_")
    if field not in _switches(command):
        return None
    wanted = wanted != (field != name)
    return f"give {flag_of(field if wanted else f'no_{field}')}"


def _switches(command: str) -> tuple[str, ...]:
    """List the fields of a command that are a yes or a no."""
    if command in _OWN_FIELDS:
        return _OWN_SWITCHES.get(command, ())
    hints = type_hints(_config_of(command))
    return tuple(field for field in _fields(command) if hints.get(field) is bool)


def _other_name(given: str, command: str) -> str | None:
    """Answer a name that other tools have for one of a command's fields: a flag with --, or a name in a file."""
    name = given.lstrip("-").replace("-", "_")
    ours, valid = our_name(name), _fields(command)
    if ours is None or name in valid or ours[0] not in valid:
        return None
    field = flag_of(ours[0]) if given.startswith("-") else ours[0]
    return f"{name}: softh-probe calls this {field}" + f" ({ours[1]})" * bool(ours[1])


def usage_line(message: str, command: str) -> str:
    """Put an argument error in one line; after an unknown name, list the valid ones."""
    line = " ".join(message.split())
    unknown = re.search(r"does not accept option '([^']+)'|[Uu]nrecognized arguments: (\S+)", line)
    if unknown is None:
        line = re.sub(rf"\b{command}\.(\w+)", lambda m: _POSITIONAL.get((command, m[1]), flag_of(m[1])), line)
        return f"{_typing_error(line, command) or line}; softh-probe {command} --help explains every field"
    given = (unknown[1] or unknown[2]).split("=")[0]
    if answer := _other_name(given, command):
        return answer
    name = given.lstrip("-").replace("-", "_")
    valid = _fields(command)
    names = [*valid, *GLOBAL_FLAGS]
    no, rest = ("no_", name[3:]) if name.startswith("no_") else ("", name)
    close = [no + field for field in names if field.startswith(rest)] or difflib.get_close_matches(name, names, n=1)
    meant = [flag_of(field) if given.startswith("--") else field for field in close]
    hint = f" (did you mean {' or '.join(meant[:3])}?)" if meant else ""
    return f"{name}: no such field{hint}; valid are: {', '.join(valid)}"


def _fields(command: str) -> list[str]:
    """List the names of a command's fields."""
    if command in _OWN_FIELDS:
        return list(_OWN_FIELDS[command])
    left_out = SWEEP_CONTROLLED_FIELDS if command == "sweep" else ()
    names = [field.name for field in dataclasses.fields(_config_of(command)) if field.name not in left_out]
    return [*names, *_ALONE.get(command, ())]


def _config_of(command: str) -> Any:
    """Give the class of a command's configuration."""
    return {"sweep": SweepConfig, "ingest": IngestConfig}.get(command, RunConfig)


def flag_of(field: str) -> str:
    """Write a field's name as a flag."""
    return f"--{field.replace('_', '-')}"


def _typing_error(line: str, command: str) -> str | None:
    """Put jsonargparse's error about a value of a wrong type in plain words."""
    key = re.search(r'Parser key "(\w+)"', line)
    value = re.search(r".*(?:Got|Given) value: (.*)$", line)
    hint = type_hints(_config_of(command)).get(key[1]) if key else None
    if key is None or value is None or hint is None:
        return None
    return f"{key[1]}: expected {in_words(hint)}, got {short_repr(value[1])}"
