"""Training steps and tokens in the names of checkpoints, as people write them.

>>> read_name("multiberts-seed_0-step_20k").step
20000
>>> reading = read_name("TinyLlama-1.1B-intermediate-step-50K-105b")
>>> reading.step, reading.tokens, reading.note
(50000, 105000000000, "'-105b' read as tokens")

What a name says in so many words (step, iteration, checkpoint, tokens) is taken. What can be read in two ways is taken
in the likelier one, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from softh_probe.errors import InputError

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
#: Numbers above are no steps, and do not fit the tables.
_MOST, _MOST_DIGITS = 10**18, 40
#: Steps above are more likely sizes of models.
_MOST_STEPS = 10**8

_GROUPED = r"[1-9]\d{0,2}(?:(?P<group>[,.'_ \u00a0\u2009\u202f])\d{3})(?:(?P=group)\d{3})*"
_DIGITS = rf"(?P<digits>{_GROUPED}|\d+(?:\.\d+)?(?:e\+?\d{{1,2}})?)"
_END = r"(?![\d])(?!\.\d)(?!e[-+]?\d)"
_NUMBER = rf"{_DIGITS}(?P<scale>[kmbt](?![a-z]))?{_END}"
_BETWEEN = r"[-_ =:.#(]{0,3}"
#: Words for steps, the surest first; those that follow a letter or stand before one are other words.
_WORDS = (
    r"steps?",
    r"(?:iter(?:ation)?|update)s?",
    r"(?:checkpoint|ckpt|chkpt)s?",
    r"(?<![a-z])(?:batch(?:es)?|ba|it)",
)
_N_SURE = 3
_AFTER = [re.compile(rf"{word}{_BETWEEN}{_NUMBER}", re.IGNORECASE) for word in _WORDS]
_BEFORE = [
    re.compile(rf"(?<![a-z0-9.]){_DIGITS}(?P<scale>[kmbt])?[-_ ]?{word}(?![a-z])", re.IGNORECASE)
    for word in _WORDS[:_N_SURE]
]
_TOKENS = (
    re.compile(rf"[-_ ]?tokens?{_BETWEEN}{_NUMBER}", re.IGNORECASE),
    re.compile(rf"[-_ ]?(?<![a-z0-9.]){_DIGITS}(?P<scale>[kmbt])?[-_ ]?tokens?(?![a-z])", re.IGNORECASE),
)
_TOKENS_AT_END = re.compile(r"[-_ ](?P<digits>\d+(?:\.\d+)?)(?P<scale>[bt])(?![a-z0-9])", re.IGNORECASE)
#: What makes a number another one than the step of training.
_OTHER_STEPS = re.compile(
    r"(?<![a-z])(?:warm-?up|max|accum(?:ulation)?|inference|sampling|denoising|every|per|time|multi|sub)[-_ ]?$",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d\d[-_]?(?:0[1-9]|1[0-2])[-_]?(?:0[1-9]|[12]\d|3[01])(?!\d)")
_UNREADABLE = re.compile(rf"(?:{'|'.join(_WORDS[:_N_SURE])}){_BETWEEN}\d[\w.+-]*", re.IGNORECASE)
_WHOLE = re.compile(_NUMBER, re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NameReading:
    """What a name says of training.

    Attributes:
        step, tokens: None where the name has none.
        note: what was read in the likelier of two ways, or could not be read; None where all is certain.
        series: the name with `*` in place of the step, and without the tokens: one for all steps of a training run.
    """

    step: int | None = None
    tokens: int | None = None
    note: str | None = None
    series: str


def read_name(name: str, pattern: str | None = None) -> NameReading:
    """Read training step and tokens from the name of a checkpoint.

    Args:
        name: of a folder, a revision, or a model on the hub.
        pattern: regular expression with the groups `step` (or a single group) and `tokens`; None knows how people
            write them.

    Raises:
        InputError: what the pattern finds is no number.
    """
    if pattern is not None:
        return _by_pattern(name, pattern)
    notes: list[str] = []
    found = _find_step(name, notes)
    step = _step_of(found, notes) if found else None
    tokens = _find_tokens(name, found, notes)
    if (
        found is None
        and tokens is None
        and (bare := re.fullmatch(r"(?P<digits>\d+)(?P<scale>k)?", name, re.IGNORECASE))
    ):
        found, step = bare, _value(bare)
        notes += [f"{name!r} read as step {step:,}"] if bare["scale"] and step is not None else []
    elif found is None and (unread := _UNREADABLE.search(name)) and not _OTHER_STEPS.search(name[: unread.start()]):
        notes.append(f"{unread[0]!r} is no step")
    spans = [(*tokens.span(), "")] if tokens else []
    if found and step is not None:
        spans.append((found.start("digits"), found.end("scale") if found["scale"] else found.end("digits"), "*"))
    return NameReading(
        step=step,
        tokens=_value(tokens) if tokens else None,
        note="; ".join(notes) or None,
        series=_masked(name, spans),
    )


def _by_pattern(name: str, pattern: str) -> NameReading:
    found = re.search(pattern, name)
    if found is None:
        return NameReading(series=name)
    groups = found.groupdict()
    of_step: str | int = "step" if groups.get("step") else 1
    step = _read_number(found[of_step], name, found[0])
    spans, tokens = [(*found.span(of_step), "*")], None
    if groups.get("tokens"):
        tokens = _read_number(groups["tokens"], name, found[0])
        spans.append((*found.span("tokens"), ""))
    return NameReading(step=step, tokens=tokens, series=_masked(name, spans))


def _read_number(text: str | None, name: str, found: str) -> int:
    whole = _WHOLE.fullmatch(text) if text else None
    value = _value(whole) if whole else None
    if value is None:
        raise InputError(f"step_pattern: what it finds in {name!r} is no number: {found!r}")
    return value


def _find_step(name: str, notes: list[str]) -> re.Match[str] | None:
    """Find the number that the surest word for steps stands beside."""
    chosen: re.Match[str] | None = None
    for kind, (found, is_after) in enumerate(_candidates(name)):
        for match in found:
            if chosen is None:
                chosen = match
                _note_unsure(name, match, notes, is_after=is_after, kind=kind)
            elif kind < _N_SURE and _value(match) != _value(chosen):
                notes.append(f"{match[0]!r} is not what {chosen[0]!r} says")
    return chosen


def _candidates(name: str) -> Iterator[tuple[list[re.Match[str]], bool]]:
    """Yield, for each kind of word, the numbers after it, or else those before it."""
    for kind, after in enumerate(_AFTER):
        found = [match for match in after.finditer(name) if not _OTHER_STEPS.search(name[: match.start()])]
        if kind >= _N_SURE:
            found = [match for match in found if not name[match.end() : match.end() + 1].isalpha()]
        before = [] if found or kind >= _N_SURE else [*_BEFORE[kind].finditer(name)]
        yield (found or before), not before


def _note_unsure(name: str, match: re.Match[str], notes: list[str], *, is_after: bool, kind: int) -> None:
    """Note what a name may mean otherwise: a word of few letters, a number of two parts, a letter that scales."""
    group = match.groupdict().get("group")
    following = name[match.end() :]
    unsure = (
        kind >= _N_SURE
        or (group not in (None, ",") and not _is_decimal(match))
        or (is_after and _DATE.match(name, match.start("digits")))
        or (is_after and re.match(r"[kmbt][a-z]", following, re.IGNORECASE))
        or (is_after and kind == _N_SURE - 1 and re.match(r"_\d", following))
        or (is_after and match.start() and name[match.start() - 1].isalpha() and not _known_prefix(name, match))
        or (not is_after and not match[0].lower().endswith("s"))
    )
    value = _value(match)
    if unsure and value is not None:
        notes.append(f"{match[0].strip('-_ ')!r} read as step {_step_value(match) or value:,}")


def _known_prefix(name: str, match: re.Match[str]) -> bool:
    return bool(re.search(r"(?:global|train|training|n|num)$", name[: match.start()], re.IGNORECASE))


def _step_value(match: re.Match[str]) -> int | None:
    """Compute a step: no training has billions of them, so what is written as billions is the number alone."""
    if (match["scale"] or "").lower() in ("b", "t"):
        return _value(match, scaled=False)
    return _value(match)


def _step_of(match: re.Match[str], notes: list[str]) -> int | None:
    step, text = _step_value(match), match[0].strip("-_ ")
    if step is None:
        notes.append(f"{text!r} is no step")
    elif step != _value(match) or step >= _MOST_STEPS:
        notes.append(f"{text!r} read as step {step:,}")
    notes[:] = dict.fromkeys(notes)
    return step


def _find_tokens(name: str, step: re.Match[str] | None, notes: list[str]) -> re.Match[str] | None:
    taken = range(*step.span("digits")) if step else range(0)
    for expression in _TOKENS:
        for match in expression.finditer(name):
            if match.start("digits") not in taken and _value(match) is not None:
                return match
    at_end = _TOKENS_AT_END.match(name, step.end()) if step else None
    if at_end:
        notes.append(f"{at_end[0]!r} read as tokens")
    return at_end


def _value(match: re.Match[str], *, scaled: bool = True) -> int | None:
    """Compute a number; None where it is no whole one, or has more digits than any step."""
    digits, group = match["digits"], match.groupdict().get("group")
    if len(digits) > _MOST_DIGITS:
        return None
    if group is not None and not _is_decimal(match):
        digits = digits.replace(group, "")
    value = Fraction(digits) * (_SCALES[(match["scale"] or "").lower()] if scaled else 1)
    return int(value) if value.denominator == 1 and value < _MOST else None


def _is_decimal(match: re.Match[str]) -> bool:
    """Whether the dot in a number is a decimal point (1.125k), not one between thousands (1.125)."""
    return bool(match["scale"]) and match["digits"].count(".") == 1


def _masked(name: str, spans: list[tuple[int, int, str]]) -> str:
    for start, end, text in sorted(spans, reverse=True):
        name = name[:start] + text + name[end:]
    return name.strip("-_ ")
