"""tokenizer.py: the tokens are those of tokenizer.json; where files, settings or classes disagree, results say so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from softh_probe.choices import Choice, Choices
from softh_probe.errors import InputError
from softh_probe.models.source import ModelSource, resolve_model
from softh_probe.models.tokenizer import load_tokenizer
from softh_probe.models.tokenizer_file import SAMPLES

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TEXTS = [*SAMPLES, "How are you doing? 12345 cats", "</s> between <s>tokens"]
DIGITS = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")


def byte_level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def bpe(*splits: Any, normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE that splits text by GPT-2's rules, after `splits`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level()])
    made.decoder = decoders.ByteLevel()
    if normalizer:
        made.normalizer = normalizer
    alphabet = byte_level().alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


def word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), DIGITS])
    made.train_from_iterator(
        TEXTS * 5, trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    )
    return made


def unigrams() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFD()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


def write(folder: Path, made: Tokenizer, model_type: str = "llama", **settings: Any) -> Path:
    """Write a checkpoint whose weights are never read."""
    transformers.CONFIG_MAPPING[model_type]().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    return folder


def load(folder: Path, **options: Any) -> tuple[Any, list[Choice]]:
    choices = Choices()
    tokenizer = load_tokenizer(resolve_model(str(folder)), choices=choices, **options)
    return tokenizer, list(choices)


def ids(tokenizer: Any, texts: list[str] = TEXTS) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def of(made: Tokenizer, texts: list[str] = TEXTS) -> list[list[int]]:
    return [made.encode(text, add_special_tokens=False).ids for text in texts]


# --- tokenizer.json ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "declared"),
    [
        ("qwen2", "PreTrainedTokenizerFast"),
        ("qwen2", "Qwen2Tokenizer"),
        ("qwen2", "Qwen2TokenizerFast"),
        ("olmo2", "GPT2TokenizerFast"),
        ("llama", "LlamaTokenizerFast"),
        ("gpt_neox", "GPTNeoXTokenizerFast"),
        ("roberta", "RobertaTokenizer"),
        ("bert", None),
    ],
)
@pytest.mark.parametrize("make", [bpe, lambda: bpe(DIGITS, normalizer=normalizers.NFKC()), word_pieces, unigrams])
def test_tokens_are_those_of_the_file(
    make: Callable[[], Tokenizer], model_type: str, declared: str | None, tmp_path: Path
) -> None:
    write(tmp_path, make(), model_type, tokenizer_class=declared)
    tokenizer, _ = load(tmp_path)
    # Read again: scores of unigrams are rounded in the file, so that ties may fall otherwise than before.
    assert ids(tokenizer) == of(Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


def test_a_class_of_other_rules_is_told_and_settings_stay(tmp_path: Path) -> None:
    made = bpe(DIGITS)
    template = "{{ messages[0].content }}"
    settings = {"chat_template": template, "truncation_side": "left", "model_max_length": 77}
    write(tmp_path, made, "qwen2", tokenizer_class="PreTrainedTokenizerFast", **settings)
    tokenizer, choices = load(tmp_path)
    assert [(choice.about, choice.chosen, choice.certain) for choice in choices] == [
        ("tokenizer", "tokenizer.json", False)
    ]
    assert "Qwen2Tokenizer of transformers" in choices[0].reason
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert (tokenizer.chat_template, tokenizer.truncation_side, tokenizer.model_max_length) == (template, "left", 77)


def test_a_class_of_the_same_rules_stays_and_nothing_is_told(tmp_path: Path) -> None:
    original = transformers.Qwen2Tokenizer(vocab=bpe().get_vocab(), merges=[], **SETTINGS)
    write(tmp_path, original.backend_tokenizer, "qwen2", tokenizer_class="Qwen2Tokenizer")
    tokenizer, choices = load(tmp_path)
    assert type(tokenizer) is transformers.Qwen2Tokenizer
    assert choices == []


@pytest.mark.parametrize(("asked", "template"), [(True, False), (False, True), (True, True), (False, False)])
def test_settings_that_contradict_the_files_special_tokens_are_told(
    asked: bool, template: bool, tmp_path: Path
) -> None:
    made = bpe()
    if template:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    write(tmp_path, made, tokenizer_class="LlamaTokenizerFast", add_bos_token=asked)
    tokenizer, choices = load(tmp_path)
    assert tokenizer("a cat").input_ids == made.encode("a cat").ids
    told = [(choice.about, choice.chosen, choice.certain) for choice in choices]
    assert told == [("special_tokens", "<s>" if template else "none", False)] * (asked != template)


@pytest.mark.parametrize("single", ["</s> $A", "$A </s>"])
def test_one_token_for_both_ends_is_told_by_its_place(single: str, tmp_path: Path) -> None:
    """Models such as GPT-2's relatives begin and end texts with the same token."""
    made = bpe()
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("</s>", 2)])
    ends = {"add_bos_token": single[0] == "<", "add_eos_token": single[0] == "$"}
    write(tmp_path, made, tokenizer_class="LlamaTokenizerFast", bos_token="</s>", **ends)
    tokenizer, choices = load(tmp_path)
    assert tokenizer("a cat").input_ids == made.encode("a cat").ids
    assert choices == []


def test_special_tokens_that_a_class_adds_by_itself_are_left_out_and_told(tmp_path: Path) -> None:
    made = word_pieces()  # no template of special tokens; BertTokenizer has one
    special = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    write(tmp_path, made, "bert", tokenizer_class="BertTokenizer", **special)
    tokenizer, choices = load(tmp_path)
    assert tokenizer("a cat").input_ids == made.encode("a cat").ids
    assert any(choice.about == "special_tokens" and not choice.certain for choice in choices)


def test_special_tokens_of_the_file_stay(tmp_path: Path) -> None:
    made = bpe(DIGITS)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    write(tmp_path, made, "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer, _ = load(tmp_path)
    assert tokenizer("a cat").input_ids == made.encode("a cat").ids
    assert tokenizer.num_special_tokens_to_add() == 2


def test_added_tokens_that_only_the_settings_declare(tmp_path: Path) -> None:
    made = bpe()
    size = made.get_vocab_size()
    declared = {str(size): {"content": "<|a|>"}, str(size + 1): {"content": "<|b|>"}}
    write(tmp_path, made, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=declared)
    tokenizer, choices = load(tmp_path)
    assert tokenizer("<|b|>", add_special_tokens=False).input_ids == [size + 1]
    assert [(choice.about, choice.chosen, choice.certain) for choice in choices] == [
        ("added_tokens", "<|a|>, <|b|>", True)
    ]
    declared = {str(size + 7): {"content": "<|a|>"}, "5": {"content": "<s>"}}
    write(tmp_path, made, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=declared)
    _, choices = load(tmp_path)
    (choice,) = choices
    assert (choice.about, choice.certain) == ("added_tokens", False)
    assert f"(not {size + 7})" in choice.chosen
    assert "<s> 1 (not 5)" in choice.chosen


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "merges.txt"])
def test_an_older_vocabulary_beside_the_file(name: str, tmp_path: Path) -> None:
    made = bpe()
    write(tmp_path, made, tokenizer_class="PreTrainedTokenizerFast")
    vocabulary = made.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    contents = {
        "vocab.json": lambda end: json.dumps({word: i for i, word in enumerate([*words[:-1], end or words[-1]])}),
        "vocab.txt": lambda end: "\n".join([*words[:-1], end or words[-1]]) + "\n",
        "merges.txt": lambda end: "\n".join(["#version: 0.2", *merges[:-1], end or merges[-1]]) + "\n",
    }
    (tmp_path / name).write_text(contents[name](""))
    assert load(tmp_path)[1] == []
    (tmp_path / name).write_text(contents[name]("q u"))
    tokenizer, (choice,) = load(tmp_path)
    assert (choice.about, choice.chosen, choice.certain) == ("tokenizer", "tokenizer.json", False)
    assert name in choice.reason
    assert ids(tokenizer) == of(made)


def test_a_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    made = bpe()
    write(tmp_path, made, "gpt2", tokenizer_class="GPT2Tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(made.get_vocab()))
    with pytest.raises(InputError, match=r"^model .*: its tokenizer: .*merges.*--tokenizer$"):
        load(tmp_path)
    merges = json.loads(made.to_str())["model"]["merges"]
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, merges)))
    tokenizer, (choice,) = load(tmp_path)
    assert ids(tokenizer) == of(made)
    assert (choice.chosen, choice.certain) == ("GPT2Tokenizer", True)


def test_a_missing_tokenizer_names_the_flag(tmp_path: Path) -> None:
    write(tmp_path, bpe(), "gpt2")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"^model .*tokenizer.json.*--tokenizer$"):
        load(tmp_path)


# --- another tokenizer -------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkpoint without a tokenizer."""
    folder = tmp_path / "bare"
    write(folder, bpe())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return folder


def test_a_folder_or_a_file_gives_the_tokenizer(bare: Path, tmp_path: Path) -> None:
    made, other = bpe(DIGITS), tmp_path / "other"
    write(other, made, "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    for name in ("config.json", "model.safetensors"):  # a tokenizer alone, as its save_pretrained writes it
        (other / name).unlink()
    for name in (other, other / "tokenizer.json"):
        tokenizer, choices = load(bare, tokenizer=str(name))
        assert ids(tokenizer) == of(made)
        (choice,) = choices
        assert (choice.about, choice.chosen, choice.certain) == ("tokenizer", str(name), True)
        assert f"{made.get_vocab_size()} tokens; the checkpoint has none" in choice.reason


def test_a_tokenizer_in_place_of_the_checkpoints_own_is_warned_of(tmp_path: Path) -> None:
    made = word_pieces()
    one, other = write(tmp_path / "one", bpe()), write(tmp_path / "other", made)
    tokenizer, choices = load(one, tokenizer=str(other))
    assert ids(tokenizer) == of(made)
    (choice,) = [choice for choice in choices if choice.chosen == str(other)]
    assert not choice.certain
    assert f"the checkpoint's own has {bpe().get_vocab_size()}" in choice.reason
    same = write(tmp_path / "same", bpe())
    _, choices = load(one, tokenizer=str(same))
    assert [choice.certain for choice in choices] == [True]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "no such file or folder"),
        ("a/b/c", "no such path, and no hub id"),
        ("{bare}/model.safetensors", "no tokenizer is read from a .safetensors file"),
        ("{bare}/config.json", "expected a hub id"),
        ("{empty}", "the folder holds no tokenizer"),
        ("{bare}", "tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_refused(name: str, said: str, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    name = name.format(bare=bare, empty=tmp_path / "empty")
    with pytest.raises(InputError, match=rf"^tokenizer '.*{said}.*tokenizer.json file"):
        load(bare, tokenizer=name)


def test_an_unknown_hub_id_is_an_error_about_the_tokenizer(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(source: ModelSource, _: list[str]) -> Path:
        raise InputError(f"model {source.name!r}: no such path here and no such model on the hub")

    monkeypatch.setattr("softh_probe.models.tokenizer.fetch", fetch)
    with pytest.raises(InputError, match=r"^tokenizer 'some/one': no such path"):
        load(bare, tokenizer="some/one")


def test_a_tokenizer_of_the_hub_is_named_with_its_commit(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bpe(DIGITS)
    write(tmp_path / "0123abc", made, "qwen2", tokenizer_class="PreTrainedTokenizerFast")
    monkeypatch.setattr("softh_probe.models.tokenizer.fetch", lambda *_: tmp_path / "0123abc")
    tokenizer, choices = load(bare, tokenizer="some/one")
    assert ids(tokenizer) == of(made)
    assert "some/one at commit 0123abc" in [choice.chosen for choice in choices]


# --- .gguf -------------------------------------------------------------------------------------------------------


def write_gguf(file: Path, made: Tokenizer, split: str | None) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    vocabulary = made.get_vocab()
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_head_count(2)
    writer.add_feed_forward_length(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if split:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if i < len(SPECIAL) else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("split", "splits", "told"),
    [
        ("gpt-2", [], False),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True)], False),
        ("zork", [], True),
        (None, [], True),
    ],
)
def test_a_gguf_names_how_text_is_split(split: str | None, splits: list[Any], told: bool, tmp_path: Path) -> None:
    """As the tokenizer does that was stored, or as GPT-2 does, with a warning."""
    made = bpe(*splits)
    file = write_gguf(tmp_path / "model.gguf", made, split)
    tokenizer, choices = load(file)
    texts = [*TEXTS[:-1], "at 1   \n  2 ½  3"]  # merges of white space that digits end
    assert ids(tokenizer, texts) == of(made, texts)
    assert [choice.certain for choice in choices] == [False] * told
    if told:
        assert "--tokenizer" in choices[0].reason
    tokenizer, _ = load(write(tmp_path / "model", bpe()), tokenizer=str(file))
    assert ids(tokenizer, texts) == of(made, texts)


def test_a_tokenizer_without_rules_in_python_is_asked_for_no_more(tmp_path: Path) -> None:
    """A class that splits text in Python keeps its rules, which no file can hold."""
    from softh_probe.models.tokenizer_file import follow_file

    made = bpe()
    write(tmp_path, made)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)

    class Words:
        def pre_tokenize(self, words: Any) -> None:
            words.split(lambda _, part: part.split(" ", "removed"))

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Words())
    choices = Choices()
    assert follow_file(tokenizer, tmp_path, choices) is tokenizer
    assert [choice.certain for choice in choices] == [False]
