"""The row `mean`: a whole model's values, against numpy on the values of the layers, and against upstream."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.config import RunConfig
from softh_probe.errors import InputError
from softh_probe.metrics import ENTROPIES
from softh_probe.run import run
from tests.helpers.influences import documents as documents_of
from tests.helpers.influences import result_of_documents, values_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import result_of, sampled, with_chance

BLOCKS = ["layer.1", "layer.2", "layer.3"]
RATIOS = ("regularity", "optimality", "optimality_corrected")


@pytest.fixture(scope="module")
def result():
    return with_chance(result_of(tiny_llama(), labels=[*NAMES[:2], "input_bigram", "output_bigram"]))


def mean_of(result, name="mean", unit="nats") -> pd.DataFrame:
    table = result.to_pandas(unit)
    return table[table.name == name].set_index(["label_set", "metric"])


def expected_means(result: ProbeResult, layers: list[str]) -> dict[tuple[str, str], np.ndarray]:
    """The values of the mean for each anchor set, by the definitions, in numpy and in nats."""
    at = [result.rows.index(layer) for layer in layers]
    t = {name: tensor.numpy()[at] for name, tensor in result.tensors.items()}
    p = t["mass"] / t["mass"].sum(axis=2, keepdims=True)
    found = {("", "entropy"): -(p * np.log(p)).sum(axis=2).mean(axis=0)}
    found["", "anisotropy"] = np.full(p.shape[1], t["anisotropy"].mean())
    information, corrected, ceiling = {}, {}, {}
    n_anchor_sets = p.shape[1]
    for x, name in enumerate(result.label_sets):
        h, h_given = t["labelled_entropy"][:, x], t["conditional_entropy"][:, x]
        information[name], corrected[name] = h - h_given, t["corrected_information"][:, x]
        ceiling[name] = (h - t["labelled_position_entropy"][:, x]).mean(axis=0)
        found[name, "label_entropy"] = np.full(n_anchor_sets, t["entropy_of_labels"][:, x].mean())
        found[name, "conditional_entropy"] = h_given.mean(axis=0)
        found[name, "mutual_information"] = information[name].mean(axis=0)
        found[name, "mutual_information_max"] = ceiling[name]
        found[name, "mutual_information_null"] = t["null_information"][:, x].mean(axis=0)
        found[name, "mutual_information_corrected"] = corrected[name].mean(axis=0)
        covered = t["covered_positions"][:, x].sum() / t["labelled_positions"][:, x].sum()
        found[name, "coverage"] = np.full(n_anchor_sets, covered)
        found[name, "regularity"] = information[name].sum(axis=0) / h.sum(axis=0)
        found[name, "regularity_mean_of_layers"] = (information[name] / h).mean(axis=0)
    for order in ("unigram", "bigram"):
        given, output = f"input_{order}", f"output_{order}"
        found[order, "optimality"] = information[output].sum(axis=0) / information[given].sum(axis=0)
        found[order, "optimality_mean_of_layers"] = (information[output] / information[given]).mean(axis=0)
        least = 0.01 * math.log(result.n_anchors)
        total = corrected[given].mean(axis=0)
        of_means = np.where(total > least, corrected[output].mean(axis=0) / total, math.nan)
        found[order, "optimality_corrected"] = of_means
        of_layers = np.where(corrected[given] > least, corrected[output] / corrected[given], math.nan)
        found[order, "optimality_corrected_mean_of_layers"] = of_layers.mean(axis=0)
    for direction in ("input", "output"):
        one, two = f"{direction}_unigram", f"{direction}_bigram"
        for suffix, of in (("", information), ("_corrected", corrected)):
            low, high, most = of[one].mean(axis=0), of[two].mean(axis=0), ceiling[two]
            found[one, f"information_share{suffix}"] = low / most
            found[two, f"information_share{suffix}"] = (high - low) / most
            found[direction, f"residual{suffix}"] = 1 - high / most
    return found


def check(result: ProbeResult, layers: list[str], name: str = "mean") -> None:
    table, expected = mean_of(result, name), expected_means(result, layers)
    assert {*table.index} == {*expected}
    for key, values_S in expected.items():
        np.testing.assert_allclose(table.value[key], values_S.mean(), rtol=1e-9, atol=1e-12, err_msg=str(key))
        sd = values_S.std(ddof=1) if len(values_S) > 1 else math.nan
        np.testing.assert_allclose(table.sd[key], sd, rtol=1e-6, atol=1e-12, err_msg=str(key))


def test_every_value_is_that_of_the_mean_over_blocks(result):
    assert result.mean_rows == {"mean": BLOCKS}
    check(result, BLOCKS)


def test_the_entropy_is_the_mean_of_the_layers_not_that_of_their_mean_assignment(result):
    mass = result.tensors["mass"][1:4].mean(dim=0)
    p = mass / mass.sum(dim=1, keepdim=True)
    of_mean = -(p * p.log()).sum(dim=1).mean().item()
    assert of_mean > mean_of(result).value["", "entropy"] + 1e-4


def test_ratios_of_means_and_means_of_ratios_differ(result):
    table = mean_of(result)
    for name in RATIOS[:2]:
        label_set = "unigram" if name == "optimality" else "input_unigram"
        assert abs(table.value[label_set, name] - table.value[label_set, f"{name}_mean_of_layers"]) > 1e-6


@pytest.mark.parametrize(
    ("mean_over", "layers"),
    [
        ("layer.1,layer.2", ["layer.1", "layer.2"]),
        ([3, 0], ["embeddings", "layer.3"]),
        ("-1, layer.2", ["layer.2", "final_norm"]),
    ],
)
def test_other_layers_can_be_chosen(result, mean_over, layers):
    chosen = result.averaged_over(mean_over)
    assert chosen.mean_rows == {"mean": layers}
    check(chosen, layers)
    assert result.mean_rows == {"mean": BLOCKS}


def test_one_anchor_set_has_no_spread():
    one = result_of(tiny_llama(), labels=[*NAMES[:2], "input_bigram", "output_bigram"], anchor_sets=1)
    assert mean_of(one).sd.isna().all()
    check(one, BLOCKS)


def test_what_one_layer_lacks_the_mean_lacks(result):
    tensors = {name: tensor.clone() for name, tensor in result.tensors.items()}
    x = result.label_sets.index("output_unigram")
    tensors["conditional_entropy"][2, x] = math.nan
    tensors["entropy_of_labels"][2, x] = math.nan
    lacking = replace(result, tensors=tensors)
    check(lacking, BLOCKS)
    table, before = mean_of(lacking).value, mean_of(result).value
    assert np.isnan(table["output_unigram", "mutual_information"])
    assert np.isnan(table["output_unigram", "label_entropy"])
    assert np.isnan(table["unigram", "optimality"])
    assert table["input_unigram", "regularity"] == before["input_unigram", "regularity"]
    check(lacking.averaged_over("layer.1,layer.3"), ["layer.1", "layer.3"])


def test_only_measured_blocks_are_averaged():
    some = result_of(tiny_llama(), labels=NAMES[:4], layers=["embeddings", "layer.1", "layer.3"])
    assert some.mean_rows == {"mean": ["layer.1", "layer.3"]}
    check(some, ["layer.1", "layer.3"])
    none = result_of(tiny_llama(), labels=NAMES[:2], layers=["embeddings", "final_norm"])
    assert none.mean_rows == {}
    assert none.to_pandas().layer.notna().all()


def test_each_site_has_a_mean_of_its_own():
    sites = ("residual", "mlp", "attention_heads")
    several = result_of(tiny_llama(), labels=NAMES[:4], sites=sites)
    assert [*several.mean_rows] == ["mean", "mean.attention_heads", "mean.mlp"]
    check(several, BLOCKS)
    check(several, [f"{block}.mlp" for block in BLOCKS], "mean.mlp")
    check(several, [row for row in several.rows if ".head." in row], "mean.attention_heads")
    table = several.to_pandas()
    of_means = table[table.layer.isna()][["name", "site"]].drop_duplicates()
    assert dict(of_means.itertuples(index=False)) == dict(
        zip(several.mean_rows, ("residual", *sites[:0:-1]), strict=True)
    )
    assert several.averaged_over([1]).mean_rows["mean.mlp"] == ["layer.1.mlp"]
    assert several.averaged_over("layer.1").mean_rows == {"mean": ["layer.1"]}


def test_modules_have_a_mean_where_it_is_asked_for(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)).eval()
    probe = SoftEntropyProbe(net, modules={"fc1": net[0], "fc2": net[1]}, n_anchors=20)
    with probe, torch.no_grad():
        net(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    plain = probe.result()
    assert plain.mean_rows == {}
    assert {*plain.to_pandas().name} == {"fc1", "fc2"}
    chosen = plain.averaged_over([0, "fc2"])
    entropy = chosen.to_pandas().query("metric == 'entropy'").set_index("name").value
    assert entropy["mean"] == pytest.approx((entropy["fc1"] + entropy["fc2"]) / 2)
    chosen.save(tmp_path)
    assert ProbeResult.load(tmp_path).mean_rows == {"mean": ["fc1", "fc2"]}


@pytest.mark.parametrize(
    ("mean_over", "said"),
    [
        ("layer.9", r"mean_over: no layer 'layer\.9' is measured; expected any of embeddings, layer\.1"),
        ([17], "mean_over: no layer 17 is measured"),
        ([-17], "mean_over: no layer -17 is measured"),
        ("", "mean_over: expected at least one, got none; null averages the blocks"),
        ([1.5], r"mean_over: expected names and indices of layers, got \[1\.5\]"),
    ],
)
def test_layers_that_are_not_there_are_refused(result, mean_over, said):
    with pytest.raises(InputError, match=said):
        result.averaged_over(mean_over)


@pytest.mark.parametrize("mean_over", [5, "layer.1", [1], [["layer.1"]]])
def test_a_result_that_says_nonsense_of_its_mean_is_refused_in_one_line(result, mean_over):
    with pytest.raises(InputError, match="mean_over: expected a list of names of layers, got"):
        replace(result, info={**result.info, "mean_over": mean_over}).to_pandas()


def test_a_module_of_that_name_is_no_mean():
    net = torch.nn.Sequential(torch.nn.Linear(8, 16)).eval()
    probe = SoftEntropyProbe(net, modules={"mean": net[0]}, n_anchors=20)
    with probe, torch.no_grad():
        net(torch.randn(30, 8))
    assert probe.result().to_pandas().layer.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="a measured module is named 'mean'"):
        probe.result().averaged_over([0])


def test_layers_are_whole_numbers_in_every_format(result, tmp_path):
    result.save(tmp_path)
    table = result.to_pandas()
    assert str(table.layer.dtype) == "Int64"
    assert table.layer.isna().sum() == (table.name == "mean").sum() > 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "layers.parquet"), table)
    lines = (tmp_path / "layers.csv").read_text().splitlines()
    assert lines[1].startswith("0,embeddings,")
    assert lines[-1].startswith(",mean,")
    pd.testing.assert_frame_equal(ProbeResult.load(tmp_path).to_pandas("bits"), result.to_pandas("bits"))
    layers = result.to_pandas(means=False)
    assert str(layers.layer.dtype) == "int64"
    pd.testing.assert_frame_equal(layers, table[table.layer.notna()].astype({"layer": "int64"}))


def test_the_errors_of_sampled_labels_add_up():
    result = sampled(result_of(tiny_llama(), labels=NAMES[:2]), "output_unigram")
    table, errors = mean_of(result), result.sampling_sds()
    for metric in ("conditional_entropy", "mutual_information", "mutual_information_corrected"):
        of_layers = errors["output_unigram", metric][1:4].numpy()
        assert of_layers.all()
        assert table.sampling_sd["output_unigram", metric] == pytest.approx(of_layers.mean())
    assert table.sampling_sd["input_unigram", "mutual_information"] == 0
    given = result.tensors["labelled_entropy"] - result.tensors["conditional_entropy"]
    x = result.label_sets.index("input_unigram")
    expected = table.sampling_sd["output_unigram", "mutual_information"] * (1 / given[1:4, x].mean(dim=0)).mean().item()
    assert table.sampling_sd["unigram", "optimality"] == pytest.approx(expected)
    assert table.loc[table.value.isna(), "sampling_sd"].isna().all()


def of_weighted(of: dict, weights: np.ndarray) -> dict[tuple[str, str], float]:
    """The values of the mean over the blocks of weighted documents, by brute force."""
    weighted = {
        **of,
        "mass": of["mass"] * weights[:, None, None, None, None, None],
        "positions": of["positions"] * weights[:, None, None],
    }
    n_sets = of["mass"].shape[4]
    by_set = []
    for s in range(n_sets):
        one = {**weighted, "mass": weighted["mass"][:, 1:-1, :, :, s : s + 1]}
        layers = values_of(one)
        means = {key: value.mean() for key, value in layers.items()}
        found = {key: means[key] for key in means if key[1] in ("entropy", "mutual_information")}
        for name in ("input_unigram", "output_unigram"):
            found[name, "regularity"] = means[name, "mutual_information"] / means["", "entropy"]
            found[name, "regularity_mean_of_layers"] = means[name, "regularity"]
        informations = [means[f"{d}_unigram", "mutual_information"] for d in ("output", "input")]
        found["unigram", "optimality"] = informations[0] / informations[1]
        found["unigram", "optimality_mean_of_layers"] = means["unigram", "optimality"]
        by_set.append(found)
    return {key: float(np.mean([found[key] for found in by_set])) for key in by_set[0]}


@pytest.mark.parametrize(("sets", "tolerance"), [(1, 1e-5), (4, 0.02)])
def test_the_standard_error_is_that_of_the_slopes_by_documents(sets, tolerance):
    of = documents_of(40, layers=5, sets=sets, spread=0.9)
    of["units"] = of["units"] // 2
    table, step = mean_of(result_of_documents(of)), 1e-4
    squares = {key: 0.0 for key in of_weighted(of, np.ones(40))}
    for unit in range(20):
        up, down = (of_weighted(of, 1 + sign * step * (of["units"] == unit)) for sign in (1, -1))
        for key in squares:
            squares[key] += ((up[key] - down[key]) / (2 * step)) ** 2
    assert {*table.se.dropna().index} == {*squares}
    for key, square in squares.items():
        assert table.se[key] == pytest.approx(math.sqrt(square), rel=tolerance), key


def test_without_the_influence_of_documents_the_mean_has_no_standard_error():
    result = replace(result_of_documents(documents_of(12)), influence=None)
    assert mean_of(result).se.isna().all()
    assert result.to_pandas().se.notna().any()


@pytest.mark.slow
def test_the_mean_is_that_of_upstream_on_the_same_states(training, tmp_path):
    published = pytest.importorskip("soft_entropy")
    from soft_entropy.temp_calibration import find_eps

    checkpoint = training / "run" / "checkpoint-9"
    (tmp_path / "data").mkdir()
    texts = (training / "texts.jsonl").read_text()
    (tmp_path / "data" / "train.jsonl").write_text(texts)
    theirs = published.LLMInferrer(
        str(checkpoint), str(tmp_path / "data"), label_types=["unigram", "bigram"], text_column="text"
    )
    n_layers, width = theirs.n_layers, theirs.model.config.hidden_size
    found = theirs.run(len(texts.splitlines()), batch_size=4)
    between = found["per_layer"][1:n_layers]  # raw block outputs; the last one has been through the final norm
    assert len(between) >= 2
    expected = {key: sum(layer[key] for layer in between) / len(between) for key in between[0]}
    config = RunConfig(
        model=str(checkpoint),
        data=str(tmp_path / "data"),
        text_column="text",
        labels=["input_unigram", "output_unigram", "input_bigram", "output_bigram"],
        anchors="published",
        anchor_sets=1,
        calibration=float(find_eps(100, width)),
        max_length=128,
        mean_over=[f"layer.{i}" for i in range(1, n_layers)],
        report=False,
        cache="none",
        out=str(tmp_path / "out"),
    )
    ours = mean_of(run(config, progress=False), unit="efficiency").value
    assert json.loads((tmp_path / "out" / "result.json").read_text())["mean_over"] == list(config.mean_over)
    assert ours["", "entropy"] == pytest.approx(expected["H(Z)"], abs=1e-5)
    for name in config.labels:
        assert ours[name, "mutual_information"] == pytest.approx(expected[f"I(X;Z)/{name}"], abs=1e-5)
        assert ours[name, "regularity_mean_of_layers"] == pytest.approx(expected[f"regularity/{name}"], abs=1e-5)


def test_units_are_those_of_the_layers(result):
    nats, bits = mean_of(result), mean_of(result, unit="bits")
    for (label_set, metric), value in nats.value.items():
        factor = math.log(2) if metric in ENTROPIES else 1.0
        assert bits.value[label_set, metric] == pytest.approx(value / factor, nan_ok=True)
