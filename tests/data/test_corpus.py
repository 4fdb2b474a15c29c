"""Tokens and batches, against the tokenizer called by hand on one document at a time."""

import hashlib
import json
import random
import struct
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from softh_probe.data import tokenizing
from softh_probe.data.corpus import NO_LABEL, Corpus, length_batches, pad_batch
from softh_probe.data.documents import Document, read_documents
from softh_probe.data.token_stream import tokenize
from softh_probe.errors import InputError

LINES = [
    "Der Fuchs springt über den faulen Hund, und der Hund schläft weiter.",
    "the quick brown fox jumps over the lazy dog; the dog sleeps on",
    "  indented   text\twith\n\n\nodd   spaces ",
    "数字 12345 and 日本語, emoji 🦊🦊, cafe\u0301",
    "short",
]
CHAT = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "the fox and the dog"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def word_tokenizer(**settings) -> PreTrainedTokenizerFast:
    """One token a word: `the` 1, `dog` 2, …; unknown words 0."""
    words = {"?": 0, "the": 1, "dog": 2, "fox": 3, "and": 4, "cat": 5, "<s>": 6, "</s>": 7, "[P]": 8}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", **settings)


def bpe_tokenizer(kind: str = "byte level", **settings) -> PreTrainedTokenizerFast:
    """Trained on LINES; kinds differ in what can make the head of a text depend on its end."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]") if kind == "no words" else models.BPE())
    special = ["[UNK]", "<s>", "</s>"]
    if kind == "no words":  # merges run across spaces, as in tokenizers converted from sentencepiece
        backend.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=special)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, show_progress=False, special_tokens=special, initial_alphabet=alphabet
        )
    if kind == "normalized":
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    backend.train_from_iterator(LINES * 3, trainer)
    if kind == "special tokens":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


class PythonTokenizer(PreTrainedTokenizer):
    """One of those without a Rust backend: a character a token, between two special ones."""

    model_input_names = ("input_ids", "attention_mask")

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)}

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [1, *token_ids_0, 2]

    def num_special_tokens_to_add(self, pair=False):
        return 2


def texts(*contents) -> list[Document]:
    return [Document(content=content) for content in contents]


def tokens(corpus: Corpus) -> list[list[int]]:
    return [corpus.document(i).tolist() for i in range(corpus.n_documents)]


def run(documents, tokenizer=None, **kwargs) -> Corpus:
    return tokenize(documents, tokenizer or word_tokenizer(), progress=False, **kwargs)


# -- tokens --------------------------------------------------------------------------------------------------


def test_tokens_offsets_and_counts():
    corpus = run(texts("the dog", "", "fox", " \n", "and the cat sleeps"), max_length=3)
    assert tokens(corpus) == [[1, 2], [3], [4, 1, 5]]
    assert corpus.tokens.tolist() == [1, 2, 3, 4, 1, 5]
    assert corpus.tokens.dtype == np.int32
    assert corpus.offsets.tolist() == [0, 2, 3, 6]
    assert corpus.offsets.dtype == np.int64
    assert corpus.lengths.tolist() == [2, 1, 3]
    assert (corpus.n_documents, corpus.n_tokens) == (3, 6)
    assert (corpus.n_read, corpus.n_empty, corpus.n_truncated) == (5, 2, 1)


def test_document_without_tokens_is_empty():
    """Text there is, but the tokenizer drops all of it."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    corpus = run(texts("xxx", "dog"), tokenizer)
    assert tokens(corpus) == [[2]]
    assert corpus.n_empty == 1


def test_split_makes_windows_with_the_same_labels():
    documents = [
        Document(content="the dog and the fox", columns={"c": "x"}),
        Document(content="", columns={"c": "never"}),
        Document(content="cat", columns={"c": None}),
        Document(content="dog dog dog dog", columns={"c": "y"}),
    ]
    corpus = run(documents, max_length=2, overflow="split")
    assert tokens(corpus) == [[1, 2], [4, 1], [3], [5], [2, 2], [2, 2]]
    assert corpus.columns["c"].ids.tolist() == [0, 0, 0, NO_LABEL, 1, 1]
    assert corpus.columns["c"].names == ["x", "y"]  # the label of an empty document is none
    assert (corpus.n_read, corpus.n_empty, corpus.n_truncated) == (4, 1, 2)


def test_labels_are_numbered_by_first_appearance():
    values = ["b", None, 1, "1", float("nan"), True, 2.5, "b"]
    corpus = run([Document(content="dog", columns={"v": value, "w": "same"}) for value in values])
    assert corpus.columns["v"].names == ["b", "1", "True", "2.5"]
    assert corpus.columns["v"].ids.tolist() == [0, NO_LABEL, 1, 1, NO_LABEL, 2, 3, 0]
    assert corpus.columns["v"].ids.dtype == np.int32
    assert corpus.columns["w"].ids.tolist() == [0] * 8


def test_a_hundred_thousand_labels_of_every_type(tmp_path):
    values = [None, True, False, 0.5, float("nan"), "1", 1, "True", *(f"label {i}" for i in range(100_000))]
    corpus = run([Document(content="the dog", columns={"x": value}) for value in values])
    column = corpus.columns["x"]
    assert column.ids[:8].tolist() == [NO_LABEL, 0, 1, 2, NO_LABEL, 3, 3, 0]  # a label is what it is called
    assert column.names[:5] == ["True", "False", "0.5", "1", "label 0"]
    assert len(column.names) == 100_004
    assert column.ids[8:].tolist() == list(range(4, 100_004))


def test_documents_with_different_label_columns():
    with pytest.raises(InputError, match="number 2 has other label columns"):
        run([Document(content="dog", columns={"a": 1}), Document(content="dog")])


@pytest.mark.parametrize("overflow", ["truncate", "split"])
@pytest.mark.parametrize("kind", ["byte level", "normalized", "special tokens", "no words"])
def test_like_the_tokenizer_document_by_document(kind, overflow):
    tokenizer = bpe_tokenizer(kind)
    rng = random.Random(0)
    contents = [" ".join(rng.choices(LINES, k=rng.randint(1, 12))) for _ in range(600)]  # > 2 chunks
    expected = []
    for content in contents:
        if overflow == "truncate":
            expected.append(tokenizer(content, truncation=True, max_length=24)["input_ids"])
        else:
            ids = tokenizer(content)["input_ids"]
            expected += [ids[i : i + 24] for i in range(0, len(ids), 24)]
    corpus = run(texts(*contents), tokenizer, max_length=24, overflow=overflow)
    assert tokens(corpus) == expected
    assert corpus.n_truncated == sum(len(tokenizer(content)["input_ids"]) > 24 for content in contents)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["byte level", "normalized", "special tokens", "no words"])
def test_very_long_texts_are_truncated_as_if_read_whole(kind, side, monkeypatch):
    """Only their heads are tokenized, where that cannot change a token: here with heads cut everywhere."""
    tokenizer = bpe_tokenizer(kind, truncation_side=side)
    rng = random.Random(1)
    contents = []
    for _ in range(150):
        lines = rng.choices([*LINES, " " * rng.randint(1, 90), "a" * rng.randint(1, 90), "</s>", "\n"], k=20)
        contents.append(rng.choice(["", " ", "x"]).join(lines))
    for characters_per_token in (1, 2, 3, 5):
        monkeypatch.setattr(tokenizing, "_HEAD_CHARACTERS_PER_TOKEN", characters_per_token)
        corpus = run(texts(*contents), tokenizer, max_length=16)
        assert tokens(corpus) == [tokenizer(c, truncation=True, max_length=16)["input_ids"] for c in contents]
        assert corpus.n_truncated == sum(len(tokenizer(c)["input_ids"]) > 16 for c in contents)


def test_ten_megabytes_take_no_time():
    tokenizer = bpe_tokenizer()
    book = " ".join(LINES) * 40_000
    assert len(book) > 8_000_000
    start = time.monotonic()
    corpus = run(texts(book, "short", book), tokenizer, max_length=512)
    assert time.monotonic() - start < 3  # read whole, it takes some 10 s, and 2 GB
    expected = tokenizer(book[:100_000], truncation=True, max_length=512)["input_ids"]
    assert tokens(corpus)[0] == tokens(corpus)[2] == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenizer_in_python(side):
    tokenizer = PythonTokenizer(truncation_side=side)
    assert not tokenizer.is_fast
    contents = ["abcdef", "ab", "abcd", "abc"]
    corpus = run(texts(*contents), tokenizer, max_length=5)
    assert tokens(corpus)[1:] == [
        [1, 97, 98, 2],
        [1, 98, 99, 100, 2] if side == "left" else [1, 97, 98, 99, 2],
        [1, 97, 98, 99, 2],
    ]
    assert tokens(corpus) == [tokenizer(c, truncation=True, max_length=5)["input_ids"] for c in contents]
    assert corpus.n_truncated == 2
    corpus = run(texts(*contents), tokenizer, max_length=5, overflow="split")
    assert tokens(corpus)[:2] == [[1, 97, 98, 99, 100], [101, 102, 2]]


def test_settings_of_the_tokenizer_file_do_not_count():
    """A tokenizer.json may switch truncation and padding on; here only our arguments do."""
    tokenizer = word_tokenizer(pad_token="[P]")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert tokens(run(texts("the dog and the fox", "cat"), tokenizer)) == [[1, 2, 4, 1, 3], [5]]
    corpus = run(texts("the dog and the fox", "cat"), tokenizer, max_length=4, overflow="split")
    assert tokens(corpus) == [[1, 2, 4, 1], [3], [5]]


@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_no_warning_about_long_texts(overflow, caplog, capsys):
    tokenizer = word_tokenizer(model_max_length=3, chat_template=TEMPLATE)
    run([*texts("dog " * 50), Document(content=CHAT * 9)], tokenizer, max_length=8, overflow=overflow)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_lone_surrogates():
    tokenizer = bpe_tokenizer(chat_template=TEMPLATE)
    chat = [{"role": "user", "content": "dog\udfff"}]
    corpus = run([*texts("the \ud800 dog"), Document(content=chat)], tokenizer)
    assert [tokenizer.decode(ids) for ids in tokens(corpus)] == ["the ? dog", "<user>dog?"]


def test_progress_is_shown_on_stderr(capsys):
    tokenize(texts("the dog", "fox"), word_tokenizer())
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err
    assert "tokens=3" in err


# -- conversations -------------------------------------------------------------------------------------------


def test_conversations_go_through_the_chat_template():
    tokenizer = bpe_tokenizer("special tokens", chat_template=TEMPLATE)
    whole = tokenizer(
        "<user>the dog<assistant>the fox and the dog", add_special_tokens=False
    )["input_ids"]  # fmt: skip
    documents = [Document(content=CHAT), *texts("the dog"), Document(content=[]), Document(content=CHAT)]
    corpus = run(documents, tokenizer)
    assert tokens(corpus) == [whole, tokenizer("the dog")["input_ids"], whole]
    assert corpus.n_empty == 1
    short = run(documents, tokenizer, max_length=7)
    assert tokens(short)[0] == whole[:7]
    assert short.n_truncated == 2
    tokenizer.truncation_side = "left"
    assert tokens(run(documents, tokenizer, max_length=7))[0] == whole[-7:]
    windows = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    assert tokens(run(documents[:1], tokenizer, max_length=7, overflow="split")) == windows


def test_chat_template_that_is_missing_or_refuses():
    documents = [*texts("dog"), Document(content=CHAT)]
    with pytest.raises(InputError, match=r"no chat template, but document 2 is a conversation.*text_column"):
        run(documents)
    template = "{{ raise_exception('only system,\nplease') }}"
    with pytest.raises(InputError, match=r"^tokenizer: its chat template does not take document 2: only system,$"):
        run(documents, word_tokenizer(chat_template=template))


# -- arguments -----------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit():
    with pytest.raises(InputError, match="overflow: 'wrap' is not one of truncate, split"):
        run(texts("dog"), overflow="wrap")
    with pytest.raises(InputError, match=r"max_length: 1 .* give 2 or more"):
        run(texts("dog"), max_length=1)
    with pytest.raises(InputError, match=r"max_length: 2 .* give 3 or more"):
        run(texts("dog"), bpe_tokenizer("special tokens"), max_length=2)


@pytest.mark.parametrize("contents", [[], [""], ["", " ", []]])
def test_no_text_at_all(contents):
    with pytest.raises(InputError, match=f"data: none of {len(contents)} documents has any text"):
        run(texts(*contents))


# -- fingerprint ---------------------------------------------------------------------------------------------


def test_fingerprint_is_of_lengths_and_tokens():
    corpus = run(texts("the dog", "fox"))
    stream = struct.pack("<q", 2) + struct.pack("<2q", 2, 1) + struct.pack("<3i", 1, 2, 3)
    assert corpus.sha256 == hashlib.sha256(stream).hexdigest()


def test_fingerprint_tells_boundaries_and_order():
    contents = [
        ("the dog", "fox"),
        ("the", "dog fox"),
        ("fox", "the dog"),
        ("the dog fox",),
        ("the dog", "cat"),
    ]
    assert len({run(texts(*c)).sha256 for c in contents}) == len(contents)
    labelled = [Document(content="the dog", columns={"a": 1}), Document(content="fox", columns={"a": 2})]
    assert run(labelled).sha256 == run(texts("the dog", "", "fox")).sha256


# -- from files to batches -----------------------------------------------------------------------------------


def test_from_a_file(tmp_path):
    rows = [{"chosen": "the dog", "rejected": CHAT, "n": 1}, {"chosen": "fox", "rejected": None, "n": None}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = read_documents(
        str(tmp_path / "pairs.jsonl"), text_column="chosen,rejected", label_columns=["n", "text_column"]
    )
    corpus = run(documents, word_tokenizer(chat_template="{% for m in messages %}{{ m.content }} {% endfor %}"))
    assert tokens(corpus) == [[1, 2], [1, 2, 1, 3, 4, 1, 2], [3]]
    assert corpus.columns["text_column"].names == ["chosen", "rejected"]
    assert corpus.columns["text_column"].ids.tolist() == [0, 1, 0]
    assert corpus.columns["n"].ids.tolist() == [0, 0, NO_LABEL]
    assert (corpus.n_read, corpus.n_empty) == (4, 1)


@pytest.mark.parametrize("budget", [1, 7, 40, 1000, 10**9])
def test_length_batches(budget):
    lengths = np.random.default_rng(0).integers(1, 60, size=500)
    keep = np.random.default_rng(1).random(500) < 0.8
    for mask in (None, keep):
        batches = length_batches(lengths, budget, mask)
        order = sorted((i for i in range(500) if mask is None or mask[i]), key=lambda i: (-lengths[i], i))
        assert np.concatenate(batches).tolist() == order
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            padded = len(batch) * lengths[batch].max()
            assert padded <= budget or len(batch) == 1
            if following is not None:  # no batch is smaller than it has to be
                assert padded + lengths[batch].max() > budget


def test_length_batches_edge_cases():
    assert length_batches(np.array([], dtype=np.int64), 10) == []
    assert length_batches(np.array([3, 4]), 10, np.array([False, False])) == []
    with pytest.raises(InputError, match="tokens_per_batch: 0"):
        length_batches(np.array([3]), 0)


def test_length_batches_sort_within_windows_of_the_documents_taken():
    lengths = np.array([1, 9, 4, 3, 5, 2, 7, 8])
    keep = lengths != 9
    batches = [batch.tolist() for batch in length_batches(lengths, 8, keep, window=3)]
    assert batches == [[2, 3], [0], [6], [4], [5], [7]]


def test_length_batches_of_a_million_documents():
    lengths = np.random.default_rng(0).integers(1, 2000, size=1_000_000)
    start = time.monotonic()
    batches = length_batches(lengths, 4096)
    assert time.monotonic() - start < 5
    assert sum(map(len, batches)) == 1_000_000


def test_pad_batch():
    corpus = run(texts("the dog", "fox", "and the cat"))
    input_ids, attention_mask = pad_batch(corpus, np.array([2, 1]), pad_id=9)
    assert torch.equal(input_ids, torch.tensor([[4, 1, 5], [3, 9, 9]]))
    assert torch.equal(attention_mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert input_ids.dtype == attention_mask.dtype == torch.int64
    assert pad_batch(corpus, [1])[0].tolist() == [[3]]
    assert pad_batch(corpus, [1, 0])[0].tolist() == [[3, 0], [1, 2]]


def test_batches_cover_the_corpus():
    corpus = run(texts(*("dog " * n for n in range(1, 60))))
    seen = []
    for batch in length_batches(corpus.lengths, 64):
        input_ids, attention_mask = pad_batch(corpus, batch)
        seen += [(i, row[m.bool()].tolist()) for i, row, m in zip(batch, input_ids, attention_mask, strict=True)]
    assert [ids for _, ids in sorted(seen)] == tokens(corpus)
