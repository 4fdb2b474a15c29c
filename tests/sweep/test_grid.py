"""Checkpoints of a configuration."""

import pytest
from huggingface_hub import GitRefInfo, GitRefs, HfApi

from softh_probe.errors import InputError
from softh_probe.sweep import SweepConfig
from softh_probe.sweep.collection import equal_weights, out_of_order
from softh_probe.sweep.grid import expand


@pytest.fixture
def branches(monkeypatch):
    """Revisions of any model on the hub."""
    names: list[str] = []

    def refs(api, model):
        found = [GitRefInfo(name=n, ref=f"refs/heads/{n}", target_commit="0" * 40) for n in sorted(names)]
        return GitRefs(branches=found, converts=[], tags=[])

    monkeypatch.setattr(HfApi, "list_repo_refs", refs)
    return names


def config(**changes) -> SweepConfig:
    return SweepConfig(**{"model": "own/model", "data": "texts.txt", "out": "out", **changes})


def test_models_times_revisions_have_names_of_their_own(branches):
    branches += ["main", "step1", "step2"]
    points = expand(config(model="own/one,own/two", revision="step*", last=1))
    assert [p.checkpoint for p in points] == ["own/one@step2", "own/two@step2"]
    assert len({p.folder for p in points}) == 2


def test_what_cannot_be_in_order_is_told(branches):
    branches += ["step1-tokens2B", "step2-tokens1B", "step3-tokens1B", "step3-a"]
    points = expand(config(revision="*"))
    assert out_of_order(points) == [["step3-a", "step3-tokens1B"], ["step1-tokens2B", "step2-tokens1B"]]
    prints = [("a", "x"), ("b", "y"), ("c", "x"), ("d", None), ("e", None)]
    assert equal_weights([{"checkpoint": c, "weights_sha256": w} for c, w in prints]) == [["a", "c"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"launcher": "k8s"}, "launcher: expected local or slurm, got 'k8s'"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"disk_gb": 0}, "disk_gb: expected more than 0"),
        ({"step_pattern": "step"}, r"step_pattern: 'step' has no group"),
        ({"step_pattern": "("}, r"step_pattern: '\(' is no regular expression"),
        ({"model": []}, "model: expected one name or more"),
        ({"overwrite": True}, "overwrite: a sweep keeps what is finished"),
    ],
)
def test_bad_fields_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        config(**changes)
