"""Completions: what follows the tokens that the documents of a row share, or a document's prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from softh_probe.data.chat_template import chat_ids, chat_text
from softh_probe.data.documents import Document
from softh_probe.data.texts_digest import has_text
from softh_probe.data.tokenizing import encodable_content, whole_ids
from softh_probe.data.windows import OfDocument, n_common
from softh_probe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completions:
    """Find the tokens of completions in documents that are not cut yet.

    Args:
        tokenizer: the model's tokenizer.
        chat_template_kwargs: variables of the chat template.
        add_special_tokens: whether texts get special tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any], add_special_tokens: bool
    ) -> None:
        self._tokenizer, self._kwargs, self._special = tokenizer, chat_template_kwargs, add_special_tokens

    def __call__(self, documents: Sequence[Document], first_number: int) -> list[OfDocument]:
        """Find them in documents that were read one after the other, among them all documents of each row.

        Args:
            documents: the documents.
            first_number: number of the first one, for errors.

        Raises:
            InputError: a row has a single document without a prompt, or a chat template does not take a conversation or
                renders its prompt otherwise where a completion follows.
        """
        ids = self._ids([document.content for document in documents], first_number)
        found = []
        for row in _rows(documents):
            prompts = [documents[i].prompt for i in row]
            if len(row) == 1 and prompts[0] is None:
                raise InputError(
                    f"positions: completion needs a pair such as text_column chosen,rejected, or columns prompt and "
                    f"completion, but document {first_number + row[0]} stands alone; name such columns"
                )
            in_pair = _common([ids[i] for i in row if len(ids[i])])
            for i, prompt in zip(row, prompts, strict=True):
                n_prompt = in_pair if prompt is None else self._n_prompt(documents[i], ids[i], first_number + i)
                found.append(OfDocument(ids[i], np.arange(len(ids[i])) >= n_prompt))
        return found

    def _ids(self, contents: Sequence[Any], first_number: int) -> list[np.ndarray]:
        """Give the token ids of whole contents, none where there is no text."""
        texts = [encodable_content(content) for content in contents if isinstance(content, str) and has_text(content)]
        of_texts = iter(whole_ids(self._tokenizer, texts, self._special))
        found: list[list[int]] = []
        for number, content in enumerate(contents, start=first_number):
            if not has_text(content):
                found.append([])
            else:
                found.append(next(of_texts) if isinstance(content, str) else self._chat_ids(content, number))
        return [np.array(ids, dtype=np.int64) for ids in found]

    def _chat_ids(self, messages: list[dict[str, Any]], number: int, **more: Any) -> list[int]:
        return chat_ids(self._tokenizer, encodable_content(messages), {**self._kwargs, **more}, number)

    def _n_prompt(self, document: Document, ids: np.ndarray, number: int) -> int:
        """Count the tokens that a document has in common with its prompt."""
        prompt = document.prompt
        if not prompt or not len(ids):
            return 0
        if isinstance(prompt, str):
            of_prompt = whole_ids(self._tokenizer, [encodable_content(prompt)], self._special)[0]
        else:
            self._check_prompt(prompt, document.content, number)
            of_prompt = self._chat_ids(prompt, number, add_generation_prompt=True)
        return n_common(ids, np.array(of_prompt, dtype=np.int64))

    def _check_prompt(self, prompt: list[dict[str, Any]], content: Any, number: int) -> None:
        """Check that a conversation begins with its prompt as the template renders that alone."""
        alone = {**self._kwargs, "add_generation_prompt": False}
        texts = [
            chat_text(self._tokenizer, encodable_content(messages), kwargs, number)
            for messages, kwargs in ((content, self._kwargs), (prompt, alone))
        ]
        if not texts[0].startswith(texts[1]):
            raise InputError(
                f"positions: where the completion of document {number} begins is not certain, as the chat template "
                "renders its prompt otherwise where a completion follows; give both as text, or choose other positions"
            )


def _rows(documents: Sequence[Document]) -> Iterator[list[int]]:
    """Group the indices of documents by their row; a document without one is a row of its own."""

    def row_of(index: int) -> tuple[str, int]:
        row = documents[index].row
        return ("alone", index) if row is None else ("row", row)

    for _, group in itertools.groupby(range(len(documents)), key=row_of):
        yield list(group)


def _common(ids: Sequence[np.ndarray]) -> int:
    """Count the tokens with which all sequences begin."""
    return min((n_common(ids[0], other) for other in ids), default=0)
