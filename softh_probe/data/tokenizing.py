"""Encode texts and conversations into windows of token ids, truncated as the tokenizer itself would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from transformers import BatchEncoding

from softh_probe.cache import key_of
from softh_probe.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_HEAD_CHARACTERS_PER_TOKEN = 16

Windows = list[list[int]]  # token ids of each window of a document


def encode(
    tokenizer: PreTrainedTokenizerBase,
    contents: Sequence[str | list[dict[str, Any]]],
    *,
    max_length: int,
    overflow: str,
    first_number: int = 1,
) -> tuple[list[Windows], int]:
    """Encode texts and conversations into windows of token ids.

    Args:
        tokenizer: the model's tokenizer.
        contents: texts, and conversations as messages with role and content.
        max_length: tokens of a window.
        overflow: "truncate" gives one window for each content, "split" as many as it needs.
        first_number: number of the first document, for errors.

    Returns:
        The windows of each content, none where it has no text or no tokens; and the number of contents that were longer
        than `max_length`.

    Raises:
        InputError: the tokenizer has no chat template that takes a conversation.
    """
    windows: list[Windows] = [[] for _ in contents]
    n_long = 0
    texts = [i for i, content in enumerate(contents) if isinstance(content, str) and content.strip()]
    encodable = [_encodable(contents[i]) for i in texts]
    if overflow == "truncate":
        all_ids, n_long = _truncated(tokenizer, encodable, max_length)
    else:
        all_ids = _tokenized(tokenizer, encodable)["input_ids"]
        n_long = sum(len(ids) > max_length for ids in all_ids)
    for i, ids in zip(texts, all_ids, strict=True):
        windows[i] = _split(ids, max_length)
    for i, content in enumerate(contents):
        if isinstance(content, list) and content:
            ids = _chat_ids(tokenizer, _encodable(content), first_number + i)
            n_long += len(ids) > max_length
            if overflow == "truncate":  # a template's special tokens are part of its text: none has to be kept
                ids = ids[-max_length:] if tokenizer.truncation_side == "left" else ids[:max_length]
            windows[i] = _split(ids, max_length)
    return windows, n_long


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Compute a digest of everything that determines a tokenizer's output.

    Returns:
        The digest; None for tokenizers written in Python or with code of their own, whose state does not determine it.
    """
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return key_of(
        name=type(tokenizer).__name__,
        # The state holds the last call's truncation and padding, which do not affect the next call.
        backend={name: value for name, value in backend.items() if name not in ("truncation", "padding")},
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens_map,
        truncation_side=tokenizer.truncation_side,
    )


def _truncated(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    """Give the token ids of each text, truncated by the tokenizer, and the number of truncated texts.

    Of a very long text only the head is tokenised. The result is the same if the kept tokens end in an earlier word
    than the head: tokenizers find words from left to right and encode each word by itself. Otherwise (no words, one
    endless word, truncation on the left) the whole text is tokenised.
    """
    if not tokenizer.is_fast:
        return _truncated_in_python(tokenizer, texts, max_length)
    head = max_length * _HEAD_CHARACTERS_PER_TOKEN
    heads = [text[:head] for text in texts]
    encodings = list(_tokenized(tokenizer, heads, max_length).encodings or ())
    for i, text in enumerate(texts):
        if len(heads[i]) < len(text) and not _ends_before_cut(encodings[i]):
            encodings[i : i + 1] = _tokenized(tokenizer, [text], max_length).encodings or ()
    return [encoding.ids for encoding in encodings], sum(bool(encoding.overflowing) for encoding in encodings)


def _ends_before_cut(encoding: Encoding) -> bool:
    """Test whether the kept tokens end in an earlier word than those that were cut off."""
    kept = [word for word in encoding.word_ids if word is not None]
    rest = [word for part in encoding.overflowing[-1:] for word in part.word_ids if word is not None]
    return bool(kept and rest) and kept[-1] < rest[-1]


def _truncated_in_python(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> tuple[list[list[int]], int]:
    ids = _tokenized(tokenizer, texts)["input_ids"]
    # These tokenizers do not report what they cut. Slicing would lose special tokens that the tokenizer keeps.
    long = [i for i, whole in enumerate(ids) if len(whole) > max_length]
    cut = _tokenized(tokenizer, [texts[i] for i in long], max_length)["input_ids"]
    for i, kept in zip(long, cut, strict=True):
        ids[i] = kept
    return ids, len(long)


def _split(ids: list[int], max_length: int) -> Windows:
    return [ids[start : start + max_length] for start in range(0, len(ids), max_length)]


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int | None = None) -> BatchEncoding:
    if not texts:  # an error for some tokenizers
        return BatchEncoding({"input_ids": []})
    encoded: BatchEncoding = tokenizer(
        texts,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about texts longer than the model's limit: they are cut here
    )
    return encoded


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], number: int) -> list[int]:
    if getattr(tokenizer, "chat_template", "") is None:
        raise InputError(
            f"tokenizer: it has no chat template, but document {number} is a conversation; take a chat model's "
            "tokenizer or a text_column of plain text"
        )
    try:
        ids = tokenizer.apply_chat_template(messages, return_dict=False, tokenizer_kwargs={"verbose": False})
    except Exception as error:  # a template is a program of the tokenizer's author and may raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer: its chat template does not take document {number}: {why}") from error
    return cast(list[int], ids)


def _encodable(content: Any) -> Any:
    """Replace lone surrogates, an error for every tokenizer, by "?"."""
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(content, list):
        return [_encodable(item) for item in content]
    if isinstance(content, dict):
        return {key: _encodable(item) for key, item in content.items()}
    return content
