"""The assistant's turns in a conversation that a chat template rendered, found by rendering it turn by turn.

A turn begins where the prompt for it ends: what the template writes of the messages before it, and of the header that
makes a model answer. It ends where the same conversation ends when it stops after that turn. So closing tokens
(<|im_end|>) are the assistant's, and headers are not. Where a template renders a turn otherwise once others follow it,
as those that drop thinking, a marker in place of its text shows where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from softh_probe.errors import InputError

Messages = Sequence[Mapping[str, Any]]
#: Renders messages with a generation prompt (True), without (False), or as the user's variables say (None).
Render = Callable[[Messages, bool | None], str]
Span = tuple[int, int]  # start and end, in characters

#: Characters for private use, which no text or template has a meaning for.
_MARKER, _NEIGHBOUR = "\ue0a7\uf0b3\ue0a7", "\ue0a8\uf0b4\ue0a8"
_THOUGHT = "</think>"
_REASONING = ("reasoning_content", "reasoning", "thinking")


class NotCertainError(ValueError):
    """Where a turn begins or ends is not certain."""


def assistant_spans(render: Render, messages: Messages, end_of_text: str = "") -> list[Span]:
    r"""Find the characters of each of the assistant's turns in a rendered conversation.

    >>> def render(messages, generation_prompt):
    ...     text = "".join(f"<{m['role']}>{m['content']}</>" for m in messages)
    ...     return text + "<assistant>" * bool(generation_prompt)
    >>> conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    >>> [render(conversation, None)[start:end] for start, end in assistant_spans(render, conversation)]
    ['Hello</>']

    Args:
        render: renders messages by the chat template.
        messages: the conversation.
        end_of_text: a token that a template may write at the end of a conversation, whoever spoke last.

    Raises:
        NotCertainError: where a turn begins or ends is not certain.
    """
    whole = render(messages, None)
    found: list[Span] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            number = f"{index + 1} of {len(messages)}"
            turn = _Turn(render, messages, index, whole, end_of_text)
            start, end = turn.start(), turn.end()
            if start is None:
                raise NotCertainError(
                    f"message {number} begins otherwise than the chat template's generation prompt ends"
                )
            if end is None or not (found[-1][1] if found else 0) <= start <= end:
                raise NotCertainError(f"the chat template renders message {number} otherwise when others follow")
            found.append((start, end))
    return found


class _Marked(NamedTuple):
    """A conversation with a marker in place of a turn's text."""

    before: str
    after: str
    closing: str
    """What follows the marker where the turn is the last one."""


class _Turn:
    """One of the assistant's turns.

    Args:
        render: renders messages by the chat template.
        messages: the conversation.
        index: of the turn's message.
        whole: the rendered conversation.
        end_of_text: as `assistant_spans` takes it.
    """

    def __init__(self, render: Render, messages: Messages, index: int, whole: str, end_of_text: str) -> None:
        self._render, self._messages, self._index, self._whole = render, messages, index, whole
        self._end_of_text = end_of_text
        history = messages[:index]
        self._before = self._rendered(history, False)
        self._prompt = self._rendered(history, True)

    def start(self) -> int | None:
        """Find where the turn begins; None where that is not certain."""
        before, prompt, whole = self._before, self._prompt, self._whole
        n_same = _n_common(prompt or "", whole)
        if prompt and n_same == len(prompt):
            return n_same
        if before is None or prompt is None or not whole.startswith(before):
            return self._start_after_neighbour() if self._index else self._start_of_first()
        # The template writes another header into a history, or the answer begins as the header's rest does.
        for marked in self._marked:
            if len(before) <= len(marked.before) <= n_same and prompt.startswith(marked.before):
                return len(marked.before)
        return None

    def end(self) -> int | None:
        """Find where the turn ends, with what closes it; None where that is not certain."""
        until = self._rendered(self._messages[: self._index + 1], False)
        if until is not None and self._whole.startswith(until):
            return len(until)
        for marked in self._marked:
            end = len(self._whole) - len(marked.after)
            closing = self._closing(marked)
            if len(marked.before) <= end and closing is not None:
                return end + len(closing)
        return None

    def _closing(self, marked: _Marked) -> str | None:
        """Give what closes the turn where others follow it; None where it is closed otherwise than as the last one."""
        if marked.after.startswith(marked.closing):
            return marked.closing
        before_end = marked.closing.removesuffix(self._end_of_text)
        return before_end if before_end and marked.after.startswith(before_end) else None

    def _start_of_first(self) -> int | None:
        """Find where a turn without messages before it begins: behind the generation prompt, or a first part of it."""
        alone, prompted = (self._rendered(self._messages, prompt) for prompt in (False, True))
        if alone is None or prompted is None or not prompted.startswith(alone):
            return None
        header = prompted[len(alone) :]
        for before in (marked.before for marked in self._marked):
            if header and before.count(header) == 1:
                return before.index(header) + len(header)
            if _ends_with_start_of(before, header):
                return len(before)
        return None

    def _start_after_neighbour(self) -> int | None:
        """Find where the turn begins by what follows the text of the message before it: here, and in a prompt."""
        history, after = self._messages[: self._index - 1], self._messages[self._index + 1 :]
        for neighbour in _marked_messages(self._messages[self._index - 1], _NEIGHBOUR):
            asked = (self._rendered([*history, neighbour], True) or "").split(_NEIGHBOUR)
            for message, marked in self._marked_by_message:
                found = (self._rendered([*history, neighbour, message, *after], None) or "").split(_NEIGHBOUR)
                between = found[-1].split(_MARKER)[0]
                if len(asked) != 2 or len(found) != 2 or not marked.before.endswith(between):
                    continue
                n_same = _n_common(asked[1], between)
                if n_same in (len(asked[1]), len(between)):
                    return len(marked.before) - len(between) + n_same
        return None

    @property
    def _marked(self) -> list[_Marked]:
        """The conversation with a marker in place of the turn's text, in the ways that render it once."""
        return [marked for _, marked in self._marked_by_message]

    @cached_property
    def _marked_by_message(self) -> list[tuple[Mapping[str, Any], _Marked]]:
        """The same with the messages that hold the marker."""
        messages = list(_marked_messages(self._messages[self._index], _MARKER))
        found = [(message, self._with_marker(message)) for message in messages]
        return [(message, marked) for message, marked in found if marked is not None]

    def _with_marker(self, message: Mapping[str, Any]) -> _Marked | None:
        messages = [*self._messages[: self._index], message, *self._messages[self._index + 1 :]]
        parts = (self._rendered(messages, None) or "").split(_MARKER)
        last = (self._rendered(messages[: self._index + 1], False) or "").split(_MARKER)
        if len(parts) != 2 or len(last) != 2:
            return None
        if not self._whole.startswith(parts[0]) or not self._whole.endswith(parts[1]):
            return None
        return _Marked(parts[0], parts[1], last[1])

    def _rendered(self, messages: Messages, generation_prompt: bool | None) -> str | None:
        """Render messages; None where the template does not take them."""
        if not messages:
            return None
        try:
            return self._render(messages, generation_prompt)
        except InputError:
            return None


def _marked_messages(message: Mapping[str, Any], marker: str) -> Iterator[Mapping[str, Any]]:
    """Put a marker in place of a message's text: behind its thinking and with its tool calls; then alone."""
    content = message.get("content", "")
    yield {**message, "content": _with_text(content, _thought_before(_text_of(content)) + marker)}
    bare = {key: value for key, value in message.items() if key not in ("tool_calls", *_REASONING)}
    yield {**bare, "content": _with_text(content, marker)}


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return next((str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part), "")


def _with_text(content: Any, text: str) -> Any:
    """Give content of the same form with another text; of several parts with text, the first one remains."""
    if isinstance(content, str):
        return text
    parts = list(content)
    places = [i for i, part in enumerate(parts) if isinstance(part, Mapping) and "text" in part]
    if not places:
        return [*parts, {"type": "text", "text": text}]
    parts[places[0]] = {**parts[places[0]], "text": text}
    return [part for i, part in enumerate(parts) if i not in places[1:]]


def _thought_before(text: str) -> str:
    """Give the part of a text up to the end of a thought, and the white space behind that; nothing without one."""
    thought, found, rest = text.rpartition(_THOUGHT)
    return thought + found + rest[: len(rest) - len(rest.lstrip())] if found else ""


def _ends_with_start_of(text: str, header: str) -> bool:
    """Tell whether a text ends with a header, or with its first part: a history may lack its opening of a thought."""
    starts = (header[:n] for n in range(len(header), 0, -1))
    found = next((start for start in starts if text.endswith(start)), "")
    return any(character.isalnum() for character in found)


def _n_common(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
