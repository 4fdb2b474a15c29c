"""Encode texts and conversations into windows of token ids, truncated as the tokenizer itself would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import BatchEncoding

from softh_probe.cache import key_of
from softh_probe.choices import Choices
from softh_probe.data.chat_template import chat_ids
from softh_probe.data.texts_digest import has_text
from softh_probe.errors import InputError, first_sentence, is_of_tokenizers
from softh_probe.kept import Kept

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_HEAD_CHARACTERS_PER_TOKEN = 16
_FINGERPRINT = "fingerprint of a tokenizer"

Windows = list[list[int]]  # token ids of each window of a document


def encode(
    tokenizer: PreTrainedTokenizerBase,
    contents: Sequence[str | list[dict[str, Any]]],
    *,
    max_length: int,
    overflow: str,
    add_special_tokens: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    first_number: int = 1,
) -> tuple[list[Windows], int]:
    """Encode texts and conversations into windows of token ids.

    Args:
        tokenizer: the model's tokenizer.
        contents: texts, and conversations as messages with role and content.
        max_length: tokens of a window.
        overflow: "truncate" gives one window for each content, "split" as many as it needs.
        add_special_tokens: add the tokenizer's special tokens to texts. Conversations have those of the template.
        chat_template_kwargs: variables of the chat template.
        first_number: number of the first document, for errors.

    Returns:
        The windows of each content, none where it has no text, or the tokenizer has no token for its text; and the
        number of contents that were longer than `max_length`.

    Raises:
        InputError: the tokenizer has no chat template that takes a conversation, or fails on a text.
    """
    windows: list[Windows] = [[] for _ in contents]
    n_long = 0
    texts = [i for i, content in enumerate(contents) if isinstance(content, str) and has_text(content)]
    encodable = [encodable_content(contents[i]) for i in texts]
    if overflow == "truncate":
        all_ids, n_long = _truncated(tokenizer, encodable, max_length, add_special_tokens)
    else:
        all_ids = _tokenized(tokenizer, encodable, add_special_tokens)["input_ids"]
        n_long = sum(len(ids) > max_length for ids in all_ids)
    n_special = n_special_tokens(tokenizer, add_special_tokens)
    for i, ids in zip(texts, all_ids, strict=True):
        windows[i] = _split(ids, max_length) if len(ids) > n_special else []
    for i, content in enumerate(contents):
        if isinstance(content, list) and content:
            ids = chat_ids(tokenizer, encodable_content(content), chat_template_kwargs or {}, first_number + i)
            n_long += len(ids) > max_length
            if overflow == "truncate":  # a template's special tokens are part of its text: none has to be kept
                ids = ids[-max_length:] if tokenizer.truncation_side == "left" else ids[:max_length]
            windows[i] = _split(ids, max_length)
    return windows, n_long


def whole_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = True
) -> list[list[int]]:
    """Give the token ids of whole texts, of which `encode` gives windows.

    Args:
        tokenizer: the model's tokenizer.
        texts: each of them holds text, without lone surrogates.
        add_special_tokens: add the tokenizer's special tokens.
    """
    found: list[list[int]] = _tokenized(tokenizer, list(texts), add_special_tokens)["input_ids"]
    return found


def n_special_tokens(tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> int:
    """Count the special tokens that each text gets."""
    return tokenizer.num_special_tokens_to_add() if add_special_tokens else 0


def tell_special_tokens(
    tokenizer: PreTrainedTokenizerBase, asked: bool | None, has_conversations: bool, choices: Choices
) -> None:
    """Record where `add_special_tokens` is given and changes nothing."""
    if asked is None:
        return
    if has_conversations:
        reason = "a chat template writes them itself; add_special_tokens is for texts, and would double them here"
        choices.add("special_tokens of conversations", "those of the chat template", reason)
    elif asked and not n_special_tokens(tokenizer, True):
        choices.add("special_tokens", "none", "add_special_tokens is on, but the tokenizer has none to add to a text")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, kept: Kept | None = None) -> str | None:
    """Compute a digest of everything that determines a tokenizer's output.

    Args:
        tokenizer: the tokenizer.
        kept: keeps the digest, if it keeps the tokenizer, which is then not changed.

    Returns:
        The digest; None for tokenizers with parts in Python or with code of their own, whose state does not determine
        it.
    """
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return None
    if kept is not None and (known := kept.find(_FINGERPRINT, id(tokenizer))) is not None and known[0] is tokenizer:
        return str(known[1])
    try:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:
        if is_of_tokenizers(error):  # as for parts in Python
            return None
        raise
    found = key_of(
        name=type(tokenizer).__name__,
        # The state holds the last call's truncation and padding, which do not affect the next call.
        backend={name: value for name, value in backend.items() if name not in ("truncation", "padding")},
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens_map,
        truncation_side=tokenizer.truncation_side,
    )
    if kept is not None:
        kept.keep(_FINGERPRINT, id(tokenizer), (tokenizer, found))
    return found


def _truncated(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int, special: bool
) -> tuple[list[list[int]], int]:
    """Give the token ids of each text, truncated by the tokenizer, and the number of truncated texts.

    Of a very long text only the head is tokenised. The result is the same if the kept tokens end in an earlier word
    than the head: tokenizers find words from left to right and encode each word by itself. Otherwise (no words, one
    endless word, truncation on the left) the whole text is tokenised.
    """
    if not tokenizer.is_fast:
        return _truncated_in_python(tokenizer, texts, max_length, special)
    head = max_length * _HEAD_CHARACTERS_PER_TOKEN
    heads = [text[:head] for text in texts]
    encodings = list(_tokenized(tokenizer, heads, special, max_length).encodings or ())
    for i, text in enumerate(texts):
        if len(heads[i]) < len(text) and not _ends_before_cut(encodings[i]):
            encodings[i : i + 1] = _tokenized(tokenizer, [text], special, max_length).encodings or ()
    return [encoding.ids for encoding in encodings], sum(bool(encoding.overflowing) for encoding in encodings)


def _ends_before_cut(encoding: Encoding) -> bool:
    """Test whether the kept tokens end in an earlier word than those that were cut off."""
    kept = [word for word in encoding.word_ids if word is not None]
    rest = [word for part in encoding.overflowing[-1:] for word in part.word_ids if word is not None]
    return bool(kept and rest) and kept[-1] < rest[-1]


def _truncated_in_python(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int, special: bool
) -> tuple[list[list[int]], int]:
    ids = _tokenized(tokenizer, texts, special)["input_ids"]
    # These tokenizers do not report what they cut. Slicing would lose special tokens that the tokenizer keeps.
    long = [i for i, whole in enumerate(ids) if len(whole) > max_length]
    cut = _tokenized(tokenizer, [texts[i] for i in long], special, max_length)["input_ids"]
    for i, kept in zip(long, cut, strict=True):
        ids[i] = kept
    return ids, len(long)


def _split(ids: list[int], max_length: int) -> Windows:
    return [ids[start : start + max_length] for start in range(0, len(ids), max_length)]


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool, max_length: int | None = None
) -> BatchEncoding:
    if not texts:  # an error for some tokenizers
        return BatchEncoding({"input_ids": []})
    try:
        encoded: BatchEncoding = tokenizer(
            texts,
            add_special_tokens=special,
            truncation=max_length is not None,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about texts longer than the model's limit: they are cut here
        )
    except Exception as error:
        if is_of_tokenizers(error):  # as for a word without a token
            raise InputError(f"tokenizer: {first_sentence(error)}; name another by --tokenizer") from error
        raise
    return encoded


def encodable_content(content: Any) -> Any:
    """Replace lone surrogates in a text or in messages, an error for every tokenizer, by "?"."""
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(content, list):
        return [encodable_content(item) for item in content]
    if isinstance(content, dict):
        return {key: encodable_content(item) for key, item in content.items()}
    return content
