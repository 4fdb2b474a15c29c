"""The comparison of estimators: its statistics, its table, its page, and what happens to an estimator that fails."""

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rivals.critics import Club, InfoNce
from rivals.estimator import Estimator
from rivals.lineup import Rival, line_up
from rivals.measuring import Measured, measure, save
from rivals.ours import SoftEntropy
from rivals.real_states import RealStates
from rivals.study import DIM, SEPARATION, Plan, ask_all, language_cases, soft_ceiling, synthetic_cases, tag_cases
from rivals.study_figures import layers_figure
from rivals.study_page import PAGE, PICTURE, write
from rivals.study_statistics import agreement, headline, tell
from rivals.study_words import PAGE_ALONE, Study, cells, columns, layer_words, losses, problems, readme_table

TINY = Plan(
    k=3, n=48, dims=(64, DIM), flips=(0.0, 0.5, 1.0), separations=(1.0, SEPARATION, 3.0), sizes=(24, 48, 60),
    largest=(60, 64),
)  # fmt: skip
HOSTILE = "</style><script>alert(1)</script>$\\frac{1}$"


@dataclass(frozen=True, kw_only=True)
class Stub(Estimator):
    """Does what its action says."""

    action: str = "count"
    scale: int = 4

    @property
    def name(self) -> str:
        return f"stub: {self.action}"

    @property
    def passes(self) -> int:
        return 1

    def _estimate(self, states_ND, labels_N):
        if len(states_ND) <= 1100 and states_ND.shape[1] <= 16:
            return 0.0  # the unmeasured first use
        if self.action == "fail":
            raise ValueError("nothing works")
        if self.action == "die":
            os._exit(3)
        if self.action == "sleep":
            time.sleep(60)
        if self.action == "allocate":
            return float(np.ones(100 * 2**17)[-1])  # 100 MiB
        return float(len(states_ND) * self.scale)


def rival(action="count", knob="scale"):
    return Rival(estimator=Stub(action=action), knob=knob, fitted=lambda d, n: 0, source="here")


def here(estimator, folder):
    """Ask in this process."""
    try:
        value = estimator.estimate(np.load(folder / "states.npy"), np.load(folder / "labels.npy"))
    except ValueError as error:
        return Measured(problem=str(error))
    return Measured(value, 1.5, 20.0)


def planted(rivals, plan=TINY, layers=("layer.1", "layer.2", HOSTILE), labels=("en", "de", "cs")):
    """A table whose estimates are a half of the truth and 0.1, twice that with a doubled knob."""
    chance = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), 4)
    states = {layer: chance.standard_normal((48, 8)).astype(np.float32) for layer in layers}
    read = RealStates(states, documents % len(labels), documents, tuple(labels))
    cases = [*synthetic_cases(plan), *language_cases(read, plan), *tag_cases(read, plan)]
    table = ask_all(cases, rivals, ask=lambda estimator, folder: Measured(0.0, 1.5, 20.0), progress=False)
    return table.assign(value=(0.5 * table.high + 0.1) * table.factor)


@pytest.fixture(scope="module")
def rivals():
    return line_up()


@pytest.fixture(scope="module")
def study(rivals):
    table = planted(rivals)
    table.loc[(table.estimator == "CLUB") & (table.n == 24), ["value", "problem"]] = math.nan, f"no {HOSTILE}"
    return Study(table, tell(table, rivals, TINY), TINY, HOSTILE, ("en", HOSTILE), 61.0)


def test_agreement_is_that_of_ranks_and_least_squares():
    chance = np.random.default_rng(0)
    x = np.append(chance.random(20), 0.0)
    y = 0.3 * x**2 + 0.05 * chance.standard_normal(21)
    y[4] = math.nan
    found = agreement(x, y)
    a, b = np.delete(x, 4), np.delete(y, 4)
    ranks_a, ranks_b = (np.argsort(np.argsort(values)) for values in (a, b))
    assert found.spearman == pytest.approx(np.corrcoef(ranks_a, ranks_b)[0, 1])
    slope, intercept = np.polyfit(a, b, 1)
    left = b - slope * a - intercept
    assert (found.slope, found.r2) == pytest.approx((slope, 1 - (left @ left) / ((b - b.mean()) @ (b - b.mean()))))
    assert (found.zero, found.n) == (b[-1], 20)


def test_too_few_estimates_have_no_agreement():
    assert math.isnan(agreement([0.0, 1.0, 2.0], [0.5, math.nan, 1.0]).slope)
    assert agreement([0.0, 1.0, 2.0], [0.5, 0.5, 0.5]).slope == 0


def test_truths_are_those_of_the_channel_and_of_clusters():
    cases = list(synthetic_cases(TINY))
    channel = [case for case in cases if case.part == "channel" and case.dim == DIM]
    p = np.array([case.x for case in channel])
    assert p.tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    lost = [0.0 if not q else -q * math.log(q) - (1 - q) * math.log(1 - q) + q * math.log(2) for q in p]
    assert [case.high for case in channel] == pytest.approx(math.log(3) - np.array(lost), abs=1e-11)
    assert channel[-1].high == 0.0
    assert all(case.low == case.high for case in cases)
    assert all(case.high == 0 for case in cases if case.part == "independent")
    shapes = {(case.n, case.dim) for case in cases}
    assert shapes == {(48, 64), (48, DIM), (24, DIM), (60, DIM), (60, 64)}


def test_every_case_has_a_row_of_every_estimator_and_a_failure_costs_its_own_alone():
    asked = [rival(), rival("fail", knob="")]
    cases = list(synthetic_cases(TINY))
    table = ask_all(cases, asked, ask=here, progress=False)
    varied = table[table.factor != 1]
    assert sorted(varied.knob) == [2, 8]
    assert set(varied.estimator) == {"stub: count"}
    assert len(table) == 2 * len(cases) + 2
    counted, failed = (table[table.estimator == one.name] for one in asked)
    assert (counted.value == counted.n * counted.knob).all()
    assert (counted.problem == "").all()
    assert failed.value.isna().all()
    assert set(failed.problem) == {"nothing works"}
    told = tell(table, asked, TINY)[1]
    assert told.problems == {"nothing works": len(cases)}
    assert math.isnan(told.zero)


def test_two_runs_are_equal():
    tables = [ask_all(list(synthetic_cases(TINY))[:6], [rival()], ask=here, progress=False) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)


def test_what_is_told_is_what_was_planted(rivals, study):
    of = {one.rival.name: one for one in study.told}
    assert list(of) == [one.name for one in rivals]
    told, truth = of["mini-batch k-means"], study.truth
    for found in (told.channel, told.clusters, told.languages):
        assert (found.spearman, found.r2, found.slope) == pytest.approx((1, 1, 0.5))
    assert told.channel.zero == pytest.approx(0.1)
    assert told.zero == pytest.approx(0.1)
    assert told.by_knob == pytest.approx([(0.5 * truth + 0.1) * factor for factor in TINY.factors])
    assert told.by_size == pytest.approx([0.5 * truth + 0.1] * 3)
    assert len(told.by_dim) == 2
    assert told.tag_values == pytest.approx(told.of_layers)
    assert told.small == told.large == (1.5, 20.0)
    club = of["CLUB"]
    assert [math.isnan(value) for value in club.by_size] == [True, False, False]
    assert sum(club.problems.values()) == 2


def test_changed_labels_of_real_states_have_bounds_in_order(study):
    real = study.table[study.table.part.isin(["languages", "tags"])]
    assert (real.low <= real.high).all()
    assert real[real.part == "languages"].high.max() == pytest.approx(math.log(3))
    last = real[(real.part == "languages") & (real.x > 0.66)]
    assert last.high.max() < 1e-9
    (changed,) = real[(real.part == "tags") & (real.x > 0)].layer.unique()
    lows = real[(real.part == "tags") & (real.x == 0)].groupby("layer").low.max()
    assert lows[changed] == lows.max()
    assert headline(study.table, "tags") == changed


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write(study, folder)
    return folder


def test_the_page_has_every_estimator_and_shows_names_as_text(study, written):
    html = (written / PAGE).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    for one in study.told:
        assert html.count(f'<th scope="row">{one.rival.name}<small>') == 1
        assert len(cells(one, study)) == len(columns(study))
    assert html.count("<svg") == 4
    assert "CLUB: no &lt;/style&gt;" in html


def test_the_table_for_the_readme_has_ten_lines(study, written):
    lines = (written / "table.md").read_text(encoding="utf-8").splitlines()
    assert lines == readme_table(study).splitlines()
    assert len(lines) == 10
    assert len({line.count("|") for line in lines}) == 1
    named = {line.split("|")[1].split("(")[0].strip() for line in lines[2:]}
    assert {one.rival.name.split(" (")[0] for one in study.told} - named == set(PAGE_ALONE)


def test_every_estimate_is_in_the_file(study, written):
    again = pd.read_csv(written / "estimates.csv", keep_default_na=False, na_values=[""])
    assert again.estimator.tolist() == study.table.estimator.tolist()
    assert again.value.to_numpy() == pytest.approx(study.table.value.to_numpy(), nan_ok=True)
    assert (written / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_who_beats_soft_entropy_is_listed_and_nobody_who_does_not(study):
    better = {"CLUB": 0.9, "InfoNCE": 1.2, "mini-batch k-means": 0.2}  # soft entropy's planted slope is 0.5
    told = [
        replace(one, channel=replace(one.channel, slope=better.get(one.rival.name, one.channel.slope)))
        for one in study.told
    ]
    (line,) = (line for line in losses(told) if line.startswith("a slope nearer 1, noisy channel"))
    assert line == "a slope nearer 1, noisy channel: InfoNCE; CLUB"


def test_what_is_missing_is_told_and_the_rest_is_there(study, rivals):
    table = study.table[study.table.part != "tags"]
    less = replace(study, table=table, told=tell(table, rivals, TINY), missing=[f"no tags: {HOSTILE}"])
    assert problems(less)[0] == f"no tags: {HOSTILE}"
    assert cells(less.told[0], less)[4] == "–, –, –"
    assert "Parts of speech" not in layer_words(less)
    assert layers_figure(table, rivals) is None


def test_layers_stand_beside_the_bounds_of_the_truth(study):
    words = layer_words(study)
    rows = study.table.query("part == 'tags' and x == 0 and estimator == 'soft entropy'")
    assert f"Parts of speech, layer.1 / layer.2 / {HOSTILE}: soft entropy" in words
    assert f"the truth at least {' / '.join(f'{low:.2f}' for low in rows.low)} and at most" in words


def test_ceiling_is_soft_entropy_of_labels_that_are_all_different():
    states = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    assert soft_ceiling(states) == pytest.approx(SoftEntropy().estimate(states, np.arange(300)), rel=1e-5)


@pytest.mark.parametrize("critic", [InfoNce(), Club()], ids=lambda one: one.name)
def test_numbers_that_a_critic_fits_are_its_parameters_and_the_moments(critic, rivals):
    (own,) = (one for one in rivals if one.name == critic.name)
    network = critic._critic(24, 5)
    assert own.fitted(24, 5) == sum(weight.numel() for weight in network.parameters()) + 2 * 24


def test_a_knob_is_multiplied_and_nothing_else(rivals):
    for one in rivals:
        if one.knob:
            turned = one.turned(2.0)
            assert getattr(turned, one.knob) == 2 * getattr(one.estimator, one.knob)
            assert replace(turned, **{one.knob: getattr(one.estimator, one.knob)}) == one.estimator


@pytest.mark.slow
def test_an_estimate_in_a_process_of_its_own_tells_value_memory_and_failure(tmp_path: Path):
    save(np.ones((30, 20), dtype=np.float32), np.arange(30), tmp_path)
    assert measure(Stub(), tmp_path).value == 120
    grown = measure(Stub(action="allocate"), tmp_path)
    assert grown.value == 1.0
    assert 95 < grown.memory_mib < 120
    assert measure(Stub(action="fail"), tmp_path).problem == "ValueError: nothing works"
    assert measure(Stub(action="die"), tmp_path).problem == "its process ended with exit code 3"
    assert measure(Stub(action="sleep"), tmp_path, timeout_s=3).problem == "took more than 3 s"
