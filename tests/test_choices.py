import warnings

from softh_probe.choices import Choice, Choices


def test_choices_are_kept_once_in_their_order():
    choices = Choices()
    for about in ("b", "a", "b"):
        choices.add(about, "x", "why")
    assert [choice.about for choice in choices] == ["b", "a"]


def test_only_uncertain_choices_are_warned_of_and_only_once():
    choices = Choices(warn=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        choices.add("padding", "none", "why")
        choices.add("padding", "none", "why")
        choices.add("encoding", "utf-16", "by its byte order mark", certain=True)
    assert [str(warning.message) for warning in seen] == ["padding: none (why)"]
    assert choices.warnings() == ["padding: none (why)"]


def test_choices_survive_json():
    choices = Choices([Choice(about="a", chosen="b", reason="c", certain=True)])
    assert list(Choices.from_json(choices.to_json())) == list(choices)


def test_a_choice_is_one_printable_line():
    assert str(Choice(about="a\nb", chosen="c\x1b[31m", reason="d")) == "a b: c\\x1b[31m (d)"
