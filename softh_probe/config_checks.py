"""Configuration files, looked at first: what YAML would read in silence as something else is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from softh_probe.errors import InputError

#: Fields hold values, lists of them and mappings of them; aliases can make gigabytes of a few lines.
_DEEPEST, _MOST_NODES = 4, 1_000_000
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "timestamp")}
_NUMBERS: dict[str, Any] = {"tag:yaml.org,2002:int": lambda text: int(text, 0), "tag:yaml.org,2002:float": float}


def check_config_file(path: Path) -> None:
    """Refuse a file that is no flat YAML, or of which another value would be read than the one that a reader sees.

    Raises:
        InputError: it cannot be read, is no mapping of fields to values, gives a field twice, nests endlessly, or
            holds a number in a notation of old YAML (010 is 8 in it, 1:30 is 90).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"config: {path}: expected a line `field: value` for each field, got none")
        _check(root, path)
        yaml.safe_load(text)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"config: {path}: values nest too deeply; expected fields, and lists of values") from error
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        # ValueError and its like: what constructors of numbers and dates raise.
        raise InputError(f"config: {path} cannot be read as YAML: {error}; quote values that are text") from error


def _check(root: yaml.MappingNode, path: Path) -> None:
    count = 0
    waiting: list[tuple[yaml.Node, int]] = [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        where = f"config: {path}, line {node.start_mark.line + 1}"
        if depth > _DEEPEST or count > _MOST_NODES:
            raise InputError(f"{where}: values nest too deeply or are too many; expected fields, and lists of values")
        if node.tag not in _TAGS:
            raise InputError(f"{where}: expected values and lists of them, got one tagged {node.tag!r}")
        if isinstance(node, yaml.MappingNode):
            counts = Counter(_key(key, path) for key, _ in node.value)
            if twice := [key for key, n in counts.items() if n > 1]:
                raise InputError(f"{where}: {', '.join(twice)} stands twice; give each field once")
            waiting += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(value, depth + 1) for value in node.value]
        elif node.tag in _NUMBERS and not node.value.lower().endswith((".inf", ".nan")):
            try:
                _NUMBERS[node.tag](node.value)
            except ValueError as error:
                raise InputError(
                    f"{where}: {node.value} is another number, or none, to YAML; write it in decimals, or quote it"
                ) from error


def _key(node: yaml.Node, path: Path) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith((":str", ":merge")):
        what = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a mapping"
        raise InputError(f"config: {path}, line {node.start_mark.line + 1}: expected the name of a field, got {what}")
    return str(node.value)
