"""Checkpoints of a configuration."""

import json
from pathlib import Path

import pytest
from huggingface_hub import GitRefInfo, GitRefs, HfApi

from softh_probe.errors import InputError
from softh_probe.sweep import SweepConfig
from softh_probe.sweep.collection import equal_weights, out_of_order
from softh_probe.sweep.dry_run import describe_plan
from softh_probe.sweep.grid import expand, inferred_steps


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


# --- steps in names ------------------------------------------------------------------------------------------

STEPS = ("100k", "0k", "20k")


def test_hub_ids_that_differ_in_the_step_alone_are_one_training_run():
    models = [f"google/multiberts-seed_{seed}-step_{step}" for seed in (0, 1) for step in STEPS]
    points = expand(config(model=models, tokens_per_step=2))
    assert [(p.model, p.step, p.tokens) for p in points[:3]] == [
        (f"google/multiberts-seed_0-step_{k}k", k * 1000, k * 2000) for k in (0, 20, 100)
    ]
    assert [p.series for p in points] == ["google/multiberts-seed_0-step_*"] * 3 + [
        "google/multiberts-seed_1-step_*"
    ] * 3
    assert len({p.folder for p in points}) == 6
    assert [p.step for p in expand(config(model=models, last=1))] == [100_000, 100_000]


def test_hub_ids_without_steps_are_models_of_their_own():
    points = expand(config(model=["own/pythia-70m", "own/pythia-160m"]))
    assert [(p.series, p.step) for p in points] == [("own/pythia-70m", None), ("own/pythia-160m", None)]


@pytest.mark.parametrize("pattern", [r"step_(?P<step>\w+)", r"^multiberts.*_(\w+)$", r"^google/.*_(?P<step>\d+k)"])
def test_a_pattern_finds_steps_in_hub_ids(pattern):
    models = [f"google/multiberts-seed_0-step_{step}" for step in STEPS]
    points = expand(config(model=models, step_pattern=pattern))
    assert [p.step for p in points] == [0, 20_000, 100_000]
    assert len({p.series for p in points}) == 1


def test_a_revision_says_more_than_the_id(branches):
    branches += ["main", "step1", "step2"]
    points = expand(config(model="own/model-step_5", revision="step*"))
    assert [(p.step, p.series) for p in points] == [(1, "own/model-step_5"), (2, "own/model-step_5")]
    assert [p.step for p in expand(config(model="own/model-step_5", revision="main"))] == [5]


def test_steps_that_are_inferred_are_told_in_dry_runs_and_in_the_table(tmp_path):
    points = expand(config(model=["own/it-1000", "own/run-step_5"]))
    assert inferred_steps(points) == (
        "steps inferred from names (own/it-1000: 'it-1000' read as step 1,000); where one is wrong, give step_pattern"
    )
    texts = tmp_path / "texts.txt"
    texts.write_text("a text")
    planned = describe_plan(config(model="own/it-1000", data=str(texts), out=str(tmp_path / "out")))
    assert "warning: steps inferred from names (own/it-1000" in planned
    assert inferred_steps(points[1:]) is None


def test_a_record_of_training_is_surer_than_a_guess(tmp_path):
    for name, recorded in (("20k", 20_480), ("step7", 8), ("it-5", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": recorded}))
    points = {Path(p.model).name: p for p in expand(config(model=f"{tmp_path}/*"))}
    assert (points["20k"].step, points["20k"].step_note) == (20_480, None)
    assert (points["step7"].step, points["step7"].recorded_step) == (7, 8)
    assert (points["it-5"].step, points["it-5"].step_note) == (5, "'it-5' read as step 5")


# --- patterns of local folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["[exp] 1", "a[0-9]b", "[!x]", "run[", "[[]]"])
@pytest.mark.parametrize("below", ["", "deeper/"])
def test_a_bracket_in_the_name_of_a_parent_folder_is_a_letter(parent, below, tmp_path):
    for step in (2, 10):
        (tmp_path / parent / below / f"checkpoint-{step}").mkdir(parents=True)
    for pattern in ("checkpoint-*", "checkpoint-[0-9]*", "*"):
        points = expand(config(model=f"{tmp_path}/{parent}/{below}{pattern}"))
        assert [p.step for p in points] == [2, 10]


def test_a_bracket_beside_a_star_is_a_letter_where_the_pattern_fits_nothing(tmp_path):
    for step in (2, 10):
        (tmp_path / f"[exp] checkpoint-{step}").mkdir()
    assert [p.step for p in expand(config(model=f"{tmp_path}/[exp] *"))] == [2, 10]


@pytest.mark.parametrize("pattern", ["run[1]/*", "run[1]"])
def test_a_name_that_is_a_folder_and_a_pattern_of_others_is_refused(pattern, tmp_path):
    for name in ("run[1]", "run1"):
        (tmp_path / name / "step5").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"there is a folder of the name .*, and as a pattern it fits .*; write"
    ) as raised:
        expand(config(model=f"{tmp_path}/{pattern}"))
    assert "run[[]1]" in str(raised.value)
    assert [p.step for p in expand(config(model=f"{tmp_path}/run[[]1]/*"))] == [5]


def test_patterns_are_patterns_still(tmp_path):
    for name in ("run1", "run2", "run3"):
        (tmp_path / name / "step5").mkdir(parents=True)
    assert len(expand(config(model=f"{tmp_path}/run[12]/step*"))) == 2
    with pytest.raises(InputError, match="fits no folder here"):
        expand(config(model=f"{tmp_path}/run[45]/step*"))


def test_a_folder_with_a_comma_is_one_model(tmp_path):
    for name in ("Step 2,000", "Step 10,000"):
        (tmp_path / name).mkdir()
    assert [p.step for p in expand(config(model=f"{tmp_path}/Step 2,000"))] == [2000]
    assert [p.step for p in expand(config(model=f"{tmp_path}/*"))] == [2000, 10_000]


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
