"""Columns `prompt` and `completion`: documents that begin with a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softh_probe.choices import Choices
from softh_probe.data.columns import find_path
from softh_probe.data.kinds import Kind
from softh_probe.errors import InputError

PROMPT, COMPLETION = "prompt", "completion"


def with_prompt(asked: Sequence[str], kinds: Mapping[str, Kind], choices: Choices) -> tuple[list[str], str | None]:
    """Take the column of prompts out of the text columns.

    Args:
        asked: the text columns that the user named; none where it is to be inferred.
        kinds: kind of each column.
        choices: takes the choice.

    Returns:
        The text columns, each of which makes a document, and the column of their prompts; None where there is none.
    """
    if not asked and find_path(PROMPT, kinds) and find_path(COMPLETION, kinds):
        reason = "positions completion, and both columns are there; name other ones by text_column"
        choices.add("text_column", f"{PROMPT} and {COMPLETION}, joined", reason, certain=True)
        return [COMPLETION], PROMPT
    if PROMPT in asked and len(asked) > 1:
        others = [name for name in asked if name != PROMPT]
        reason = "positions completion: each document is the prompt and what follows it"
        choices.add("text_column", f"{PROMPT} joined with {', '.join(others)}", reason, certain=True)
        return others, PROMPT
    return list(asked), None


def joined(prompt: Any, completion: Any, where: str) -> Any:
    """Join a prompt and its completion: two texts, or the messages of both.

    Raises:
        InputError: one is a text and the other one a conversation.
    """
    if not prompt or not completion:
        return prompt or completion
    if isinstance(prompt, str) != isinstance(completion, str):
        kinds = ["text" if isinstance(content, str) else "a conversation" for content in (prompt, completion)]
        raise InputError(
            f"text_column: {PROMPT} is {kinds[0]} and what follows it {kinds[1]} in {where}; both have to be text, or "
            "messages; where a column holds prompt and answer, name it alone, or with its pair"
        )
    return prompt + completion
