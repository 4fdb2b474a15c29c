"""The assistant's turns in conversations, by templates of real models: by their own marks, and turn by turn."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from softh_probe.choices import Choices
from softh_probe.data.assistant import tokens_in
from softh_probe.data.documents import Document
from softh_probe.data.token_stream import tokenize
from softh_probe.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text) -> dict:
    return {"role": "user", "content": text}


def says(text, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def parts(text) -> list[dict]:
    return [{"type": "text", "text": text}]


CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT = {"role": "tool", "name": "add", "content": "42", "tool_call_id": "abcdefghi"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "integer"}}}}]
ONE = [user("Hi"), says("Hello")]
TWO = [user("Hi"), says("Hello"), user("Bye"), says("Ciao")]
#: Answers that begin as headers do, and that repeat the questions.
ALIKE = [user("<b>"), says("<b>"), user("<think"), says("<think")]
WITH_SYSTEM = [SYSTEM, *TWO]
CALLS = [user("Hi"), says("", tool_calls=[CALL]), RESULT, says("It is 42"), user("Bye"), says("Ciao")]
THOUGHT = [user("Hi"), says("<think>\nhm\n</think>\n\nHello"), user("Bye"), says("<think>\nwell\n</think>\n\nCiao")]
REASONED = [user("Hi"), says("Hello", reasoning_content="hm"), user("Bye"), says("Ciao", reasoning_content="well")]
OPEN = [user("Hi"), says("Hello"), user("Bye")]
TWICE = [user("Hi"), says("Hello"), says("Again"), user("Bye"), says("Ciao")]
PARTS = [user(parts("Hi")), says(parts("Hello")), user(parts("Bye")), says(parts("Ciao"))]
FIRST = [says("Hello"), user("Hi"), says("Ciao")]
NONE = [user("Hi")]
EMPTY = [user("Hi"), says(""), user("Bye"), says("Ciao")]

LLAMA_CALL = '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'
QWEN_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
EOT, END, EOS = "<|eot_id|>", "<|im_end|>\n", "</s>"
DEEPSEEK = "<｜end▁of▁sentence｜>"
UNTHOUGHT = "<think>\n\n</think>\n\n"

#: What the assistant says, by template and conversation.
SAID = [
    ("llama3", TWO, [f"Hello{EOT}", f"Ciao{EOT}"]),
    ("llama3", ALIKE, [f"<b>{EOT}", f"<think{EOT}"]),
    ("llama3", WITH_SYSTEM, [f"Hello{EOT}", f"Ciao{EOT}"]),
    ("llama3", TWICE, [f"Hello{EOT}", f"Again{EOT}", f"Ciao{EOT}"]),
    ("llama3", NONE, []),
    ("llama3", OPEN, [f"Hello{EOT}"]),
    ("llama3_1", CALLS, [LLAMA_CALL, f"It is 42{EOT}", f"Ciao{EOT}"]),
    ("qwen2_5", TWO, [f"Hello{END}", f"Ciao{END}"]),
    ("qwen2_5", FIRST, [f"Hello{END}", f"Ciao{END}"]),
    ("qwen2_5", CALLS, [QWEN_CALL, f"It is 42{END}", f"Ciao{END}"]),
    ("qwen3", TWO, [f"Hello{END}", f"{UNTHOUGHT}Ciao{END}"]),
    ("qwen3", ALIKE, [f"<b>{END}", f"{UNTHOUGHT}<think{END}"]),
    ("qwen3", THOUGHT, [f"Hello{END}", f"<think>\nwell\n</think>\n\nCiao{END}"]),
    ("qwen3", REASONED, [f"Hello{END}", f"<think>\nwell\n</think>\n\nCiao{END}"]),
    ("qwen3", CALLS, [QWEN_CALL, f"It is 42{END}", f"{UNTHOUGHT}Ciao{END}"]),
    ("qwen3", CALLS[:4], [QWEN_CALL, f"{UNTHOUGHT}It is 42{END}"]),
    ("qwen3", TWICE, [f"Hello{END}", f"Again{END}", f"{UNTHOUGHT}Ciao{END}"]),
    ("qwen3", FIRST, [f"Hello{END}", f"{UNTHOUGHT}Ciao{END}"]),
    ("qwen3", EMPTY, [END, f"{UNTHOUGHT}Ciao{END}"]),
    ("qwen3", OPEN, [f"Hello{END}"]),
    # The prompt opens a thought, which is dropped from the history.
    ("qwen3_5_think", TWO, [f"Hello{END}", f"\n</think>\n\nCiao{END}"]),
    ("qwen3_5_think", THOUGHT, [f"Hello{END}", f"well\n</think>\n\nCiao{END}"]),
    ("qwen3_5_think", PARTS, [f"Hello{END}", f"\n</think>\n\nCiao{END}"]),
    ("deepseek_r1_distill", TWO, [f"Hello{DEEPSEEK}", f"Ciao{DEEPSEEK}"]),
    ("deepseek_r1_distill", ALIKE, [f"<b>{DEEPSEEK}", f"<think{DEEPSEEK}"]),
    ("deepseek_r1_distill", THOUGHT, [f"\n\nHello{DEEPSEEK}", f"\n\nCiao{DEEPSEEK}"]),
    ("deepseek_r1_distill", WITH_SYSTEM, [f"Hello{DEEPSEEK}", f"Ciao{DEEPSEEK}"]),
    ("gemma", TWO, ["Hello<end_of_turn>\n", "Ciao<end_of_turn>\n"]),
    ("gemma", ALIKE, ["<b><end_of_turn>\n", "<think<end_of_turn>\n"]),
    ("mistral", TWO, [f" Hello{EOS}", f" Ciao{EOS}"]),
    ("mistral", ALIKE, [f" <b>{EOS}", f" <think{EOS}"]),
    ("mistral_v3", TWO, [f" Hello{EOS}", f" Ciao{EOS}"]),
    # The system's turn is merged into the last one of the user, wherever that is.
    ("mistral_v3", [*WITH_SYSTEM, user("?")], [f" Hello{EOS}", f" Ciao{EOS}"]),
    ("mistral_v3", WITH_SYSTEM, [f" Hello{EOS}", f" Ciao{EOS}"]),
    ("zephyr", WITH_SYSTEM, [f"Hello{EOS}\n", f"Ciao{EOS}\n"]),
    ("phi3", TWO, ["Hello<|end|>\n", f"Ciao<|end|>\n{EOS}"]),
    ("phi3", WITH_SYSTEM, ["Hello<|end|>\n", f"Ciao<|end|>\n{EOS}"]),
]
#: Templates that come with marks, too, and say the same.
MARKED = [
    *(("llama3", found) for found in (ONE, TWO, ALIKE, WITH_SYSTEM, TWICE, OPEN, NONE)),
    *(("gemma", found) for found in (ONE, TWO, ALIKE, OPEN, NONE)),
    *(("qwen3", found) for found in (TWO, THOUGHT, REASONED, CALLS, FIRST, EMPTY)),
]


def tokenizer_of(template: str, eos: str = EOS) -> PreTrainedTokenizerFast:
    """Tokens are characters."""
    names = {character: i for i, character in enumerate(sorted({*map(chr, range(10, 127)), *DEEPSEEK, "é"}))}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(names, [])), bos_token="<s>", eos_token=eos, chat_template=template
    )
    made.chat_template = template
    return made


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def corpus_of(tokenizer, conversations, **options):
    documents = [Document(content=messages) for messages in conversations]
    return tokenize(documents, tokenizer, positions="assistant", progress=False, max_length=4000, **options)


def said(tokenizer, messages, **options) -> list[str]:
    """Give the runs of tokens that count, as text, in a conversation; the tokens are those of the template."""
    corpus = corpus_of(tokenizer, [messages], **options)
    variables = options.get("chat_template_kwargs", {})
    assert corpus.tokens.tolist() == tokenizer.apply_chat_template(messages, return_dict=False, **variables)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], corpus.counted, [False]]).astype(int)))
    return [tokenizer.decode(corpus.tokens[a:b]).replace(" ", "\0") for a, b in edges.reshape(-1, 2)]


def joined(turns) -> list[str]:
    return [turn.replace(" ", "\0") for turn in turns]


@pytest.fixture(autouse=True)
def characters(monkeypatch):
    """Characters are decoded without spaces between them."""
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "decode", lambda self, ids: "".join(self.convert_ids_to_tokens(ids.tolist()))
    )


@pytest.mark.parametrize(("name", "messages", "expected"), SAID)
def test_turns_are_found_by_rendering_turn_by_turn(name, messages, expected):
    tokenizer = tokenizer_of(template(name))
    separate = said(tokenizer, messages)
    assert separate == joined(expected) or ("".join(separate) == "".join(joined(expected)) and messages is TWICE)


@pytest.mark.parametrize(("name", "messages"), MARKED)
def test_marks_of_a_template_say_what_rendering_turn_by_turn_says(name, messages):
    marked = template(f"{name}_training")
    plain = marked
    for tag in ("generation", "endgeneration"):
        for opening in ("{%- ", "{% "):
            for closing in (" -%}", " %}"):
                # A statement that writes nothing keeps the white space that the tag strips.
                plain = plain.replace(f"{opening}{tag}{closing}", f"{opening}set nothing = 0{closing}")
    assert "generation %}" not in plain
    assert said(tokenizer_of(marked), messages) == said(tokenizer_of(plain), messages)


@pytest.mark.parametrize("messages", [TWO, ALIKE, WITH_SYSTEM, FIRST, OPEN, EMPTY])
def test_marks_may_begin_before_the_prompt_ends(messages):
    """Those of this template hold the line break of the header, which its generation prompt has."""
    marked, plain = (said(tokenizer_of(template(name)), messages) for name in ("qwen2_5_training", "qwen2_5"))
    assert marked == [f"\n{turn}" for turn in plain]


def test_the_way_is_recorded():
    for name, way in [("llama3", "turn by turn"), ("llama3_training", "marks as generation")]:
        choices = Choices()
        corpus = corpus_of(tokenizer_of(template(name)), [TWO], choices=choices)
        (choice,) = [choice for choice in corpus.choices if choice.about == "positions of the assistant"]
        assert way in choice.chosen
        assert choice.certain
        assert not choices.warnings()


def test_variables_of_the_template_are_passed_on():
    tokenizer = tokenizer_of(template("qwen3"))
    plain = said(tokenizer, TWO, chat_template_kwargs={"enable_thinking": False})
    assert plain == joined([f"Hello{END}", f"Ciao{END}"])  # the prompt has written the empty thought
    with_tools = said(tokenizer, CALLS, chat_template_kwargs={"tools": TOOLS})
    assert with_tools == joined([QWEN_CALL, f"It is 42{END}", f"{UNTHOUGHT}Ciao{END}"])
    prompted = said(tokenizer, OPEN, chat_template_kwargs={"add_generation_prompt": True})
    assert prompted == joined([f"Hello{END}"])


@pytest.mark.parametrize(
    ("name", "messages", "variables"),
    [
        ("gptoss", TWO, {}),  # a turn ends with <|return|> or <|end|>
        ("qwen3", THOUGHT, {"enable_thinking": False}),  # the prompt ends a thought that the answer has
    ],
)
def test_what_is_not_certain_is_refused(name, messages, variables):
    tokenizer = tokenizer_of(template(name))
    with pytest.raises(InputError) as caught:
        corpus_of(tokenizer, [ONE[:1], messages], chat_template_kwargs=variables)
    assert str(caught.value).startswith("positions: where the assistant's turns of document 2 begin and end is not")
    assert "{% generation %}" in str(caught.value)


def test_what_is_no_conversation_is_refused(tokenizer):
    with pytest.raises(InputError, match="document 2 is plain text"):
        tokenize([Document(content=""), Document(content="a b")], tokenizer, positions="assistant", progress=False)
    with pytest.raises(InputError, match="it has no chat template"):
        corpus_of(tokenizer, [ONE])


def test_a_template_that_fails_is_told_by_its_own_reason():
    with pytest.raises(InputError, match="does not take document 1: System role not supported"):
        corpus_of(tokenizer_of(template("gemma")), [WITH_SYSTEM])
    with pytest.raises(InputError, match="does not take document 1: System role not supported"):
        corpus_of(tokenizer_of(template("gemma_training")), [WITH_SYSTEM])


def byte_level(texts, trim_offsets: bool) -> PreTrainedTokenizerFast:
    """Words with the space before them are tokens, as of GPT-2; with `trim_offsets` their offsets leave it out."""
    from tokenizers import processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>")


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_spaces_that_a_tokenizer_trims_belong_to_their_words(trim_offsets, marked):
    """Transformers' own mask of a turn that begins with such a space is empty, and so are those of later turns."""
    opening, closing = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
    source = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}"
        f"{opening}{{{{ ' ' + m['content'] + ' ' + eos_token }}}}{closing}{{% endif %}}{{% endfor %}}"
    )
    tokenizer = byte_level(["Hello there é", "Ciao bella"] * 20, trim_offsets)
    tokenizer.chat_template = source
    messages = [user("Hi"), says("Hello there é"), user("Bye"), says("Ciao")]
    corpus = corpus_of(tokenizer, [messages])
    text = "".join(tokenizer.convert_ids_to_tokens(corpus.tokens[corpus.counted].tolist()))
    assert text == "ĠHelloĠthereĠÃ©Ġ</s>ĠCiaoĠ</s>"


def test_a_tokenizer_that_writes_spaces_as_signs():
    """As of Llama 2: the sign stands before a text, with or without a character of its own."""
    vocabulary = {token: i for i, token in enumerate(["▁", *map(chr, range(33, 127)), "<unk>"])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("[X]", special=True)]})
    tokenizer.chat_template = "{% for m in messages %}{{ '[X]' + m['role'] + '[X]' + m['content'] }}{% endfor %}"
    corpus = corpus_of(tokenizer, [[user("Hi"), says("Yes I do"), user("Hm")]])
    counted = tokenizer.convert_ids_to_tokens(corpus.tokens[corpus.counted].tolist())
    # Without a generation prompt, a model would have to write the header, too.
    assert "".join(counted) == "[X]▁assistant[X]▁Yes▁I▁do"


def test_tokens_over_the_edge_of_a_turn_count():
    assert tokens_in([(2, 4)], [(0, 3), (3, 5), (5, 6)]).tolist() == [True, True, False]
    assert tokens_in([], [(0, 3)]).tolist() == [False]
    assert tokens_in([(0, 4)], []).tolist() == []
    assert tokens_in([(4, 6)], [(0, 3), (4, 4), (4, 6), (6, 6)]).tolist() == [False, False, True, False]


@pytest.mark.checkpoint
@pytest.mark.slow
def test_the_real_tokenizer_of_smollm2(smollm2_gguf):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    corpus = corpus_of(tokenizer, [TWO, WITH_SYSTEM, TWICE])
    found = [
        "".join(tokenizer.convert_ids_to_tokens(corpus.document(i)[corpus.counted[a:b]].tolist()))
        for i, (a, b) in enumerate(zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True))
    ]
    two = "Hello<|im_end|>ĊCiao<|im_end|>Ċ"
    assert found == [two, two, "Hello<|im_end|>ĊAgain<|im_end|>ĊCiao<|im_end|>Ċ"]
