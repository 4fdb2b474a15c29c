"""Where the policies of positions hold in tokenised documents: by place, by the token, and by whose words they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from softh_probe.choices import Choices
from softh_probe.data.assistant import AssistantTurns
from softh_probe.data.completions import Completions
from softh_probe.data.documents import Document
from softh_probe.data.windows import OfDocument, counted_in_windows
from softh_probe.positions import hold_by_place, parse_positions, roles_of, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from softh_probe.data.tokenizing import Windows


class Counting:
    """Find the positions of documents at which the policies hold; labels see the other tokens all the same.

    Args:
        positions: the policies, as `parse_positions` takes them.
        skip_special_tokens: leave out the tokenizer's special tokens.
        tokenizer: the model's tokenizer.
        add_special_tokens: whether texts get special tokens.
        chat_template_kwargs: variables of the chat template.
        choices: takes the way in which an assistant's turns are found.

    Raises:
        InputError: a policy is unknown, or the tokenizer cannot tell where its tokens are in a conversation.
    """

    def __init__(
        self,
        positions: str,
        skip_special_tokens: bool,
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_special_tokens: bool,
        chat_template_kwargs: Mapping[str, Any],
        choices: Choices,
    ) -> None:
        self._policies = parse_positions(positions)
        self._special = special_ids(tokenizer) if skip_special_tokens else None
        roles = roles_of(self._policies)
        self._by_role: list[Callable[[Sequence[Document], int], list[OfDocument]]] = []
        if "assistant" in roles:
            self._by_role.append(AssistantTurns(tokenizer, chat_template_kwargs, choices))
        if "completion" in roles:
            self._by_role.append(Completions(tokenizer, chat_template_kwargs, add_special_tokens))
        self._side = tokenizer.truncation_side
        self.is_asked = bool(self._policies) or skip_special_tokens
        self.keeps_rows = "completion" in roles
        """Whether documents of one row have to be counted together."""

    def counted(self, documents: Sequence[Document], windows: Sequence[Windows], first_number: int) -> list[np.ndarray]:
        """Tell for each document at which tokens of its windows the policies hold: bool [n_tokens of them].

        Args:
            documents: documents that were read one after the other; with `keeps_rows`, all of each row.
            windows: the token ids of their windows.
            first_number: number of the first document, for errors.

        Raises:
            InputError: a document does not say whose tokens are whose.
        """
        found = [self._by_place_and_token(of_document) for of_document in windows]
        for holds in self._by_role:
            for mask, of_document, whole in zip(found, windows, holds(documents, first_number), strict=True):
                mask &= counted_in_windows(whole, of_document, self._side)
        return found

    def _by_place_and_token(self, windows: Windows) -> np.ndarray:
        lengths = np.array([len(window) for window in windows], dtype=np.int64)
        ids = np.array([token for window in windows for token in window], dtype=np.int64)
        places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        found = hold_by_place(self._policies, places, np.repeat(lengths, lengths))
        if self._special is not None:
            found &= ~np.isin(ids, self._special)
        return found
