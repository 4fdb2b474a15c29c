"""Runs like soft-entropy 0.1.5 give its numbers, end to end."""

import json

import pandas as pd
import pytest

from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.presets import LIMITS
from softh_probe.run import run

ORDERS = ("unigram", "bigram", "trigram")
LIKE = "soft-entropy-0.1.5"


@pytest.mark.slow
@pytest.mark.parametrize("anchors", ["published", "file"])
def test_every_number_is_that_of_the_package(training, tmp_path, anchors):
    published = pytest.importorskip("soft_entropy")
    checkpoint, texts = str(training / "run" / "checkpoint-9"), (training / "texts.jsonl").read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(texts)
    theirs = published.LLMInferrer(checkpoint, str(tmp_path / "data"), label_types=ORDERS, text_column="text", seed=3)
    given = {"seed": 3}
    if anchors == "file":
        import numpy as np

        np.save(tmp_path / "anchors.npy", theirs.accs[0].w.numpy())
        given = {"anchors": str(tmp_path / "anchors.npy")}
    expected = theirs.run(len(texts.splitlines()), batch_size=4)
    labels = [f"{direction}_{order}" for order in ORDERS for direction in ("input", "output")]
    out = tmp_path / "out"
    config = RunConfig(
        model=checkpoint,
        data=str(tmp_path / "data"),
        text_column="text",
        labels=labels,
        like=LIKE,
        report=False,
        cache="none",
        out=str(out),
        **given,
    )
    result = run(config, progress=False)
    found = json.loads((out / "soft_entropy.json").read_text())
    assert len(found["per_layer"]) == len(expected["per_layer"])
    for ours, layer in zip(
        [*found["per_layer"], found["mean"]], [*expected["per_layer"], expected["mean"]], strict=True
    ):
        assert ours == pytest.approx(layer, abs=1e-6)
    mean = result.to_pandas().query("name == 'mean'").set_index(["label_set", "metric"]).value
    assert mean["", "entropy"] == pytest.approx(expected["mean"]["H(Z)"], abs=1e-6)
    assert mean["input_bigram", "mutual_information"] == pytest.approx(
        expected["mean"]["I(X;Z)/input_bigram"], abs=1e-6
    )
    ratio = mean["input_bigram", "regularity_mean_of_layers"]
    assert ratio == pytest.approx(expected["mean"]["regularity/input_bigram"], abs=1e-6)
    assert LIMITS[LIKE] in result.info["warnings"]
    assert isinstance(pd.read_csv(out / "layers.csv").layer.iloc[0], float)


def test_the_preset_and_settings_that_contradict_it(config):
    ours = config(like=LIKE, n_anchors=100)
    assert (ours.anchors, ours.anchor_sets, ours.calibration, ours.max_length) == ("published", 1, "amos", 128)
    assert ours.mean_over == ("1:-2", -1)
    with pytest.raises(InputError, match=r"calibration: like soft-entropy-0\.1\.5 it is amos, got leading_order"):
        config(like=LIKE, calibration="leading_order")
    with pytest.raises(
        InputError, match="both directions of each order are measured; give --labels input_bigram,output_"
    ):
        config(like=LIKE, labels=["output_bigram"])
    with pytest.raises(InputError, match="both directions of each order"):
        config(like=LIKE, labels=["column:language"])
    with pytest.raises(InputError, match="like: expected"):
        config(like="soft-entropy")
