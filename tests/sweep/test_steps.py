"""Training steps and tokens in names as people write them."""

import pytest

from softh_probe.errors import InputError
from softh_probe.sweep.grid import parse_step
from softh_probe.sweep.steps import read_name

B = 10**9
CERTAIN = {
    "step1000": (1000, None),
    "STEP1000": (1000, None),
    "global_step1000": (1000, None),
    "globalstep1000": (1000, None),
    "iter_0001000": (1000, None),
    "iter_1e6": (10**6, None),
    "iteration 250": (250, None),
    "updates_3000": (3000, None),
    "ckpt_358": (358, None),
    "ckpt1000": (1000, None),
    "checkpoint-1M": (10**6, None),
    "step-0010000": (10_000, None),
    "state_step005100": (5100, None),
    "step_20k": (20_000, None),
    "steps_5k": (5000, None),
    "step_1000k": (10**6, None),
    "step1.2M": (1_200_000, None),
    "step1.125k": (1125, None),
    "step1e5": (100_000, None),
    "step=1200": (1200, None),
    "Step: 1200": (1200, None),
    "Step 2,000": (2000, None),
    "Step 2,000,000": (2 * 10**6, None),
    "step0": (0, None),
    "step_0k": (0, None),
    "1000": (1000, None),
    "1000-steps": (1000, None),
    "20k_steps": (20_000, None),
    "20ksteps": (20_000, None),
    "1,000 steps": (1000, None),
    "500k_iters": (500_000, None),
    "checkpoint-500-best": (500, None),
    "checkpoint-1200-merged": (1200, None),
    "hf_ckpt_step2000": (2000, None),
    "step1000.gguf": (1000, None),
    "epoch=3-step=1200.ckpt": (1200, None),
    "epoch_2_step_100": (100, None),
    "batch_size=32-step=7": (7, None),
    "seed_0-step_20k": (20_000, None),
    "warmup_steps500-checkpoint-2000": (2000, None),
    "model--val_loss=1.23-step=1000-consumed_samples=256.0": (1000, None),
    "CrystalCoder_phase1_checkpoint_055500": (55_500, None),
    "20B-step1000": (1000, None),
    "step1000seen2B": (1000, None),
    "stage1-step1000-tokens5B": (1000, 5 * B),
    "step50000-tokens210B": (50_000, 210 * B),
    "stage2-ingredient1-step11931-tokens50B": (11_931, 50 * B),
    "TinyLlama-1.1B-intermediate-step-955k-token-2T": (955_000, 2000 * B),
    "step1000-5B-tokens": (1000, 5 * B),
    "step1000-tokens": (1000, None),
    "step_100_tokens_1_000_000": (100, 10**6),
    "100k-tokens-step-5": (5, 100_000),
    "10B-tokens": (None, 10 * B),
    "tokens-0.5T": (None, 500 * B),
    "main": (None, None),
    "v1.5": (None, None),
    "pythia-12b": (None, None),
    "7b": (None, None),
    "gemma-2b-it-4bit": (None, None),
    "checkpoint-last": (None, None),
    "timestep_1000": (None, None),
    "batch_size_32": (None, None),
    "epoch-3": (None, None),
}
#: Names that may mean something else: taken, or left, with a note.
UNSURE = {
    "TinyLlama-1.1B-step-50K-105b": (50_000, 105 * B),
    "phase2-ckpt-100b": (100, None),
    "checkpoint-7b": (7, None),
    "checkpoint-350m": (350 * 10**6, None),
    "checkpoint_1_000": (1000, None),
    "checkpoint_1_1000": (1, None),
    "checkpoint-2024-01-31": (2024, None),
    "step 5 000": (5000, None),
    "step_1'000": (1000, None),
    "step2.000": (2000, None),
    "step20kbest": (20, None),
    "step1000merged": (1000, None),
    "iter_100_step_200": (200, None),
    "step1000-step2000": (1000, None),
    "bigstep5": (5, None),
    "4-step-distilled": (4, None),
    "it-1000": (1000, None),
    "ep0-ba4000-rank0": (4000, None),
    "batch1000": (1000, None),
    "20k": (20_000, None),
    "step1.5": (None, None),
    "step1e-5": (None, None),
    "step1e400": (None, None),
    f"step{'9' * 5000}": (None, None),
}


@pytest.mark.parametrize(("name", "expected"), CERTAIN.items())
def test_a_name_says_step_and_tokens(name, expected):
    reading = read_name(name)
    assert (reading.step, reading.tokens, reading.note) == (*expected, None)
    assert parse_step(name) == expected


@pytest.mark.parametrize(("name", "expected"), UNSURE.items())
def test_a_name_that_may_mean_something_else_is_noted(name, expected):
    reading = read_name(name)
    assert (reading.step, reading.tokens) == expected
    assert reading.note


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("multiberts-seed_0-step_20k", "multiberts-seed_0-step_*"),
        ("multiberts-seed_1-step_20k", "multiberts-seed_1-step_*"),
        ("TinyLlama-1.1B-step-50K-105b", "TinyLlama-1.1B-step-*"),
        ("stage1-step1000-tokens5B", "stage1-step*"),
        ("10B-tokens-step-3", "step-*"),
        ("20k_steps", "*_steps"),
        ("Step 2,000", "Step *"),
        ("main", "main"),
    ],
)
def test_names_that_differ_in_step_and_tokens_alone_have_one_series(name, series):
    assert read_name(name).series == series


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20k", 20_000),
        ("2,000", 2000),
        ("1e5", 100_000),
        ("0100", 100),
        ("1_000", 1000),
        ("100b", 100 * B),
        ("2.5M", 2_500_000),
    ],
)
def test_numbers_that_a_pattern_finds_are_read_alike(text, value):
    assert parse_step(f"run at {text}", r"at (?P<step>.+)") == (value, None)
    assert parse_step(f"run at {text}", r"at (.+)") == (value, None)


@pytest.mark.parametrize("text", ["best", "1.5", "9" * 30, ""])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(InputError, match=r"step_pattern: what it finds in .* is no number"):
        parse_step(f"at {text}.", r"at (?P<step>.*)\.")
