"""Small texts, token sequences and corpora."""

import json
from pathlib import Path
from pydoc_data import topics

import numpy as np

from softh_probe.data.corpus import NO_LABEL, Corpus, LabelColumn

TEXTS = [f"the cat {'sat on the mat and ' * (i % 4)}saw {i % 3} dogs {'again ' * (i % 5)}." for i in range(30)]
LANGUAGES = [["en", "de", None][i % 3] for i in range(30)]
COLUMNS = ("column:language", "column:topic")


def write_texts(path: Path, n: int = len(TEXTS)) -> Path:
    """Write a data set of n rows that repeats the texts and their languages."""
    rows = [{"text": TEXTS[i % len(TEXTS)], "language": LANGUAGES[i % len(TEXTS)]} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def documents(n: int = 14, seed: int = 0) -> list[list[int]]:
    """Random token sequences of 2 to 29 tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 12, size=length).tolist() for length in generator.integers(2, 30, size=n)]


def values_of(n):
    """Return n languages and n topics, the values of `COLUMNS`; every fourth topic is None."""
    language = [["en", "de", "fr"][i % 3] for i in range(n)]
    topic = [None if i % 4 == 0 else f"topic {i % 5}" for i in range(n)]
    return language, topic


def corpus_of(docs, **columns) -> Corpus:
    """A corpus from token lists, and columns from values (None: no label)."""
    made = {}
    for name, values in columns.items():
        names = list(dict.fromkeys(v for v in values if v is not None))
        ids = [NO_LABEL if v is None else names.index(v) for v in values]
        made[name] = LabelColumn(ids=np.array(ids, dtype=np.int32), names=names)
    return Corpus(
        tokens=np.concatenate(docs).astype(np.int32),
        offsets=np.cumsum([0, *map(len, docs)]),
        source=np.arange(len(docs)),
        columns=made,
        n_read=len(docs),
        n_empty=0,
        n_truncated=0,
    )


def real_documents(n: int, words: int = 30) -> list[tuple[str, str]]:
    """Pieces of the texts of Python's help, spread over all topics; half of them are code, by their punctuation."""
    pieces = [
        " ".join(text.split()[start : start + words])
        for _, text in sorted(topics.topics.items())
        for start in range(0, len(text.split()) - words // 2, words)
    ]
    chosen = [pieces[i] for i in np.linspace(0, len(pieces) - 1, n).astype(int)]
    punctuation = [sum(not c.isalnum() and c != " " for c in text) / len(text) for text in chosen]
    return [
        (text, "code" if p > np.median(punctuation) else "prose") for text, p in zip(chosen, punctuation, strict=True)
    ]
