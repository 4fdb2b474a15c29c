"""The cards of a sweep's page, against the results that they are made of."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from softh_probe.report.page import sweep_page
from softh_probe.report.sweep_files import read_sweep
from softh_probe.report.sweep_findings import sweep_findings
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of
from tests.helpers.sweeps import collected_folder


@pytest.fixture(scope="module")
def results():
    spreads = {1: 0.05, 10: 0.1, 100: 0.5}
    return {
        step: result_of(tiny_llama(initializer_range=spread), labels=NAMES[:2], anchor_sets=2)
        for step, spread in spreads.items()
    }


def mean_of(result, metric, label_set, unit):
    table = result.to_pandas(unit, means=False)
    return table[(table.metric == metric) & (table.label_set == label_set)].value.mean()


def test_cards_tell_the_first_and_the_last_checkpoint(results, tmp_path):
    sweep = read_sweep(collected_folder(tmp_path, {("m", step): result for step, result in results.items()}))
    found = {one.question: one for one in sweep_findings(sweep)}
    assert [*found] == [
        "How spread out are the hidden states?",
        "What do layers keep of what was read?",
        "What do layers say of what comes?",
        "What do layers say of topic?",
    ]
    first, last = (mean_of(results[step], "entropy", "", "efficiency") for step in (1, 100))
    entropy = found["How spread out are the hidden states?"]
    assert entropy.answer == f"{100 * first:.0f}% → {100 * last:.0f}%"
    assert f"As many as {20**first:.0f}, then {20**last:.0f} of 20 anchors, evenly used." in entropy.text
    assert entropy.text.startswith(sweep.courses["entropy|"][0])
    first, last = (mean_of(results[step], "mutual_information", "input_unigram", "bits") for step in (1, 100))
    kept = found["What do layers keep of what was read?"]
    assert kept.answer.startswith(f"{first:.2f} → {last:.2f}")
    assert kept.answer.endswith(" bits")
    table = results[100].to_pandas(means=False)
    wide = table[table.label_set == "input_unigram"].pivot(index="name", columns="metric", values="value")
    share = min(1.0, (wide.mutual_information_null / wide.mutual_information).median())
    null = wide.mutual_information_null.median() * math.log2(20)
    said = f"At the end about {null:.2f} bits of it ({100 * share:.0f}%) in a typical layer would come by chance alone."
    assert said in kept.text
    page = sweep_page(sweep)
    assert f'<p class="answer">{entropy.answer}</p>' in page
    assert kept.question in page


def test_information_is_told_of_what_labels_hold_where_that_is_known(results, tmp_path):
    sweep = read_sweep(collected_folder(tmp_path, {("m", step): result for step, result in results.items()}))
    known = sweep.table[sweep.table.metric == "mutual_information"]
    own = known[known.label_set == "input_unigram"].assign(metric="label_entropy", value=2.75 / math.log2(20))
    table = pd.concat([sweep.table[sweep.table.metric != "label_entropy"], own], ignore_index=True)
    table["checkpoint"] = table.checkpoint.astype(sweep.table.checkpoint.dtype)
    table["name"] = table.name.astype(sweep.table.name.dtype)
    answers = [one.answer for one in sweep_findings(replace(sweep, table=table))]
    assert answers[1].endswith(" of 2.75 bits")
    assert not answers[2].endswith(" of 2.75 bits")
    other = own.assign(value=own.value + 0.1 * (own.checkpoint == sweep.done[0]["checkpoint"]))
    table = pd.concat([table[table.metric != "label_entropy"], other], ignore_index=True)
    table["checkpoint"] = table.checkpoint.astype(sweep.table.checkpoint.dtype)
    table["name"] = table.name.astype(sweep.table.name.dtype)
    assert " of " not in sweep_findings(replace(sweep, table=table))[1].answer


def test_cards_of_one_checkpoint_and_of_several_models(results, tmp_path):
    one = read_sweep(collected_folder(tmp_path / "one", {("m", 1): results[1]}))
    entropy = mean_of(results[1], "entropy", "", "efficiency")
    assert sweep_findings(one)[0].answer == f"{100 * entropy:.0f}%"
    two = {(model, step): results[step] for model in "ab" for step in (1, 100)}
    answer = sweep_findings(read_sweep(collected_folder(tmp_path / "two", two)))[0].answer
    assert [line.split(": ")[0] for line in answer.split("\n")] == ["ofa", "ofb"]
    three = {(model, 100): results[100] for model in "abc"}
    found = sweep_findings(read_sweep(collected_folder(tmp_path / "three", three)))[0]
    last = mean_of(results[100], "entropy", "", "efficiency")
    assert found.answer == f"{100 * last:.1f}% to {100 * last:.1f}%"
