"""The digest of a corpus' texts, which no tokenizer changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any


class TextsDigest:
    r"""SHA-256 of texts and conversations, taken as they are read, in their order.

    Each document that holds text adds: the byte "T" for a text or "C" for a conversation; the number of bytes of its
    content (int64, little endian); and its content. That is the text in UTF-8, or the messages as JSON in UTF-8: keys
    sorted, no spaces between tokens, nothing escaped that JSON lets stand. Lone surrogates are encoded as if they were
    characters (`surrogatepass`). Documents without text (empty, or white space alone) add nothing. So the digest is
    the same for any tokenizer, chat template, special tokens, length of documents and treatment of longer ones.

    >>> digest = TextsDigest()
    >>> digest.add("a")
    >>> digest.add("  ")
    >>> digest.hexdigest() == hashlib.sha256(b"T\x01\0\0\0\0\0\0\0a").hexdigest()
    True
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, content: str | list[dict[str, Any]]) -> None:
        """Add a document: a text, or the messages of a conversation before a chat template renders them."""
        if not has_text(content):
            return
        is_text = isinstance(content, str)
        text = content if isinstance(content, str) else _canonical(content)
        encoded = text.encode("utf-8", errors="surrogatepass")
        self._digest.update(b"T" if is_text else b"C")
        self._digest.update(len(encoded).to_bytes(8, "little"))
        self._digest.update(encoded)

    def hexdigest(self) -> str:
        """Give the digest of what was added, in hex."""
        return self._digest.hexdigest()


def has_text(content: str | list[dict[str, Any]]) -> bool:
    """Tell whether a document holds more than white space, or any message."""
    return bool(content.strip() if isinstance(content, str) else content)


def _canonical(messages: list[dict[str, Any]]) -> str:
    return json.dumps(messages, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
