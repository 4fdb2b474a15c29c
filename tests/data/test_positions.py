"""Policies of positions in tokenised documents: places, special tokens, completions; and that nothing else changes."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softh_probe.choices import Choices
from softh_probe.data.completions import Completions
from softh_probe.data.documents import Document, read_documents
from softh_probe.data.token_stream import TokenStream, tokenize
from softh_probe.errors import InputError
from softh_probe.positions import special_ids

TEXTS = ["a b c d e", "a b c", "a", "", "x y z a b c d e f"]


def counted(texts, tokenizer, positions="all", **options) -> list[str]:
    """Give the words of each document that count."""
    documents = [text if isinstance(text, Document) else Document(content=text) for text in texts]
    corpus = tokenize(documents, tokenizer, positions=positions, progress=False, **options)
    found = []
    for i, (start, end) in enumerate(zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)):
        words = tokenizer.convert_ids_to_tokens(corpus.document(i).tolist())
        kept = [True] * len(words) if corpus.counted is None else corpus.counted[start:end]
        found.append(" ".join(word for word, keep in zip(words, kept, strict=True) if keep))
    return found


@pytest.fixture
def framed(tokenizer) -> PreTrainedTokenizerFast:
    """Each text is between [CLS] and [SEP]."""
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ids
    )
    return tokenizer


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", ["a b c d e", "a b c", "a", "x y z a b c d e f"]),
        ("last", ["e", "c", "a", "f"]),
        ("first:2", ["a b", "a b", "a", "x y"]),
        ("first:100", ["a b c d e", "a b c", "a", "x y z a b c d e f"]),
        ("skip:3", ["d e", "", "", "a b c d e f"]),
        ("skip:1,first:3", ["b c", "b c", "", "y z"]),
        ("skip:4,last", ["e", "", "", "f"]),
        ("first:3,last", ["", "c", "a", ""]),
    ],
)
def test_policies_by_place_also_of_documents_that_are_shorter(tokenizer, positions, expected):
    assert counted(TEXTS, tokenizer, positions) == expected


def test_places_are_those_in_a_window(tokenizer):
    split = {"max_length": 4, "overflow": "split"}
    assert counted(TEXTS[-1:], tokenizer, "skip:3", **split) == ["a", "e", ""]
    assert counted(TEXTS[-1:], tokenizer, "last", **split) == ["a", "e", "f"]
    assert counted(TEXTS[-1:], tokenizer, "last", max_length=4) == ["a"]
    tokenizer.truncation_side = "left"
    assert counted(TEXTS[-1:], tokenizer, "first:2", max_length=4) == ["c d"]


def test_special_tokens_are_left_out(framed):
    assert counted(["a b", "c <eos> d"], framed) == ["[CLS] a b [SEP]", "[CLS] c <eos> d [SEP]"]
    assert counted(["a b", "c <eos> d"], framed, skip_special_tokens=True) == ["a b", "c d"]
    assert counted(["a b", "c <eos> d"], framed, "last", skip_special_tokens=True) == ["", ""]
    assert counted(["a b c"], framed, "skip:2", skip_special_tokens=True) == ["b c"]
    framed.add_tokens([AddedToken("[marked]", special=True), AddedToken("[word]", special=False)])
    assert counted(["a [marked] [word]"], framed, skip_special_tokens=True) == ["a [word]"]
    names = framed.convert_ids_to_tokens(special_ids(framed))
    assert set(names) == {"<pad>", "<eos>", "<unk>", "[CLS]", "[SEP]", "[marked]"}


def test_nothing_changes_where_nothing_is_asked_for(tokenizer):
    documents = [Document(content=text) for text in TEXTS]
    plain = tokenize(documents, tokenizer, progress=False)
    assert plain.counted is None
    assert "counted" not in plain.arrays()[0]
    asked = tokenize(documents, tokenizer, positions="last", progress=False)
    assert asked.sha256 == plain.sha256
    assert (asked.offsets == plain.offsets).all()
    stored = type(asked).from_arrays(*asked.arrays(), token_name=str)
    assert (stored.counted == asked.counted).all()


def test_a_stream_without_policies_reads_no_document_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", 2)
    read = []

    def documents():
        for i in range(10):
            read.append(i)
            yield Document(content="a b", row=i)

    next(TokenStream(documents(), tokenizer).chunks())
    assert read == [0, 1]


# --- completions of pairs ---


def pairs(*rows) -> list[Document]:
    return [
        Document(content=content, row=number, columns={"text_column": name})
        for number, row in enumerate(rows)
        for name, content in zip(("chosen", "rejected", "third"), row, strict=False)
    ]


ROWS = [
    ("a b c d", "a b e f g"),
    ("a b", "a b"),  # identical
    ("x y", "z"),  # nothing in common
    ("a b", "a b c"),  # one is a prefix of the other
    ("", "a b"),  # nobody can tell its prompt
    ("a b c", "a b d", "a e"),
]
COMPLETIONS = ["c d", "e f g", "", "", "x y", "z", "", "c", "", "b c", "b d", "e"]


def test_completions_of_a_pair_follow_what_it_has_in_common(tokenizer):
    assert counted(pairs(*ROWS), tokenizer, "completion") == COMPLETIONS
    assert counted(pairs(ROWS[0]), tokenizer, "completion,skip:3") == ["d", "f g"]
    assert counted(pairs(ROWS[0]), tokenizer, "completion,last") == ["d", "g"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_documents_of_a_row_are_counted_together(tokenizer, monkeypatch, size):
    monkeypatch.setattr("softh_probe.data.token_stream._CHUNK_DOCUMENTS", size)
    assert counted(pairs(*ROWS), tokenizer, "completion") == COMPLETIONS


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_a_row_that_max_tokens_cuts_is_counted_by_all_its_documents(tokenizer, max_tokens):
    found = counted(pairs(*ROWS[:2]), tokenizer, "completion", max_tokens=max_tokens)
    assert found == ["c d", "e f g"][: 1 if max_tokens <= 4 else 2]


def test_completions_of_truncated_documents(tokenizer):
    rows = [("a b c d", "a b e f g"), ("a b c d e f x", "a b c d e f y z")]
    assert counted(pairs(*rows), tokenizer, "completion", max_length=3) == ["c", "e", "", ""]
    split = counted(pairs(*rows), tokenizer, "completion", max_length=3, overflow="split")
    assert split == ["c", "d", "e", "f g", "", "", "x", "", "", "y z"]
    tokenizer.truncation_side = "left"
    assert counted(pairs(*rows), tokenizer, "completion", max_length=3) == ["c d", "e f g", "x", "y z"]


def test_completions_of_truncated_documents_with_special_tokens(framed):
    rows = [("a b c d", "a b e f g"), ("a b c d e f x", "a b c d e f y z")]
    assert counted(pairs(*rows), framed, "completion") == ["c d [SEP]", "e f g [SEP]", "x [SEP]", "y z [SEP]"]
    # Where no token of a completion is left, the one that closes the text is none of it either.
    assert counted(pairs(*rows), framed, "completion", max_length=5) == ["c [SEP]", "e [SEP]", "", ""]
    framed.truncation_side = "left"
    assert counted(pairs(*rows), framed, "completion", max_length=5) == [
        *("c d [SEP]", "e f g [SEP]", "x [SEP]", "y z [SEP]")
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("overflow", ["truncate", "split"])
def test_completions_of_any_length_count_as_in_the_whole(framed, side, special, overflow):
    """Against the tokens of whole texts, by a loop."""
    generator = np.random.default_rng(0)
    words = [
        [*"ab"[: generator.integers(1, 3)], *generator.choice([*"cde"], generator.integers(0, 12))] for _ in range(60)
    ]
    rows = [(" ".join(one), " ".join(other)) for one, other in zip(words[::2], words[1::2], strict=True)]
    framed.truncation_side = side
    found = counted(pairs(*rows), framed, "completion", max_length=6, overflow=overflow, add_special_tokens=special)
    expected = []
    for row in rows:
        whole = [["[CLS]", *text.split(), "[SEP]"] if special else text.split() for text in row]
        n_prompt = 0
        while n_prompt < min(map(len, whole)) and whole[0][n_prompt] == whole[1][n_prompt]:
            n_prompt += 1
        for text in whole:
            kept = [(word, i >= n_prompt) for i, word in enumerate(text)]
            edges = (1, 1) if special else (0, 0)
            body, room = kept[edges[0] : len(kept) - edges[1]], 6 - sum(edges)
            if overflow == "split":
                windows = [kept[i : i + 6] for i in range(0, len(kept), 6)]
            elif len(kept) > 6:
                body = body[-room:] if side == "left" else body[:room]
                whole_end = kept[len(kept) - edges[1] :]
                if side == "right" and not any(counts for _, counts in body):
                    whole_end = [(word, False) for word, _ in whole_end]
                windows = [[*kept[: edges[0]], *body, *whole_end]]
            else:
                windows = [kept]
            expected += [" ".join(word for word, counts in window if counts) for window in windows]
    assert found == expected


def chat(*messages) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]


@pytest.fixture
def chatting(tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(["[user]", "[assistant]", "[end]"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' [end] ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    return tokenizer


def test_completions_of_pairs_of_conversations(chatting):
    rows = [(chat("a", "b c"), chat("a", "b d")), (chat("a", "b", "c", "d"), chat("a", "b", "c", "e f"))]
    assert counted(pairs(*rows), chatting, "completion") == ["c [end]", "d [end]", "d [end]", "e f [end]"]
    assert counted(pairs(*rows), chatting, "completion,assistant") == ["c [end]", "d [end]", "d [end]", "e f [end]"]
    assert counted(pairs(*rows), chatting, "assistant") == [
        *("b c [end]", "b d [end]", "b [end] d [end]", "b [end] e f [end]")
    ]


def test_turns_of_truncated_and_split_conversations(chatting):
    messages = [Document(content=chat("a b c", "d e", "f", "g h i j"))]
    assert counted(messages, chatting, "assistant") == ["d e [end] g h i j [end]"]
    assert counted(messages, chatting, "assistant", max_length=7) == ["d"]
    assert counted(messages, chatting, "assistant", max_length=7, overflow="split") == ["d", "e [end] g", "h i j [end]"]
    chatting.truncation_side = "left"
    assert counted(messages, chatting, "assistant", max_length=7) == ["g h i j [end]"]
    assert counted(messages, chatting, "assistant", max_length=2) == ["j [end]"]


def test_documents_behind_max_tokens_may_be_any(chatting):
    documents = [Document(content=chat("a", "b")), Document(content="plain text")]
    assert counted(documents, chatting, "assistant", max_tokens=2) == ["b [end]"]


def test_turns_need_a_tokenizer_that_tells_the_characters_of_its_tokens():
    with pytest.raises(InputError, match="assistant needs a fast tokenizer"):
        counted([Document(content=chat("a", "b"))], ByT5Tokenizer(), "assistant")


def test_a_lone_document_is_no_pair(tokenizer):
    with pytest.raises(InputError, match=r"completion needs a pair .* document 3 stands alone"):
        counted(
            [*pairs(ROWS[0]), Document(content="a b", row=5, columns={"text_column": "x"})], tokenizer, "completion"
        )
    with pytest.raises(InputError, match="document 1 stands alone"):
        counted(["a b"], tokenizer, "completion")


# --- prompt and completion ---


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(tmp_path, rows, choices=None, **options) -> list[Document]:
    return list(read_documents(write(tmp_path / "d.jsonl", rows), choices=choices, **options))


def test_prompt_and_completion_are_one_document(tmp_path, tokenizer):
    rows = [
        {"prompt": "a b", "completion": " c d"},
        {"prompt": "a", "completion": ""},
        {"prompt": None, "completion": "e"},
        {"prompt": "a", "completion": None},
    ]
    choices = Choices()
    for asked in (None, "prompt,completion"):
        documents = read(tmp_path, rows, choices, with_prompts=True, text_column=asked)
        assert [document.content for document in documents] == ["a b c d", "a", "e", "a"]
        assert counted(documents, tokenizer, "completion") == ["c d", "", "e", ""]
        assert counted(documents, tokenizer, "completion", max_length=3) == ["c", "", "e", ""]
    assert [choice.about for choice in choices] == ["text_column", "text_column"]
    assert not choices.warnings()


def test_without_the_policy_they_are_columns_as_any(tmp_path):
    rows = [{"prompt": "a b", "completion": " c d"}]
    with pytest.raises(InputError, match="cannot tell which column"):
        read(tmp_path, rows)
    documents = read(tmp_path, rows, text_column="prompt,completion")
    assert [document.content for document in documents] == ["a b", " c d"]
    assert [document.prompt for document in documents] == [None, None]


def test_a_prompt_with_several_answers(tmp_path, tokenizer):
    rows = [{"prompt": "a b", "chosen": " c d", "rejected": " c"}]
    documents = read(
        tmp_path, rows, with_prompts=True, text_column="prompt,chosen,rejected", label_columns=["text_column"]
    )
    assert [document.columns for document in documents] == [{"text_column": "chosen"}, {"text_column": "rejected"}]
    assert counted(documents, tokenizer, "completion") == ["c d", "c"]


def test_prompts_that_are_conversations(tmp_path, chatting):
    messages = chat("a", "b", "c", "d e")
    rows = [{"prompt": messages[:3], "completion": messages[3:]}, {"prompt": messages[:1], "completion": messages[1:]}]
    documents = read(tmp_path, rows, with_prompts=True)
    assert [document.content for document in documents] == [messages, messages]
    assert counted(documents, chatting, "completion") == ["d e [end]", "b [end] [user] c [end] [assistant] d e [end]"]
    assert counted(documents, chatting, "completion,assistant") == ["d e [end]", "b [end] d e [end]"]


def test_a_prompt_and_a_completion_of_two_kinds_are_refused(tmp_path):
    with pytest.raises(InputError, match="prompt is text and what follows it a conversation in row 1 of"):
        read(tmp_path, [{"prompt": "a", "completion": chat("a")}], with_prompts=True)


def test_a_prompt_that_is_rendered_otherwise_is_refused(chatting):
    chatting.chat_template = (
        "{% for m in messages %}{{ m['content'] + (' <eos> ' if loop.last else ' [end] ') }}{% endfor %}"
    )
    document = Document(content=chat("a", "b"), prompt=chat("a"))
    with pytest.raises(InputError, match="where the completion of document 1 begins is not certain"):
        counted([document], chatting, "completion")


def test_tokens_that_join_prompt_and_completion_count():
    """A prompt's last token may be another one where the completion follows."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "a", "b", "ab", "c"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    (found,) = Completions(tokenizer, {}, True)([Document(content="cabc", prompt="ca")], 1)
    assert tokenizer.convert_ids_to_tokens(found.ids[found.counted].tolist()) == ["ab", "c"]
