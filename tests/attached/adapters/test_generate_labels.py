"""Labels of one's own [B] follow the rows that `generate` makes of each sequence."""

import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.errors import ProbeError
from tests.helpers.generation import EOS, fed_back, left_padded, prompts

LANGUAGES = torch.tensor([5, 7, 5])


def by_label(probe):
    return probe.result().conditional_entropy("language").set_index(["name", "label"])[["count", "value"]]


def labelled_alone(model, sequences, languages):
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, torch.no_grad():
        for sequence, language in zip(sequences, languages.tolist(), strict=True):
            with probe.labelled(language=torch.tensor([language])):
                model(input_ids=sequence[None], use_cache=False)
    return probe


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 3, "use_cache": False, "max_new_tokens": 1},
        {"do_sample": True, "num_return_sequences": 2, "guidance_scale": 1.0},
    ],
    ids=str,
)
def test_each_row_has_the_label_of_its_sequence(model, how):
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    torch.manual_seed(2)
    with probe, probe.labelled(language=LANGUAGES):
        output = model.generate(**inputs, **{"max_new_tokens": 6, **how})
    n_each = how.get("num_return_sequences", 1)
    mask = inputs["attention_mask"].repeat_interleave(n_each, dim=0)
    expected = labelled_alone(model, fed_back(output, {"attention_mask": mask}), LANGUAGES.repeat_interleave(n_each))
    ours, theirs = by_label(probe), by_label(expected)
    assert ours.index.tolist() == theirs.index.tolist()
    torch.testing.assert_close(torch.tensor(ours.values), torch.tensor(theirs.values), rtol=1e-4, atol=1e-4)


def test_beams_have_the_label_of_their_sequence(model):
    """Beams change their order, but not their sequence."""
    inputs = left_padded(prompts(9, 4, 7))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    how = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 5, "min_new_tokens": 5}
    with probe, probe.labelled(language=LANGUAGES):
        model.generate(**inputs, **how, suppress_tokens=[EOS], do_sample=False)
    counts = by_label(probe).loc["layer.1"]["count"]
    assert counts.to_dict() == {"5": 4 * (9 + 7 + 2 * 4), "7": 4 * (4 + 4)}


def test_guidance_runs_the_model_on_as_many_rows(model):
    inputs = left_padded(prompts(5, 5, 5))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, probe.labelled(language=LANGUAGES):
        model.generate(**inputs, guidance_scale=1.5, num_return_sequences=2, do_sample=True, max_new_tokens=3)
    assert probe.result().info["labelled_positions"]["language"] == probe.positions


def test_labels_for_each_row_are_taken_as_they_are(model):
    inputs = left_padded(prompts(9, 4))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    with probe, probe.labelled(language=torch.tensor([1, 2, 3, 4])):
        model.generate(**inputs, num_return_sequences=2, do_sample=True, max_new_tokens=1)
    assert by_label(probe).loc["layer.1"]["count"].to_dict() == {"1": 9, "2": 9, "3": 4, "4": 4}


@pytest.mark.parametrize("n_labels", [1, 2, 5])
def test_labels_of_another_number_are_refused_although_they_would_divide_the_rows(model, n_labels):
    inputs = left_padded(prompts(9, 4, 7, 8))
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    expected = rf"language: expected labels \[8, 9\], got \[{n_labels}\]; give one for each row"
    with pytest.raises(ProbeError, match=expected), probe, probe.labelled(language=torch.zeros(n_labels).long()):
        model.generate(**inputs, num_return_sequences=2, do_sample=True, max_new_tokens=1)


def test_rows_that_somebody_else_repeats_are_refused(model):
    """Outside of generate nobody can tell whether rows of a sequence stand side by side."""
    probe = SoftEntropyProbe(model, labels=(), anchor_sets=1)
    ids = torch.stack(prompts(6, 6)).repeat(2, 1)
    with pytest.raises(ProbeError, match=r"language: expected labels \[4, 6\], got \[2\]"), probe, torch.no_grad():
        with probe.labelled(language=torch.tensor([1, 2])):
            model(ids)
