"""Texts that a tokenizer does not know: tokens that stand for anything, and characters without a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softh_probe.choices import Choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Share of unknown tokens, or of characters without a token, that is warned of.
_NOTABLE = 0.01
_CHARACTERS_PER_SAMPLE = 2_000


def unknown_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the tokens that stand for any text that a tokenizer does not know."""
    if tokenizer.is_fast:  # by its rules: settings may call GPT-2's end of text unknown, too
        model = _model(tokenizer)
        name = model.get("unk_token")
        index = model.get("unk_id") if name is None else tokenizer.backend_tokenizer.token_to_id(name)
        return [] if index is None else [int(index)]
    used = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    index = tokenizer.unk_token_id
    return [] if index is None or index in used else [int(index)]


def tell_unknown(tokenizer: PreTrainedTokenizerBase, n_unknown: int, n_tokens: int, choices: Choices) -> None:
    """Record that a notable share of the tokens is unknown."""
    if n_unknown < _NOTABLE * n_tokens or not n_unknown:
        return
    name = tokenizer.convert_ids_to_tokens(unknown_ids(tokenizer))[0]
    reason = "the tokenizer does not know that text; if it is not the model's own, name that by --tokenizer"
    choices.add("unknown tokens", f"{_percent(n_unknown, n_tokens)} of tokens are {name}", reason)


def tell_left_out(n_without_tokens: int, n_with_tokens: int, choices: Choices) -> None:
    """Record that documents with text were left out, as the tokenizer has no token for it."""
    if n_without_tokens:
        n_text = n_without_tokens + n_with_tokens
        reason = f"the tokenizer has no token for the text of {n_without_tokens:,} of {n_text:,} documents"
        choices.add("documents without tokens", "left out", reason)


def tell_dropped(tokenizer: PreTrainedTokenizerBase, contents: Sequence[Any], choices: Choices) -> None:
    """Record that a tokenizer without an unknown token drops a notable share of the characters of some texts.

    Args:
        tokenizer: the model's tokenizer.
        contents: the first documents of the corpus; conversations are left out.
        choices: collects the finding.
    """
    heads = [text[:_CHARACTERS_PER_SAMPLE] for text in contents if isinstance(text, str)]
    if not heads or not tokenizer.is_fast or not _drops(tokenizer):
        return
    encoded = tokenizer(heads, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    lost = [sum(_without_token(*pair)) for pair in zip(heads, encoded["offset_mapping"], strict=True)]
    n_characters = sum(not c.isspace() for head in heads for c in head)
    if sum(lost) and sum(lost) >= _NOTABLE * n_characters:
        reason = (
            f"of the first {len(heads):,} texts; the tokenizer drops characters that it does not know; if it is not "
            "the model's own, name that by --tokenizer"
        )
        choices.add("dropped text", f"{_percent(sum(lost), n_characters)} of characters have no token", reason)


def _drops(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer drops characters that it does not know; byte-level ones know all bytes."""
    model = _model(tokenizer)
    return model.get("type") == "BPE" and model.get("unk_token") is None and not model.get("byte_fallback")


def _model(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.model.__getstate__())
    return found


def _without_token(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell of each character whether it is in no token, white space aside."""
    covered = bytearray(len(text))
    for start, end in offsets:
        covered[start:end] = b"\1" * (end - start)
    return [not known and not character.isspace() for character, known in zip(text, covered, strict=True)]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%"
