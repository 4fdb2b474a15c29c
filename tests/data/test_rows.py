"""Which row of the data a document is of, and within which rows chance exchanges its labels."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from softh_probe.data.corpus import Corpus
from softh_probe.data.documents import Document, read_documents
from softh_probe.data.prepared import open_stream, read_corpus
from softh_probe.data.token_stream import TokenStream, tokenize
from softh_probe.errors import InputError
from tests.helpers.corpora import TEXTS, corpus_of
from tests.helpers.sweeps import small_tokenizer

PAIRS = {"text_column": "chosen,rejected", "label_columns": ["text_column", "prompt"]}
LABELS = ["column:text_column", "column:prompt", "input_unigram"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@pytest.fixture
def pairs(tmp_path) -> str:
    """A folder of three files with pairs of answers; every seventh lacks the chosen one, every fifth the other."""
    rows = [
        {
            "chosen": "" if i % 7 == 3 else TEXTS[i % 30],
            "rejected": None if i % 5 == 4 else TEXTS[i * 7 % 30],
            "prompt": i // 2,
            "meta": {"topic": None if i % 4 == 0 else f"topic {i % 3}"},
        }
        for i in range(40)
    ]
    for number, some in enumerate((rows[:1], rows[1:30], rows[30:])):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"{number}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return str(tmp_path / "pairs")


def prompts_of(corpus: Corpus) -> list[str]:
    return [corpus.columns["prompt"].names[i] for i in corpus.columns["prompt"].ids]


@pytest.mark.parametrize("overflow", ["truncate", "split"])
@pytest.mark.parametrize(
    "reading", [{}, {"max_documents": 9}, {"shuffle_seed": 3}, {"shuffle_seed": 3, "max_documents": 9}]
)
def test_documents_of_a_row_share_its_number(pairs, tokenizer, reading, overflow):
    documents = list(read_documents(pairs, **PAIRS, **reading))
    n_rows = reading.get("max_documents", 40)
    assert [document.row for document in documents] == [i // 2 for i in range(2 * n_rows)]
    corpus = tokenize(documents, tokenizer, max_length=6, overflow=overflow, progress=False)
    assert corpus.rows.dtype == np.int64
    assert corpus.rows.tolist() == (corpus.source // 2).tolist()
    assert sorted(set(corpus.rows)) == sorted({document.row for document in documents if document.content})
    assert 0 < corpus.n_empty < n_rows
    assert prompts_of(corpus) == [str(documents[2 * row].columns["prompt"]) for row in corpus.rows]
    if overflow == "split":
        assert corpus.n_documents > len(set(corpus.source))


def test_texts_of_single_columns_are_rows_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n")
    assert [document.row for document in read_documents(str(tmp_path / "a.txt"))] == [0, 1, 2, 3]


def test_without_rows_each_document_is_one(tokenizer):
    documents = [Document(content=text) for text in (*TEXTS[:4], "", TEXTS[5])]
    corpus = tokenize(documents, tokenizer, max_length=4, overflow="split", progress=False)
    assert corpus.rows.tolist() == corpus.source.tolist()
    assert corpus.source[-1] == 5
    made = corpus_of([[1, 2], [3]])
    assert made.rows.tolist() == [0, 1]
    assert made.rows.dtype == np.int64


def test_rows_that_are_given_ascend(tokenizer):
    def numbers(*given):
        documents = [Document(content="the cat", row=row) for row in given]
        return tokenize(documents, tokenizer, progress=False).rows.tolist()

    assert numbers(2, 2, 5, None, None, 7, 7) == [0, 0, 1, 2, 3, 4, 4]
    for given in ((0, 1, 0), (3, None, 3), (5, 4)):
        with pytest.raises(InputError, match=r"documents: number \d is of row \d, which comes after row \d; give"):
            numbers(*given)


def test_a_stored_corpus_keeps_its_rows(pairs, config, tokenizer, monkeypatch):
    wanted = config(data=pairs, text_column="chosen,rejected", labels=LABELS, permute_within="meta.topic")
    first = read_corpus(wanted, tokenizer, progress=False)
    monkeypatch.setattr("softh_probe.data.prepared.tokenize", None)
    stored = read_corpus(wanted, tokenizer, progress=False)
    assert stored.rows.tolist() == first.rows.tolist() == (first.source // 2).tolist()
    assert stored.columns["meta.topic"].names == ["topic 1", "topic 2", "topic 0"]
    assert stored.columns["meta.topic"].ids.tolist() == first.columns["meta.topic"].ids.tolist()


@pytest.mark.parametrize("overflow", ["truncate", "split"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_rows_of_a_stream_are_the_same_after_an_interruption(pairs, config, tokenizer, monkeypatch, overflow, after):
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", 7)  # chunks begin within rows
    settings = {"data": pairs, "text_column": "chosen,rejected", "labels": LABELS, "permute_within": "meta.topic"}
    settings |= {"max_length": 6, "overflow": overflow}
    whole = read_corpus(config(**settings), tokenizer, progress=False)
    stream, _ = open_stream(config(**settings, stream=True), tokenizer)
    chunks = stream.chunks()
    before = [next(chunks) for _ in range(after)]
    resumed, _ = open_stream(config(**settings, stream=True), tokenizer)
    resumed.skip_to(json.loads(json.dumps(stream.state())))
    windows = [*(stream.corpus([chunk]) for chunk in before), *(resumed.corpus([c]) for c in resumed.chunks())]
    assert [row for window in windows for row in window.rows.tolist()] == whole.rows.tolist()
    ids = [i for window in windows for i in window.columns["meta.topic"].ids.tolist()]
    assert ids == whole.columns["meta.topic"].ids.tolist()


def test_ones_own_documents_keep_their_rows_in_a_stream(config, tokenizer):
    documents = [Document(content="the cat", columns={"by": i, "at": i // 2, "more": 1}, row=i // 3) for i in range(9)]
    wanted = config(stream=True, labels=["column:by"], permute_within="at")
    stream, _ = open_stream(wanted, tokenizer, documents)
    corpus = stream.corpus(list(stream.chunks()))
    assert corpus.rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(corpus.columns) == ["by", "at"]
    assert isinstance(stream, TokenStream)
    stream, _ = open_stream(wanted, tokenizer, [Document(content="the cat", columns={"by": 1})])
    with pytest.raises(InputError, match=r"documents: number 1 has no label column 'at'; .*permute_within"):
        list(stream.chunks())


def test_a_column_of_groups_that_cannot_be_read_is_refused(pairs, tmp_path):
    def message(**options) -> str:
        with pytest.raises(InputError) as error:
            list(read_documents(pairs, **options))
        assert "\n" not in str(error.value)
        return str(error.value)

    text = message(**PAIRS, permute_within="meta.topics")
    assert text.startswith("permute_within: ")
    assert "did you mean 'meta.topic'?" in text
    assert message(**PAIRS, permute_within="meta").startswith("permute_within: 'meta' holds a dict in row 1 of")
    assert "name a column of the data" in message(**PAIRS, permute_within="text_column")
    one = {"text_column": "chosen", "label_columns": ["prompt"]}
    assert "'chosen,rejected'" in message(**one, permute_within="text_column")
    alone = {"text_column": "chosen,rejected", "label_columns": ["text_column"]}
    assert "exchanged within their row anyway; leave it out" in message(**alone, permute_within="prompt")
