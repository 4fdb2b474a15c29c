"""What a result says of its sample of labels: choices, and what is not known."""

import math

import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.choices import Choices
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, sampled

BIGRAMS = ("input_bigram", "output_bigram")


@pytest.fixture(scope="module")
def result():
    return result_of(tiny_llama(), labels=NAMES[:4])


def limits(result) -> list:
    choices = Choices()
    result.record_limits(choices, told=Choices())
    return [choice for choice in choices if choice.about in ("label_rows", *result.label_sets)]


def test_a_result_of_all_labels_records_no_sample(result):
    assert limits(result) == []
    assert result.unknown_by_sampling() == {}
    assert "sampling_sd" not in result.to_pandas()


def test_a_sample_is_recorded_as_a_choice_and_not_warned_of(result):
    found = limits(sampled(result, *BIGRAMS))
    assert [str(choice) for choice in found] == [
        f"label_rows: a sample of 8,123 of 193,456 labels of {name} (a layer holds at most 8,192 rows of n-gram labels "
        "at a time; 'all' follows every label)"
        for name in BIGRAMS
    ]
    assert all(choice.certain for choice in found)
    estimated = limits(sampled(result, BIGRAMS[0], estimated=True))
    assert estimated[0].chosen == "a sample of 8,123 of an estimated 193,456 labels of input_bigram"


@pytest.mark.parametrize(
    ("tensors", "unknown"),
    [
        (["conditional_entropy", "conditional_entropy_sampling_sd"], "its information"),
        (["corrected_information", "corrected_information_sampling_sd"], "its corrected information"),
        (["conditional_entropy_sampling_sd"], "the standard error of its information"),
    ],
)
def test_what_a_sample_does_not_tell_is_warned_of_with_the_remedy(result, tensors, unknown):
    few = sampled(result, *BIGRAMS, label_rows=1)
    for name in tensors:
        few.tensors[name] = few.tensors[name].clone()
        few.tensors[name][2, few.label_sets.index("output_bigram")] = math.nan
    assert few.unknown_by_sampling() == {"output_bigram": unknown}
    uncertain = [str(choice) for choice in limits(few) if not choice.certain]
    assert uncertain == [
        f"output_bigram: {unknown} is not known (too few of its labels were followed; raise label_rows (--label-rows))"
    ]
    told = Choices()
    few.record_limits(Choices(), told)
    assert told.warnings() == uncertain  # the words are those of the next result, so that it does not warn again


def test_a_probe_with_few_rows_tells_of_its_sample():
    tokens = torch.randint(0, 40, (60, 16), generator=torch.Generator().manual_seed(0))
    model = tiny_llama()
    found = {}
    for rows in (1, 200):
        probe = SoftEntropyProbe(model, labels=BIGRAMS, n_anchors=20, anchor_sets=2, label_rows=rows)
        with probe, torch.no_grad():
            model(input_ids=tokens)
        found[rows] = probe
    with pytest.warns(UserWarning, match="is not known .too few of its labels were followed; raise label_rows") as told:
        nothing = [found[1].result() for _ in range(2)][1]
    assert len(told) == 2  # one a label set
    assert nothing.unknown_by_sampling()["input_bigram"] == "its information"
    assert nothing.info["label_sampling"]["input_bigram"]["estimated"]
    some = found[200].result()
    assert some.unknown_by_sampling() == {}
    sampling = some.info["label_sampling"]
    assert [choice["chosen"] for choice in some.info["choices"] if choice["about"] == "label_rows"] == [
        f"a sample of {of_set['followed']:,} of an estimated {of_set['labels']:,} labels of {name}"
        for name, of_set in sampling.items()
    ]


def test_a_sampled_result_is_saved_and_loaded(result, tmp_path):
    one = sampled(result, *BIGRAMS)
    one.save(tmp_path)
    loaded = ProbeResult.load(tmp_path)
    assert loaded.sampled_sets == [*BIGRAMS]
    for key, sd_R in one.sampling_sds().items():
        torch.testing.assert_close(loaded.sampling_sds()[key], sd_R)
    table = loaded.to_pandas("nats", means=False)
    part = table[(table.metric == "conditional_entropy") & (table.label_set == "input_bigram")]
    assert part.sampling_sd.tolist() == pytest.approx([0.02 * (1 + 0.1 * i) for i in range(len(part))])
    assert not table[table.label_set == "input_unigram"].sampling_sd.any()
