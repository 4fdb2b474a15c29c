"""The example programs run and show what they promise."""

import re
import subprocess
import sys

import pytest


def test_digits_layers_say_more_about_the_class_after_training():
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, "scripts/digits.py"], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    values = [[float(v) for v in re.findall(r"fc\d ([\d.]+)", line)] for line in (before, after)]
    assert all(len(v) == 3 for v in values)
    assert all(trained > untrained for untrained, trained in zip(*values, strict=True))
    assert max(values[1]) < 3.33  # log2(10): no more can be said about the digit
    assert float(re.search(r"accuracy ([\d.]+)", after)[1]) > 0.9
