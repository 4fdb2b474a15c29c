"""Runs in which several processes hold one model between them: the numbers of one process that holds it alone."""

import sys

import pytest
from torch import distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from softh_probe import ProbeResult
from softh_probe.run import run
from tests.helpers.sweeps import small_tokenizer
from tests.run.test_processes import SETTINGS, assert_same_results, together

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available() or sys.platform != "linux", reason="needs gloo, and processes that fork"
)


def test_first(config, tmp_path):
    one = run(config(**SETTINGS, out=str(tmp_path / "one")), progress=False)
    shared = config(**SETTINGS, out=str(tmp_path / "shared"), cache="none", tensor_parallel=2)
    ended = together(shared, tmp_path)
    print(ended)
    assert [code for code, _ in ended] == [0, 0]
    assert_same_results(ProbeResult.load(shared.out), one)
    print(one.info["model"], ProbeResult.load(shared.out).info["model"])
