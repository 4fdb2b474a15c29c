"""The tokens of a tokenizer.json, whichever class the library loads it with.

For some types of models, transformers builds a class of its own from the vocabulary in tokenizer.json and leaves the
file's rules for normalising and splitting text aside. The file is what a model was trained with: its rules decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softh_probe.choices import Choices
from softh_probe.errors import abbreviated, is_of_tokenizers, short_repr

TOKENIZER_JSON = "tokenizer.json"
_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_MOST_SPECIAL = 50  # special tokens that sample texts are made of; some tokenizers reserve thousands

#: Texts on which rules for tokens differ: case, accents (composed or not), digits, spaces, lines, code, scripts.
SAMPLES = (
    "How are you doing? I'm fine, they've said; DON'T we'll see.",
    "12345 cats, 3.14159, 1,000,000 and 2024-05-17; x1y22z333",
    "  two spaces  before,   three  between, and at the end  ",
    "a\ttab\n\na blank line\r\nWindows\n    indented\n",
    "def f(x: int) -> str:\n    return f'{x!r}'  # HTTPServer, snake_case, camelCase2\n\tpass",
    "Größe: naïve café, Ångström, cafe\u0301 and Z\u030calgo",
    "ｆｕｌｌ ｗｉｄｔｈ ＡＢＣ１２３, ﬁne ligatures, ①②, ½, x²",
    "«Quoted» — “dashes” … ‘ellipses’ (brackets) [1] {2} <3> $4 €5 50% #6 @7 a_b a/b a\\b",
    "!!! ??? ... --- === *** ((())) :-) \u200b\u00a0\u2003\ufeff",
    "Η γρήγορη αλεπού. Быстрая лисица, ЁЖИК. Գարուն է.",
    "שלום עולם مرحبا بالعالم ١٢٣٤ سلام",
    "नमस्ते दुनिया १२३ สวัสดีชาวโลก வணக்கம்",
    "你好，世界！今天是2024年。 こんにちは世界 カタカナ 안녕하세요 세계",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 🤖 ❤️ 𝔘𝔫𝔦 𝟙𝟚𝟛",
    "https://example.org/a?b=1&c=%20 me@example.org",
)


def follow_file(tokenizer: PreTrainedTokenizerBase, folder: Path, choices: Choices) -> PreTrainedTokenizerBase:
    """Return a tokenizer that gives the tokens of the folder's tokenizer.json.

    Special tokens, the chat template and truncation are those of the settings beside the file.

    Args:
        tokenizer: what transformers loaded from the folder.
        folder: the folder of the checkpoint or tokenizer.
        choices: collects what was used where files or the library's class disagree.

    Returns:
        `tokenizer`, or the file's own where `tokenizer` has other rules.
    """
    file = folder / TOKENIZER_JSON
    if not file.is_file():
        read = [name for name in type(tokenizer).vocab_files_names.values() if (folder / name).is_file()]
        reason = f"there is no {TOKENIZER_JSON}; transformers {transformers.__version__} reads {', '.join(read)}"
        choices.add("tokenizer", type(tokenizer).__name__, reason, certain=True)
        return tokenizer
    kept: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    if _has_python_parts(tokenizer):
        reason = f"it splits text in Python, which {TOKENIZER_JSON} cannot hold; the file's rules are not used"
        choices.add("tokenizer", type(tokenizer).__name__, reason)
        return tokenizer
    if _rules(tokenizer) == _rules(kept):
        kept = tokenizer
    else:
        _tell_differences(tokenizer, kept, choices)
    stored = json.loads(file.read_text(encoding="utf-8"))
    _tell_special_tokens(kept, folder, choices)
    _tell_added_tokens(kept, folder, stored, choices)
    _tell_vocabularies(kept, folder, stored, choices)
    return kept


def _has_python_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a fast tokenizer has rules that cannot be stored."""
    try:
        _rules(tokenizer)
    except Exception as error:
        if is_of_tokenizers(error):
            return True
        raise
    return False


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Give everything that decides a tokenizer's tokens; None for one in Python."""
    if not tokenizer.is_fast:
        return None
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    names = ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")
    return {name: stored[name] for name in names}


def _tell_differences(theirs: PreTrainedTokenizerBase, kept: PreTrainedTokenizerBase, choices: Choices) -> None:
    """Record that the class of transformers gives other tokens than the file, if that shows on sample texts."""
    name = f"{type(theirs).__name__} of transformers {transformers.__version__}"
    samples = [*SAMPLES, *(f"a{token}b {token} c" for token in kept.all_special_tokens[:_MOST_SPECIAL])]
    ours_theirs = [(text, _ids(kept, text), _ids(theirs, text)) for text in samples]
    if other := [entry for entry in ours_theirs if entry[1] != entry[2]]:
        text, ours, others = max(other, key=lambda entry: abs(_length(entry[1]) - _length(entry[2])))
        example = f"{short_repr(text)} has {_length(ours)} tokens, not {_length(others)}"
        reason = f"for {len(other)} of {len(samples)} sample texts {name} gives other tokens than the file: {example}"
        choices.add("tokenizer", TOKENIZER_JSON, reason)
    if (ours_added := _special(kept)) != (theirs_added := _special(theirs)):
        choices.add("special_tokens", ours_added, f"as the file adds them to a text; {name} adds {theirs_added}")


def _tell_special_tokens(kept: PreTrainedTokenizerBase, folder: Path, choices: Choices) -> None:
    """Record that settings ask for other special tokens at the ends of a text than are added."""
    settings, ids = _json(folder / _CONFIG), _ids(kept, "a", special=True) or []
    # By their places: some models have one token for both ends.
    ends = {"add_bos_token": (kept.bos_token_id, ids[:1]), "add_eos_token": (kept.eos_token_id, ids[-1:])}
    contradicted = [
        f"{name}: {str(settings[name]).lower()}"
        for name, (index, there) in ends.items()
        if settings.get(name) is not None and index is not None and bool(settings[name]) != (index in there)
    ]
    if contradicted:
        reason = f"as {TOKENIZER_JSON} adds them to a text, though {_CONFIG} says {', '.join(contradicted)}"
        choices.add("special_tokens", _special(kept), f"{reason}; make the files agree")


def _tell_added_tokens(kept: PreTrainedTokenizerBase, folder: Path, stored: dict[str, Any], choices: Choices) -> None:
    """Record tokens that the settings declare and tokenizer.json lacks, or has under other numbers."""
    declared = _declared(folder)
    vocabulary = kept.get_vocab()
    in_file = {token["content"] for token in stored.get("added_tokens") or ()} | _vocabulary(stored).keys()
    others = [f"{t} {vocabulary.get(t)} (not {i})" for t, i in declared.items() if vocabulary.get(t) != i]
    if others:
        reason = f"{_CONFIG} declares other numbers than {TOKENIZER_JSON} gives; make the files agree"
        choices.add("added_tokens", abbreviated(others), reason)
    if lacking := [token for token in declared if token not in in_file and vocabulary.get(token) == declared[token]]:
        choices.add("added_tokens", abbreviated(lacking), f"{_CONFIG} adds them to {TOKENIZER_JSON}", certain=True)


def _declared(folder: Path) -> dict[str, int]:
    """Give the number of each added token that the settings beside tokenizer.json declare."""
    found: dict[str, int] = dict(_json(folder / _ADDED))
    for index, token in (_json(folder / _CONFIG).get("added_tokens_decoder") or {}).items():
        found[token["content"] if isinstance(token, dict) else str(token)] = int(index)
    return found


def _tell_vocabularies(kept: PreTrainedTokenizerBase, folder: Path, stored: dict[str, Any], choices: Choices) -> None:
    """Record that the vocabulary in tokenizer.json is another one than that of vocab.json, vocab.txt or merges.txt."""
    vocabulary, merges = kept.get_vocab(), (stored.get("model") or {}).get("merges")
    if words := _json(folder / "vocab.json"):
        _tell_other("vocab.json", [w for w, index in words.items() if vocabulary.get(w) != index], choices)
    if lines := _lines(folder / "vocab.txt"):
        _tell_other("vocab.txt", [w for index, w in enumerate(lines) if vocabulary.get(w) != index], choices)
    if merges and (lines := _lines(folder / "merges.txt")):
        ours = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        theirs = [line for line in lines if line and not line.startswith("#version")]
        differing = [theirs_i for ours_i, theirs_i in zip(ours, theirs, strict=False) if ours_i != theirs_i]
        _tell_other("merges.txt", differing + theirs[len(ours) :] + ours[len(theirs) :], choices)


def _tell_other(name: str, entries: Sequence[str], choices: Choices) -> None:
    if entries:
        reason = f"{name} beside it differs in {len(entries):,} entries ({abbreviated(entries)}); remove the older one"
        choices.add("tokenizer", TOKENIZER_JSON, reason)


def _vocabulary(stored: dict[str, Any]) -> dict[str, Any]:
    """Give the vocabulary of a tokenizer.json: by token, or as a list of tokens with scores."""
    found: Any = (stored.get("model") or {}).get("vocab") or {}
    return dict(found) if isinstance(found, dict) else {entry[0]: entry[1] for entry in found}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int] | None:
    """Give the tokens of a text; None where the tokenizer takes no text alone."""
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except Exception:  # a class for tables or pages, or a text outside the vocabulary: either is a difference
        return None


def _length(ids: list[int] | None) -> int:
    return 0 if ids is None else len(ids)


def _special(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the special tokens that a tokenizer adds to a text, in order."""
    alone = set(_ids(tokenizer, "a") or ())
    added = [i for i in _ids(tokenizer, "a", special=True) or () if i not in alone]
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(added))) or "none"


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no such file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[str]:
    """Read the lines of a file; none where there is no such file."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if path.is_file() else []
