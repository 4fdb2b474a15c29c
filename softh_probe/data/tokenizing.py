"""Texts and conversations -> windows of token ids, as the tokenizer itself would cut them."""

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
    """Windows of token ids of each text or conversation, and how many of them were longer than `max_length`.

    What has no text or no tokens has no window; with overflow "truncate" the others have one, with "split" all
    it takes. `first_number` counts documents for error messages.
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
            if overflow == "truncate":  # a template's special tokens are part of its text: none has to stay
                ids = ids[-max_length:] if tokenizer.truncation_side == "left" else ids[:max_length]
            windows[i] = _split(ids, max_length)
    return windows, n_long


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a tokenizer makes of text, in a word; None where that cannot be told from its state.

    That is so of tokenizers written in Python, and of those that bring code of their own.
    """
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return key_of(
        name=type(tokenizer).__name__,
        # Its last call's truncation and padding are part of its state, but not of what the next call does.
        backend={name: value for name, value in backend.items() if name not in ("truncation", "padding")},
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens_map,
        truncation_side=tokenizer.truncation_side,
    )


def _truncated(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> tuple[list[list[int]], int]:
    """Token ids of each text, truncated by the tokenizer, and how many texts had to be.

    Of a very long text only the head is tokenized. That gives the same tokens where the ones that are kept end
    in an earlier word than the head does: tokenizers find words from left to right and encode each by itself.
    Where that does not hold (no words, one endless word, truncation on the left), the whole text is tokenized.
    """
    if not tokenizer.is_fast:
        return _truncated_in_python(tokenizer, texts, max_length)
    head = max_length * _HEAD_CHARACTERS_PER_TOKEN
    heads = [text[:head] for text in texts]
    encodings = list(_tokenized(tokenizer, heads, max_length).encodings or ())
    for i, text in enumerate(texts):
        if len(heads[i]) < len(text) and not _settled(encodings[i]):
            encodings[i : i + 1] = _tokenized(tokenizer, [text], max_length).encodings or ()
    return [encoding.ids for encoding in encodings], sum(bool(encoding.overflowing) for encoding in encodings)


def _settled(encoding: Encoding) -> bool:
    """Whether the tokens kept end in an earlier word than those cut off."""
    kept = [word for word in encoding.word_ids if word is not None]
    rest = [word for part in encoding.overflowing[-1:] for word in part.word_ids if word is not None]
    return bool(kept and rest) and kept[-1] < rest[-1]


def _truncated_in_python(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> tuple[list[list[int]], int]:
    ids = _tokenized(tokenizer, texts)["input_ids"]
    # These do not say what they cut. Slicing will not do: the tokenizer knows which special tokens have to stay.
    long = [i for i, whole in enumerate(ids) if len(whole) > max_length]
    cut = _tokenized(tokenizer, [texts[i] for i in long], max_length)["input_ids"]
    for i, kept in zip(long, cut, strict=True):
        ids[i] = kept
    return ids, len(long)


def _split(ids: list[int], max_length: int) -> Windows:
    return [ids[start : start + max_length] for start in range(0, len(ids), max_length)]


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int | None = None) -> BatchEncoding:
    if not texts:  # which some tokenizers do not take
        return BatchEncoding({"input_ids": []})
    return tokenizer(
        texts,
        truncation=max_length is not None,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about texts longer than the model takes: they are cut here
    )


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], number: int) -> list[int]:
    if getattr(tokenizer, "chat_template", "") is None:
        raise InputError(
            f"tokenizer: it has no chat template, but document {number} is a conversation; take a chat model's "
            "tokenizer or a text_column of plain text"
        )
    try:
        ids = tokenizer.apply_chat_template(messages, return_dict=False, tokenizer_kwargs={"verbose": False})
    except Exception as error:  # the template is the tokenizer author's program: it raises what it likes
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer: its chat template does not take document {number}: {why}") from error
    return cast(list[int], ids)


def _encodable(content: Any) -> Any:
    """The same without lone surrogates, which no tokenizer takes: "?" in their place."""
    if isinstance(content, str):
        return content.encode("utf-8", errors="replace").decode("utf-8")
    if isinstance(content, list):
        return [_encodable(item) for item in content]
    if isinstance(content, dict):
        return {key: _encodable(item) for key, item in content.items()}
    return content
