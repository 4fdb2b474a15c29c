"""What decides tokens beside the texts, and what a tokenizer has no token for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from softh_probe.choices import Choice
from softh_probe.config import RunConfig, config_yaml
from softh_probe.data.corpus import Corpus
from softh_probe.data.documents import Document
from softh_probe.data.prepared import read_corpus
from softh_probe.data.token_stream import tokenize
from softh_probe.errors import InputError

WORDS = {"?": 0, "the": 1, "dog": 2, "fox": 3, "<s>": 4, "</s>": 5, "yes": 6, "no": 7, "user": 8}
CHAT = [{"role": "user", "content": "the dog"}]
TEMPLATE = (
    "{% if thinking is defined and not thinking %}no {% endif %}{% for m in messages %}<s> {{ m.content }}"
    "{% endfor %}{% set own = extra %}{% if add_generation_prompt %} yes{% endif %}{{ own }}"
)


def words(special: bool = True, **settings: Any) -> PreTrainedTokenizerFast:
    """One token a word, unknown words 0; with `special`, <s> and </s> around a text."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 4), ("</s>", 5)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", **settings)


def corpus_of(*contents: Any, tokenizer: PreTrainedTokenizerFast | None = None, **options: Any) -> Corpus:
    documents = [Document(content=content) for content in contents]
    return tokenize(documents, tokenizer or words(), progress=False, **options)


def tokens(corpus: Corpus) -> list[list[int]]:
    return [corpus.document(i).tolist() for i in range(corpus.n_documents)]


def told(corpus: Corpus) -> list[tuple[str, str, bool]]:
    return [(choice.about, choice.chosen, choice.certain) for choice in corpus.choices]


# --- special tokens ----------------------------------------------------------------------------------------------


def test_special_tokens_are_added_or_not() -> None:
    for asked in (None, True):
        assert tokens(corpus_of("the dog", "fox", add_special_tokens=asked)) == [[4, 1, 2, 5], [4, 3, 5]]
    assert tokens(corpus_of("the dog", "fox", add_special_tokens=False)) == [[1, 2], [3]]


def test_windows_without_special_tokens() -> None:
    text = "the dog the fox the dog"
    assert tokens(corpus_of(text, max_length=4)) == [[4, 1, 2, 5]]
    assert tokens(corpus_of(text, max_length=4, add_special_tokens=False)) == [[1, 2, 1, 3]]
    split = corpus_of(text, max_length=4, overflow="split", add_special_tokens=False)
    assert tokens(split) == [[1, 2, 1, 3], [1, 2]]
    assert split.n_truncated == 1
    assert tokens(corpus_of(text, max_length=2, add_special_tokens=False)) == [[1, 2]]
    with pytest.raises(InputError, match="max_length: 2 "):
        corpus_of(text, max_length=2)


def test_a_template_writes_its_special_tokens_itself() -> None:
    tokenizer = words(chat_template=TEMPLATE)
    for asked in (None, True, False):
        corpus = corpus_of(CHAT, tokenizer=tokenizer, add_special_tokens=asked)
        assert tokens(corpus) == [[4, 1, 2]]
        about = "special_tokens of conversations"
        assert told(corpus) == [(about, "those of the chat template", False)] * (asked is not None)


def test_special_tokens_that_there_are_none_of() -> None:
    corpus = corpus_of("the dog", tokenizer=words(special=False), add_special_tokens=True)
    assert told(corpus) == [("special_tokens", "none", False)]
    assert told(corpus_of("the dog", tokenizer=words(special=False))) == []


# --- variables of the chat template ------------------------------------------------------------------------------


def test_variables_reach_the_template() -> None:
    tokenizer = words(chat_template=TEMPLATE)
    for kwargs, expected in [
        ({"thinking": False}, [7, 4, 1, 2]),
        ({"thinking": True}, [4, 1, 2]),
        ({"add_generation_prompt": True}, [4, 1, 2, 6]),
        ({"extra": " fox"}, [4, 1, 2, 3]),
    ]:
        assert tokens(corpus_of(CHAT, tokenizer=tokenizer, chat_template_kwargs=kwargs)) == [expected]


@pytest.mark.parametrize("name", ["enable_thinking", "own", "m", "messages", "tokenize", "chat_template", "namespace"])
def test_a_variable_that_the_template_never_reads(name: str) -> None:
    """Templates ignore unknown names without a word."""
    with pytest.raises(InputError, match=f"reads no variable {name}; it reads add_generation_prompt, extra, thinking"):
        corpus_of(CHAT, tokenizer=words(chat_template=TEMPLATE), chat_template_kwargs={name: False})


def test_variables_without_a_template_or_a_conversation() -> None:
    with pytest.raises(InputError, match="chat_template_kwargs: the tokenizer has no chat template"):
        corpus_of(CHAT, chat_template_kwargs={"thinking": False})
    with pytest.raises(InputError, match="chat_template_kwargs: no document is a conversation"):
        corpus_of("the dog", tokenizer=words(chat_template=TEMPLATE), chat_template_kwargs={"thinking": False})
    assert corpus_of("the dog", chat_template_kwargs={}).n_documents == 1


# --- text without tokens -----------------------------------------------------------------------------------------


def deaf(special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer that drops the letter x."""
    tokenizer = words(special=special)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_that_gives_no_tokens(special: bool) -> None:
    """Special tokens alone are no tokens of a text."""
    problem = r"^tokenizer: it gives no tokens for any of the 2 documents with text \(of 4 read\).*--tokenizer$"
    with pytest.raises(InputError, match=problem):
        corpus_of("xx", "", "x x", " ", tokenizer=deaf(special))
    with pytest.raises(InputError, match=r"^data: none of 2 documents has any text"):
        corpus_of("", "  ", tokenizer=deaf(special))


@pytest.mark.parametrize("special", [True, False])
def test_documents_without_tokens_are_counted_apart_from_empty_ones(special: bool) -> None:
    corpus = corpus_of("xx", "", "the dog", [], tokenizer=deaf(special))
    assert corpus.source.tolist() == [2]
    assert (corpus.n_read, corpus.n_empty, corpus.n_without_tokens) == (4, 3, 1)
    (choice,) = corpus.choices
    assert (choice.about, choice.certain) == ("documents without tokens", False)
    assert "1 of 2 documents" in choice.reason


def test_unknown_tokens_are_counted_and_a_notable_share_is_told() -> None:
    corpus = corpus_of("the cat", "the dog", "the fox")
    assert (corpus.n_unknown, corpus.n_tokens) == (1, 12)
    assert told(corpus) == [("unknown tokens", "8.33% of tokens are ?", False)]
    corpus = corpus_of("the cat", *["the dog"] * 99)
    assert (corpus.n_unknown, told(corpus)) == (1, [])


def test_an_end_of_text_that_settings_call_unknown_is_none() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "<end>": 2}, []))
    backend.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<end>", eos_token="<end>")
    corpus = corpus_of("ab", tokenizer=tokenizer)
    assert tokens(corpus) == [[0, 1, 2]]
    assert (corpus.n_unknown, told(corpus)) == (0, [])


def test_a_tokenizer_that_drops_characters_is_told() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    assert told(corpus_of("ab", "ba", tokenizer=tokenizer)) == []
    corpus = corpus_of("abé", "ba", "\ud800b", [], tokenizer=tokenizer)
    assert tokens(corpus) == [[0, 1], [1, 0], [1]]
    assert told(corpus) == [("dropped text", "28.6% of characters have no token", False)]


def test_a_tokenizer_that_fails_on_a_word_is_refused_in_one_line() -> None:
    backend = Tokenizer(models.WordLevel({"the": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(InputError, match=r"^tokenizer: .*--tokenizer$"):
        corpus_of("the dog", tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend))


# --- the digest of texts -----------------------------------------------------------------------------------------


def entry(kind: bytes, content: str) -> bytes:
    encoded = content.encode()
    return kind + len(encoded).to_bytes(8, "little") + encoded


def test_the_digest_of_texts_is_as_defined() -> None:
    chat = [{"role": "user", "content": "thé dog"}]
    corpus = corpus_of(" the dog\n", "", chat, "fox", tokenizer=words(chat_template=TEMPLATE))
    expected = entry(b"T", " the dog\n") + entry(b"C", '[{"content":"thé dog","role":"user"}]') + entry(b"T", "fox")
    assert corpus.texts_sha256 == hashlib.sha256(expected).hexdigest()


def test_only_texts_change_the_digest_of_texts() -> None:
    contents = ["the dog the fox", "xx", CHAT, "fox"]
    first = corpus_of(*contents, tokenizer=words(chat_template=TEMPLATE))
    other = deaf()
    other.chat_template = "{{ messages[0].content }}"
    for options in [
        {"tokenizer": other},
        {"tokenizer": words(special=False, chat_template=TEMPLATE), "max_length": 2},
        {"tokenizer": words(chat_template=TEMPLATE), "max_length": 3, "overflow": "split"},
        {"tokenizer": words(chat_template=TEMPLATE), "add_special_tokens": False},
        {"tokenizer": words(chat_template=TEMPLATE), "chat_template_kwargs": {"thinking": False}},
    ]:
        corpus = corpus_of(*contents, **options)
        assert corpus.texts_sha256 == first.texts_sha256
        assert corpus.sha256 != first.sha256
    reordered = [{"content": "the dog", "role": "user"}]
    same = corpus_of(*contents[:2], reordered, "fox", tokenizer=words(chat_template=TEMPLATE))
    assert same.texts_sha256 == first.texts_sha256
    seen = {first.texts_sha256}
    others = [contents[::-1], contents[1:], ["the dog", "the fox", *contents[1:]], [json.dumps(CHAT), *contents]]
    for changed in [*others, [*contents[:3], "Fox"]]:
        seen.add(corpus_of(*changed, tokenizer=words(chat_template=TEMPLATE)).texts_sha256)
    assert len(seen) == 6


# --- configurations ----------------------------------------------------------------------------------------------


def config_of(tmp_path: Path, rows: list[Any], **settings: Any) -> RunConfig:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return RunConfig(model="m", data=str(data), out=str(tmp_path / "out"), **settings)


def test_settings_are_part_of_what_the_cache_keeps(tmp_path: Path) -> None:
    texts, chats = [{"text": "the dog"}, {"text": "cat"}], [{"messages": CHAT}]
    tokenizer = words(chat_template=TEMPLATE)
    of_tokenizer = Choice(about="tokenizer", chosen="x", reason="y")
    for rows, first, second in [
        (texts, {}, {"add_special_tokens": False}),
        (chats, {}, {"chat_template_kwargs": {"thinking": False}}),
        (chats, {"chat_template_kwargs": {"thinking": False}}, {"chat_template_kwargs": {"thinking": True}}),
    ]:
        one, other = (
            read_corpus(config_of(tmp_path, rows, **settings), tokenizer, progress=False)
            for settings in (first, second)
        )
        assert tokens(one) != tokens(other)
        assert one.texts_sha256 == other.texts_sha256
        again = read_corpus(config_of(tmp_path, rows, **second), tokenizer, choices=[of_tokenizer], progress=False)
        assert again.choices == (of_tokenizer, *other.choices)
        assert again.texts_sha256 == other.texts_sha256
        assert (again.n_unknown, again.n_without_tokens) == (other.n_unknown, other.n_without_tokens)


def test_settings_stand_in_the_yaml_of_a_run(tmp_path: Path) -> None:
    settings = {"tokenizer": "a/b", "add_special_tokens": False, "chat_template_kwargs": {"thinking": False}}
    text = config_yaml(config_of(tmp_path, [], **settings))
    assert "tokenizer: a/b\n" in text
    assert "add_special_tokens: false\n" in text
    assert "chat_template_kwargs:\n  thinking: false\n" in text
