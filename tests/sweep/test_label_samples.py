"""Sweeps whose checkpoints followed a sample of labels: table, page and figures, beside older ones without."""

import json
import re
from unittest import mock

import numpy as np
import pandas as pd
import pytest

from softh_probe.errors import InputError
from softh_probe.hashing import file_sha256
from softh_probe.report import sweep_data
from softh_probe.report.page import sweep_page
from softh_probe.report.sweep_figures import metric_by_step
from softh_probe.report.sweep_files import read_sweep
from softh_probe.sweep import collect
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, sampled, sweep_folder, unpacked
from tests.helpers.sweeps import collected_folder, info_of

BIGRAMS = ("input_bigram", "output_bigram")
INFORMATION = "mutual_information|input_bigram"


@pytest.fixture(scope="module")
def whole():
    return [result_of(tiny_llama(initializer_range=0.1 * step), labels=NAMES[:4]) for step in (1, 2)]


@pytest.fixture(scope="module")
def same(whole, tmp_path_factory):
    """Two checkpoints that followed the same labels."""
    results = {("m", step): sampled(result, *BIGRAMS) for step, result in enumerate(whole, 1)}
    return collected_folder(tmp_path_factory.mktemp("same"), results), results


@pytest.fixture(scope="module")
def mixed(whole, tmp_path_factory):
    """Three checkpoints: two samples, and one of a result without any."""
    results = {
        ("m", 1): sampled(whole[0], *BIGRAMS),
        ("m", 2): sampled(whole[1], *BIGRAMS, threshold=512.0, errors=(0.1, 0.0, 0.2, 0.0, 0.0)),
        ("m", 3): whole[1],
    }
    return collected_folder(tmp_path_factory.mktemp("mixed"), results), results


def warnings_of(folder) -> list[str]:
    with mock.patch("softh_probe.sweep.collection._write_report", return_value=None):
        return collect(folder).warnings


def html_of(folder) -> str:
    return re.sub(r"<script>.*?</script>", "", sweep_page(read_sweep(folder)), flags=re.DOTALL)


def test_the_table_has_the_standard_errors_of_each_result(mixed):
    folder, results = mixed
    table = pd.read_parquet(folder / "sweep.parquet")
    assert list(table.columns[-4:]) == ["value", "sd", "sampling_sd", "p_value"]
    for (_, step), result in results.items():
        found = table[table.step == step].sampling_sd.to_numpy()
        own = result.to_pandas()
        expected = own.sampling_sd.to_numpy() if "sampling_sd" in own else np.full(len(own), np.nan)
        np.testing.assert_array_equal(found, expected)
    csv = pd.read_csv(folder / "sweep.csv")
    np.testing.assert_allclose(csv.sampling_sd, table.sampling_sd)


def test_checkpoints_that_followed_the_same_labels_share_one_sample(same):
    folder, results = same
    info = info_of(folder)
    sampling = results["m", 1].info["label_sampling"]
    assert info["label_samples"] == [{name: sampling[name] for name in BIGRAMS}]
    assert [c["label_sample"] for c in info["checkpoints"]] == [0, 0]
    assert not any("labels differ" in text for text in warnings_of(folder))
    text = html_of(folder)
    assert text.count("8,123 of 193,456 labels were followed") == 2
    assert "<li>All checkpoints followed the same labels.</li>" in text
    assert "<summary>" not in text.split('class="samples"')[1].split("</div>")[0]
    table = read_sweep(folder).table.query("metric == 'mutual_information' and label_set == 'input_bigram'")
    told = float(re.search(r"at most ([.0-9]+) log m", text)[1])
    assert 0 <= told - table.sampling_sd.max() < 1.0001e-4


def test_different_samples_are_told_apart(mixed):
    folder, _ = mixed
    info = info_of(folder)
    assert [c.get("label_sample") for c in info["checkpoints"]] == [0, 1, None]
    assert any("labels differ: checkpoints followed 3 different samples" in text for text in warnings_of(folder))
    text = html_of(folder)
    assert "Labels differ: checkpoints followed 3 different samples" in text
    assert "<summary>1 checkpoint from ofm-step1 on</summary>" in text
    assert text.count("labels were followed (all that occur once, or 512 times or more)") == 2
    with mock.patch.object(sweep_data, "_MAX_SAMPLES", 1):
        assert "<p>and 1 more samples, which sweep.json describes</p>" in html_of(folder)


def test_the_page_holds_the_standard_errors(mixed):
    sweep = read_sweep(mixed[0])
    series = sweep.data()["series"]
    assert {key for key in series if "e" in series[key]} == {
        f"{metric}|{name}"
        for metric in (
            "conditional_entropy",
            "mutual_information",
            "mutual_information_corrected",
            "regularity",
        )
        for name in BIGRAMS
    } | {"optimality|bigram", "optimality_corrected|bigram"}
    shown = unpacked(series[INFORMATION]["e"])
    table = sweep.table.query("metric == 'mutual_information' and label_set == 'input_bigram'")
    np.testing.assert_allclose(shown.ravel(), table.sampling_sd, atol=1e-5)


def test_a_page_with_standard_errors_draws_fewer_checkpoints(mixed, monkeypatch):
    sweep = read_sweep(mixed[0])
    n_series = len(sweep.data()["series"])
    monkeypatch.setattr(sweep_data, "MOST_VALUES", 3 * n_series * len(sweep.alignment.rows))
    assert len(read_sweep(mixed[0]).drawn) == 2


def test_figures_through_training_have_bands_of_the_sampling(same, mixed):
    for folder, _ in (same, mixed):
        sweep = read_sweep(folder)
        steps = {c["checkpoint"]: c["step"] for c in sweep.done}
        table = sweep.table.assign(step=sweep.table.checkpoint.map(steps).astype(int))
        figure = metric_by_step(table, "mutual_information", layers=[2])
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == ["layer.2", "± sampling of labels"]
        without = metric_by_step(table.drop(columns="sampling_sd"), "mutual_information", layers=[2])
        n_bands = [sum(len(axes.collections) for axes in one.axes) for one in (figure, without)]
        assert n_bands[0] - n_bands[1] == 3  # two of bigrams, and the key
        assert figure._repr_png_()


def test_checkpoints_of_all_labels_beside_sampled_ones_are_told_apart(whole, tmp_path):
    results = {("m", 1): sampled(whole[0], *BIGRAMS), ("m", 2): whole[1]}
    text = html_of(collected_folder(tmp_path, results))
    assert "<summary>1 checkpoint from ofm-step1 on</summary>" in text
    assert "All checkpoints" not in text


def test_an_older_sweep_says_nothing_of_samples(whole, tmp_path):
    old = sweep_folder(tmp_path / "old", n_checkpoints=3)
    assert "sampling_sd" not in pd.read_parquet(old / "sweep.parquet")
    new = collected_folder(tmp_path / "new", {("m", step): whole[0] for step in (1, 2)})
    assert "label_samples" not in info_of(new)
    for folder in (old, new):
        sweep = read_sweep(folder)
        assert not sweep.is_sampled
        assert all("e" not in series for series in sweep.data()["series"].values())
        assert "were followed" not in html_of(folder)


def test_a_damaged_description_of_samples_is_refused(mixed, tmp_path):
    folder = mixed[0]
    (tmp_path / "sweep.parquet").write_bytes((folder / "sweep.parquet").read_bytes())
    for wrong in ("x", [5], [{"input_bigram": {"labels": 3}}]):
        info = {**info_of(folder), "label_samples": wrong, "parquet_sha256": file_sha256(folder / "sweep.parquet")}
        (tmp_path / "sweep.json").write_text(json.dumps(info))
        with pytest.raises(InputError, match="label_samples: expected samples by label set"):
            read_sweep(tmp_path)
