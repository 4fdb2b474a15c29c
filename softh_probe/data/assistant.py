"""The tokens of the assistant's turns in conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from softh_probe.choices import Choices
from softh_probe.data.chat_template import chat_offsets, chat_text, generation_spans, marks_generation
from softh_probe.data.documents import Document
from softh_probe.data.texts_digest import has_text
from softh_probe.data.tokenizing import encodable_content
from softh_probe.data.turns import Messages, NotCertainError, Span, assistant_spans
from softh_probe.data.windows import OfDocument
from softh_probe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = "give the tokenizer a chat template with {% generation %}, or choose positions completion"


class AssistantTurns:
    """Find the tokens of the assistant's turns in conversations that are not cut yet.

    Args:
        tokenizer: the model's tokenizer.
        chat_template_kwargs: variables of the chat template.
        choices: takes the way in which turns are found.

    Raises:
        InputError: the tokenizer does not tell which characters its tokens stand for.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any], choices: Choices
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "positions: assistant needs a fast tokenizer, which tells the characters of each token; name a "
                "tokenizer.json by --tokenizer"
            )
        self._tokenizer, self._kwargs = tokenizer, chat_template_kwargs
        self._marked = marks_generation(tokenizer, chat_template_kwargs)
        way = "what the chat template marks as generation" if self._marked else "conversations rendered turn by turn"
        reason = "the template has {% generation %}" if self._marked else "the chat template has no {% generation %}"
        choices.add("positions of the assistant", way, reason, certain=True)

    def __call__(self, documents: Sequence[Document], first_number: int) -> list[OfDocument]:
        """Find them in documents that were read one after the other.

        Args:
            documents: conversations.
            first_number: number of the first one, for errors.

        Raises:
            InputError: a document is no conversation, the chat template does not take it, or where its turns begin and
                end is not certain.
        """
        return [self._of(document.content, number) for number, document in enumerate(documents, start=first_number)]

    def _of(self, content: str | list[dict[str, Any]], number: int) -> OfDocument:
        if not has_text(content):
            return OfDocument(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
        if isinstance(content, str):
            raise InputError(
                f"positions: assistant is for conversations, and document {number} is plain text; name a text_column "
                "of messages, or choose other positions"
            )
        messages = encodable_content(content)
        ids, offsets = chat_offsets(self._tokenizer, messages, self._kwargs, number)
        return OfDocument(np.array(ids, dtype=np.int64), tokens_in(self._spans(messages, number), offsets))

    def _spans(self, messages: list[dict[str, Any]], number: int) -> list[Span]:
        if self._marked:
            return generation_spans(self._tokenizer, messages, self._kwargs, number)[1]

        def render(some: Messages, generation_prompt: bool | None) -> str:
            given = {} if generation_prompt is None else {"add_generation_prompt": generation_prompt}
            return chat_text(self._tokenizer, some, {**self._kwargs, **given}, number)

        try:
            return assistant_spans(render, messages, self._tokenizer.eos_token or "")
        except NotCertainError as error:
            raise InputError(
                f"positions: where the assistant's turns of document {number} begin and end is not certain: {error}; "
                f"{_REMEDY}"
            ) from error


def tokens_in(spans: Sequence[Span], offsets: Sequence[Span]) -> np.ndarray:
    """Tell which tokens stand for a character of any span: bool [n_tokens].

    A token that reaches over the edge of a span counts. One that stands for no character has those between its
    neighbours, such as a space that the tokenizer trims.

    >>> tokens_in([(3, 6)], [(0, 3), (3, 5), (5, 7), (7, 9)])
    array([False,  True,  True, False])
    >>> tokens_in([(0, 4)], [(0, 3), (4, 4), (4, 9)])
    array([ True,  True, False])

    Args:
        spans: start and end of each, ascending and disjoint.
        offsets: the first character of each token, and the one behind its last.
    """
    start_N, end_N = np.array(offsets, dtype=np.int64).reshape(-1, 2).T.copy()
    empty = np.flatnonzero(start_N == end_N)
    held = np.flatnonzero(start_N < end_N)
    place = np.searchsorted(held, empty)
    before, after = np.append(0, end_N[held])[place], np.append(start_N[held], np.iinfo(np.int64).max)[place]
    start_N[empty] = np.minimum(before, start_N[empty])
    end_N[empty] = np.where(place < len(held), np.maximum(after, start_N[empty] + 1), end_N[empty] + 1)
    found = np.zeros(len(start_N), dtype=bool)
    for start, end in spans:
        found |= (start_N < end) & (end_N > start)
    return found
