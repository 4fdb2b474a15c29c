"""Several numbers of anchors and calibrations in one pass: each has the values of a probe with it alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe, sample_anchors
from softh_probe.errors import InputError
from tests.helpers.probes import run

SETTINGS = {"labels": ["input_unigram", "output_bigram"], "anchor_sets": 2}
SEVERAL = {"n_anchors": [20, 12, 30], "calibration": ["exact", 0.1]}


@pytest.fixture
def texts() -> list[list[int]]:
    chance = np.random.default_rng(0)
    return [chance.integers(40, size=n).tolist() for n in (9, 4, 17, 12, 6, 11, 5)]


def alone(model, texts, variant: ProbeResult, **changes) -> ProbeResult:
    own = {name: variant.info["settings"][name] for name in SEVERAL}
    return run(SoftEntropyProbe(model, **{**SETTINGS, **own, **changes}), model, texts).result()


def assert_equal(ours: ProbeResult, theirs: ProbeResult) -> None:
    """Bit by bit."""
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name].nan_to_num(), tensor.nan_to_num()), name
    assert ours.info["settings"] == theirs.info["settings"]
    assert ours.info["anchors"] == theirs.info["anchors"]
    pd.testing.assert_frame_equal(ours.to_pandas(), theirs.to_pandas())


@pytest.mark.parametrize("changes", [{}, {"count": "unique_prefix"}, {"label_rows": 8}, {"sites": ("residual", "mlp")}])
def test_each_has_the_values_of_a_probe_with_it_alone_bit_by_bit(model, texts, changes):
    result = run(SoftEntropyProbe(model, **SETTINGS, **SEVERAL, **changes), model, texts).result()
    assert [*result.variants] == [
        f"n_anchors={n}, calibration={method}" for method in ("exact", 0.1) for n in (20, 12, 30)
    ]
    assert_equal(result, next(iter(result.variants.values())))
    for variant in result.variants.values():
        assert_equal(variant, alone(model, texts, variant, **changes))


def test_positions_that_wait_for_their_labels_wait_with_all(model):
    def generated(**several) -> ProbeResult:
        probe = SoftEntropyProbe(model, **SETTINGS, **several)
        prompt = torch.arange(1, 9).view(2, 4)
        with probe, torch.no_grad():
            model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
        return probe.result()

    result = generated(n_anchors=[20, 12])
    assert_equal(result.others["n_anchors=12"], generated(n_anchors=12))


def test_merged_and_continued_measurements_have_all(model, texts):
    def probe() -> SoftEntropyProbe:
        return SoftEntropyProbe(model, **SETTINGS, n_anchors=[20, 12])

    whole = run(probe(), model, texts).result()
    first, second = run(probe(), model, texts[:4]), run(probe(), model, texts[4:])
    continued = probe()
    continued.load_state_dict(first.state_dict())
    run(continued, model, texts[4:])
    first.merge(second)
    for found in (first.result(), continued.result(), run(first.new_like(), model, texts).result()):
        for name, one in whole.variants.items():
            torch.testing.assert_close(found.variants[name].tensors["mass"], one.tensors["mass"], rtol=1e-6, atol=0)
            torch.testing.assert_close(
                found.variants[name].tensors["conditional_entropy"],
                one.tensors["conditional_entropy"],
                rtol=1e-6,
                atol=1e-6,
            )
    with pytest.raises(InputError, match=r"merge: expected n_anchors=\[20, 12\], got 20"):
        first.merge(SoftEntropyProbe(model, **SETTINGS, n_anchors=20))


def test_own_anchors_give_their_first_ones_to_smaller_numbers(model, texts):
    own = torch.stack([sample_anchors(30, model.config.hidden_size, seed) for seed in (5, 6)])
    result = run(SoftEntropyProbe(model, **SETTINGS, anchors=own, n_anchors=[30, 10]), model, texts).result()
    first = run(SoftEntropyProbe(model, **SETTINGS, anchors=own[:, :10]), model, texts).result()
    assert torch.equal(result.others["n_anchors=10"].tensors["mass"], first.tensors["mass"])
    with pytest.raises(InputError, match=r"n_anchors: the given anchors have 30, .* got 40"):
        SoftEntropyProbe(model, anchors=own, n_anchors=[30, 40])


def test_saved_results_have_their_table_and_come_back(model, texts, tmp_path):
    result = run(SoftEntropyProbe(model, **SETTINGS, n_anchors=[20, 12]), model, texts).result()
    result.save(tmp_path)
    loaded = ProbeResult.load(tmp_path)
    table = pd.read_parquet(tmp_path / "by_anchors.parquet")
    pd.testing.assert_frame_equal(table, result.by_anchors())
    pd.testing.assert_frame_equal(table, loaded.by_anchors())
    of_first = table[table.n_anchors == 20].drop(columns=["n_anchors", "calibration"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(of_first, result.to_pandas())
    assert set(table.name) == {*result.rows, "mean"}
    other = "metric == 'entropy' and n_anchors == 12"
    bits, shares = (loaded.by_anchors(unit).query(other) for unit in ("bits", "efficiency"))
    np.testing.assert_allclose(bits.value / shares.value, np.log2(12), rtol=1e-12)
    single = run(SoftEntropyProbe(model, **SETTINGS, n_anchors=20), model, texts).result()
    single.save(tmp_path)
    assert not list(tmp_path.glob("by_anchors*"))
    with pytest.raises(InputError, match="by_anchors: the result has one number of anchors"):
        single.by_anchors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_anchors": [20, 20]}, r"n_anchors: expected one value, or several that differ, got \[20, 20\]"),
        ({"n_anchors": []}, r"n_anchors: expected one value, or several that differ, got \[\]"),
        ({"n_anchors": [20, 1]}, "n_anchors: expected an integer of at least 2, got 1"),
        ({"n_anchors": [20, 7], "anchors": "antithetic"}, "antithetic anchors come in pairs"),
        ({"n_anchors": [2.5]}, r"n_anchors: expected a whole number, or several with commas, got \[2.5\]"),
        ({"calibration": ["exact", "fast"]}, "calibration: expected exact, leading_order, amos"),
        ({"calibration": [None]}, "calibration: expected the name of a method or a temperature"),
    ],
)
def test_wrong_numbers_end_in_one_line(model, changes, message):
    with pytest.raises(InputError, match=message):
        SoftEntropyProbe(model, **changes)
