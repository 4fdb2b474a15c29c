"""Attached results side by side, and what their pages are titled by."""

import json

import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.analysis.comparable import check_comparable, follow_same_labels
from softh_probe.cli import main
from softh_probe.errors import InputError
from softh_probe.report.page import run_page, write_report
from softh_probe.report.page_data import distinct_titles, full_title
from tests.helpers.models import tiny_llama
from tests.helpers.probes import batches

TEXTS = torch.randint(0, 40, (12, 16), generator=torch.Generator().manual_seed(0)).tolist()


def attached(texts=TEXTS, size=4, name=None, model=None, anchor_sets=2, **settings):
    model = model or tiny_llama()
    probe = SoftEntropyProbe(model, labels=["input_unigram"], n_anchors=8, anchor_sets=anchor_sets, **settings)
    with probe, torch.no_grad():
        for batch in batches(texts, size):
            model(**batch)
    return probe.result(name)


@pytest.fixture(scope="module")
def first():
    return attached(name="first")


def test_the_same_texts_in_other_batches_or_another_order_are_comparable(first):
    others = [attached(size=5), attached(TEXTS[::-1])]
    assert check_comparable([first, *others], ["a", "b", "c"]) == []
    assert [follow_same_labels(first, other) for other in others] == [True, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": TEXTS[:-1]}, r"a and b differ in what they were fed \(12 and 11 sequences; SHA-256 [0-9a-f]{12}…, "),
        ({"count": "unique_prefix"}, r"in how positions are counted \(count forwarded and unique_prefix\); add"),
        ({"positions": "skip:2"}, r"differ in the positions that count"),
        ({"seed": 3}, r"differ in their anchors \(seed 0 and 3\)"),
    ],
)
def test_what_differs_is_said(first, changes, said):
    with pytest.raises(InputError, match=said):
        check_comparable([first, attached(**changes)], ["a", "b"])


def test_results_whose_texts_are_not_known_are_refused_with_a_reason(first):
    old, run = attached(), attached()
    del old.info["corpus"]
    run.info["corpus"] = {"sha256": "0" * 64}
    unknown = attached()
    unknown.info["corpus"] = {**unknown.info["corpus"], "sequences_sha256": None, "sequence_set_sha256": None}
    unknown.info["corpus"]["sequences_note"] = "fed without input_ids"
    for other, reason in (
        (old, ""),
        (run, r" \(a run's corpus and what other code feeds have other digests\)"),
        (unknown, r" \(fed without input_ids\)"),
    ):
        with pytest.raises(InputError, match=f"which at least one of them does not record{reason}; add --allow-diff"):
            check_comparable([first, other], ["a", "b"])
        assert check_comparable([first, other], ["a", "b"], allow_different=True)


def test_two_saved_results_are_reported_and_compared(first, tmp_path, capsys):
    torch.manual_seed(1)
    first.save(tmp_path / "a")
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)
    attached(TEXTS[::-1], name="second", model=model).save(tmp_path / "b")
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "<title>first · second" in page.read_text()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not any("differ in" in note for note in told["notes"])
    assert ProbeResult.load(tmp_path / "b").info["name"] == "second"


def test_pages_are_titled_by_name_model_and_task(first):
    assert full_title(first) == "first · LlamaModel"
    named = attached()
    named.info["model"] |= {"model": "owner/tiny", "revision": "step10"}
    named.info["evaluation"] = {"tasks": ["lambada", "hella", "piqa", "arc"], "n_shot": {"arc": 5}, "limit": None}
    assert full_title(named) == "tiny @ step10 · lambada, hella, piqa and 1 more"
    named.info.update({"name": "<b>mine</b>", "notes": "no dropout"})
    html = run_page(named)
    assert "&lt;b&gt;mine&lt;/b&gt; · tiny @ step10 · lambada, hella, piqa and 1 more" in html
    assert "<b>mine" not in html
    for text in ("no dropout", "arc 5", "sequences SHA-256, as a set", named.info["corpus"]["sequence_set_sha256"]):
        assert text in html


def test_titles_are_told_apart_by_task_before_folders(first, tmp_path):
    one, two = attached(), attached()
    assert distinct_titles([first, one], [tmp_path / "a", tmp_path / "b"]) == ["first", "LlamaModel"]
    one.info["evaluation"], two.info["evaluation"] = {"tasks": ["x"]}, {"data": "y"}
    assert distinct_titles([one, two], [tmp_path / "a", tmp_path / "b"]) == ["LlamaModel · x", "LlamaModel · y"]
    two.info["evaluation"] = {"tasks": ["x"]}
    assert distinct_titles([one, two], [tmp_path / "a", tmp_path / "b"]) == ["LlamaModel (a)", "LlamaModel (b)"]
