"""Layers of several models beside each other: in tables, figures and pages."""

import json
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from softh_probe import SoftEntropyProbe
from softh_probe.analysis.alignment import align, interpolated
from softh_probe.analysis.comparable import check_comparable
from softh_probe.errors import InputError
from softh_probe.layer_places import place_layers
from softh_probe.report.compare import differences
from softh_probe.report.comparison_table import compare_folders
from softh_probe.report.figures import compared_by_depth
from softh_probe.report.page import sweep_page, write_report
from softh_probe.report.sweep_figures import layers_by_step, metric_by_step
from softh_probe.report.sweep_files import read_sweep
from softh_probe.run import run
from softh_probe.sweep import collect
from tests.helpers.corpora import TEXTS
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NAMES
from tests.helpers.report_data import page_data, result_of, save, unpacked
from tests.helpers.sweeps import collected_folder, info_of


def names(n_blocks: int) -> list[str]:
    return ["embeddings", *(f"layer.{i + 1}" for i in range(n_blocks)), "final_norm"]


def places(n_blocks: int, some: list[str] | None = None):
    return place_layers(some or names(n_blocks), {"n_blocks": n_blocks})


def some_layers(n_blocks: int, layers, **changes):
    return result_of(tiny_llama(num_hidden_layers=n_blocks, **changes), labels=NAMES[:2], layers=layers)


SOME = ["embeddings", "layer.2", "layer.7", "final_norm"]


# --- one result -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def partial():
    return some_layers(9, SOME)


@pytest.mark.parametrize("figure", ["entropy", "information", "chance", "optimality", "overview"])
def test_axes_of_figures_are_at_scale(partial, figure):
    drawn = partial.plot(figure)
    lines = [line for axes in drawn.axes for line in axes.lines if len(line.get_xdata()) == len(SOME)]
    in_planes = 1 if figure == "overview" else 0
    at_scale = [line for line in lines if list(line.get_xdata()) == [0, 2, 7, 10]]
    assert len(at_scale) == len(lines) - in_planes > 0
    labels = {axes.get_xlabel() for axes in drawn.axes} | {drawn.get_supxlabel()}
    assert "layer (0: embeddings; 10: final norm)" in labels


def test_points_of_the_plane_are_coloured_by_layer(partial):
    points, bar = partial.plot("plane").axes
    assert list(points.collections[0].get_array()) == [0, 2, 7, 10]
    assert bar.get_ylim() == (0, 10)


def test_cells_of_a_heat_map_are_at_scale(partial):
    axes = partial.plot("topic").axes[0]
    values = partial.conditional_entropy("topic")
    cells = axes.images[0]
    np.testing.assert_array_equal(cells._Ax, [0, 2, 7, 10])
    shown = cells.get_array()
    assert shown.shape == (3, 4)
    np.testing.assert_allclose(sorted(shown[:, 2]), sorted(values[values.layer == 7].value))
    assert axes.get_xlim() == (-1, 11)


def test_a_page_has_the_places_of_its_layers(partial, tmp_path):
    run = page_data(write_report([save(partial, tmp_path)], tmp_path))["runs"][0]
    assert (run["rows"], run["layers"], run["depth"]) == (SOME, [0, 2, 7, 10], 10)


# --- several results --------------------------------------------------------------------------------------


def test_layers_of_equally_deep_models_are_paired_by_name(partial):
    whole = some_layers(9, None)
    for first, other in ((partial, whole), (whole, partial)):
        found = differences(first, other)
        assert not found["interpolated"]
        shown = dict(zip(first.rows, found["series"]["entropy|"]["d"], strict=True))
        assert {name: d for name, d in shown.items() if d is not None} == dict.fromkeys(SOME, 0)


def test_layers_of_other_depth_are_interpolated_between_blocks_only():
    deep, shallow = places(6), places(4)
    values = np.array([[10.0], [20], [30], [40], [50], [999]])
    found = interpolated(deep, shallow, values)[:, 0]
    by_depth = np.interp([1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7], [0, 0.2, 0.4, 0.6, 0.8], values[:5, 0])
    np.testing.assert_allclose(found, [10, *by_depth, 50, 999])  # layer.6 of 6 is beside layer.4 of 4


def test_what_was_not_measured_is_not_made_up():
    values = np.array([[1.0], [2.0]])
    found = interpolated(places(6), places(4, ["layer.1", "layer.2"]), values)[:, 0]
    assert np.isnan(found[[0, 1, 3, 4, 5, 6, 7]]).all()
    assert 1 < found[2] < 2


def test_a_missing_value_spoils_its_neighbours_only():
    values = np.array([[1.0], [np.nan], [3.0], [4.0]])
    found = interpolated(places(2), places(2), values)[:, 0]
    np.testing.assert_array_equal(np.isnan(found), [False, True, False, False])
    found = interpolated(places(5), places(2), values)[:, 0]  # layer.2 and layer.4 of 5 are at those of 2
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, True, False, False, False])


@pytest.mark.parametrize("depths", [(4, 6), (6, 4), (1, 40), (3, 4, 12)])
def test_ends_are_beside_ends_and_blocks_beside_blocks(depths):
    all_places = [places(n) for n in depths]
    aligned = align(all_places)
    shown = [aligned.rows[row] for row in aligned.shown]
    assert shown == names(max(depths))
    for one, n in zip(all_places, depths, strict=True):
        beside = aligned.beside(one)
        assert (beside[0], beside[-1]) == ("embeddings", "final_norm")
        blocks = [int(name.removeprefix("layer.")) for name in beside[1:-1]]
        assert blocks == sorted(blocks)
        for index, block in enumerate(blocks, start=1):
            off = [abs(b / (n + 1) - index / (max(depths) + 1)) for b in range(1, n + 1)]
            assert off[block - 1] == pytest.approx(min(off))


def test_comparisons_are_drawn_by_layer_or_by_relative_depth(partial, tmp_path):
    same, deeper = some_layers(9, None), some_layers(14, None)
    drawn = compared_by_depth([partial, same], ["a", "b"])
    assert [list(line.get_xdata()) for line in drawn.axes[0].lines] == [[0, 2, 7, 10], list(range(11))]
    assert drawn.get_supxlabel() == "layer (0: embeddings; 10: final norm)"
    drawn = compared_by_depth([partial, deeper], ["a", "b"])
    np.testing.assert_allclose(drawn.axes[0].lines[0].get_xdata(), [0, 0.2, 0.7, 1])
    np.testing.assert_allclose(drawn.axes[0].lines[1].get_xdata(), np.arange(16) / 15)
    assert "relative depth (layer / (L + 1)" in drawn.get_supxlabel()
    folders = [save(result, tmp_path / name) for result, name in ((partial, "a"), (same, "b"), (deeper, "c"))]
    assert not page_data(write_report(folders[:2], tmp_path / "two"))["by_depth"]
    assert page_data(write_report(folders, tmp_path / "three"))["by_depth"]


def test_modules_are_compared_by_name_or_by_depth():
    net = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3))).eval()
    results = []
    for modules in ({"a": net[0], "b": net[1]}, {"a": net[0], "b": net[1]}, {"x": net[0], "y": net[1], "z": net[2]}):
        probe = SoftEntropyProbe(net, modules=modules, n_anchors=20, anchor_sets=1)
        with probe, torch.no_grad():
            net(torch.ones(4, 8).cumsum(0))
        results.append(probe.result())
    assert not differences(results[0], results[1])["interpolated"]
    found = differences(results[0], results[2])  # a beside x, b beside z
    h = [r.metrics()[0][2][:, 0].numpy() / np.log(20) for r in results]
    assert found["interpolated"]
    np.testing.assert_allclose(found["series"]["entropy|"]["d"], h[2][[0, 2]] - h[0], atol=1e-6)


# --- other tokens of the same texts --------------------------------------------------------------------------


def of_texts(tokens: str, texts: str | None):
    result = result_of(tiny_llama(), labels=NAMES[:2], corpus=tokens * 64)
    if texts:
        result.info["corpus"]["texts_sha256"] = texts * 64
    return result


def test_the_same_texts_under_other_tokenizers_stand_side_by_side_with_a_note(tmp_path):
    one, other = of_texts("a", "e"), of_texts("b", "e")
    folders = [save(one, tmp_path / "a"), save(other, tmp_path / "b")]
    page = write_report(folders, tmp_path / "report")
    assert page_data(page)["differences"][0]["tokens_differ"]
    assert "their texts are the same and their tokens differ" in page.read_text().split("<main")[0]
    notes = check_comparable([one, of_texts("a", "e")], ["x", "y"])
    assert notes == []


def counted(result, positions, policy=None, label_sets=None):
    """The result as one of so many positions."""
    info = {**result.info, "positions": positions, **({"positions_policy": policy} if policy else {})}
    return replace(result, info=info, label_sets=label_sets or result.label_sets)


def position_notes(one, other) -> list[str]:
    notes = check_comparable([one, other], ["x", "y"], allow_different=True)
    return [note.removeprefix("x and y: ") for note in notes if "positions were counted" in note]


BY_TOKENIZERS = "their tokenizers cut the same texts into more and fewer tokens"
BY_ORDERS = "label sets of other orders leave out other ends of documents"
BIGRAMS = ["input_bigram", "output_unigram", "topic"]


def test_the_reason_for_other_numbers_of_positions_is_the_one_there_is():
    one, same, other = counted(of_texts("a", "e"), 900), of_texts("a", "e"), of_texts("b", "e")
    counts = "900 and 1,200 positions were counted"
    assert position_notes(one, counted(other, 1200)) == [f"{counts}: {BY_TOKENIZERS}."]
    assert position_notes(one, counted(other, 900)) == []
    assert position_notes(one, counted(same, 1200, label_sets=BIGRAMS)) == [f"{counts}: {BY_ORDERS}."]
    last = {"positions": "last", "left": 1200, "of": 9000}
    assert position_notes(one, counted(same, 1200, last)) == [f"{counts}: other positions count in each."]
    both = counted(other, 1200, label_sets=BIGRAMS)
    assert position_notes(one, both) == [f"{counts}: {BY_TOKENIZERS}; {BY_ORDERS}."]
    assert position_notes(one, counted(same, 1200)) == [f"{counts}."]  # of masks of one's own, say


def test_what_can_be_compared_between_tokenizers_is_said():
    (note,) = [n for n in check_comparable([of_texts("a", "e"), of_texts("b", "e")], ["x", "y"]) if "tokens" in n]
    assert "bits of information about them are not comparable" in note
    assert "Its shape over depth is, and its share of H(X) (label_entropy)" in note
    assert note.endswith("entropy and information about columns, since both are of the same characters.")


def test_other_settings_of_one_tokenizer_are_named_instead():
    one, other = counted(of_texts("a", "e"), 900), counted(of_texts("b", "e"), 1200)
    one.info["config"], other.info["config"] = {"max_length": 64}, {"max_length": 128}
    notes = check_comparable([one, other], ["x", "y"])
    assert notes == [
        "x and y: their texts are the same and their tokens differ by settings of the same tokenizer (max_length 64 "
        "and 128): other parts of texts were measured.",
        "x and y: 900 and 1,200 positions were counted: max_length 64 and 128.",
    ]
    other.info["model"] = {"model": "another", "revision": None}
    assert position_notes(one, other) == [f"900 and 1,200 positions were counted: {BY_TOKENIZERS}."]


def test_two_runs_of_other_tokenizers_say_why_their_positions_differ(config, tmp_path):
    letters = Tokenizer(models.BPE(unk_token="<unk>"))
    letters.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=30, special_tokens=["<unk>", "<s>", "<pad>"]))
    PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>").save_pretrained(tmp_path / "letters")
    for name, tokenizer in (("own", None), ("letters", str(tmp_path / "letters"))):
        run(config(out=str(tmp_path / name), tokenizer=tokenizer, labels=["input_unigram"]), progress=False)
    said = compare_folders([str(tmp_path / "own"), str(tmp_path / "letters")])
    assert f"positions were counted: {BY_TOKENIZERS}." in said
    assert "its share of H(X) (label_entropy)" in said
    assert "label sets of other orders" not in said


def test_attached_results_of_other_tokenizers_name_them():
    one, other = (result_of(tiny_llama(), labels=NAMES[:2], corpus=None) for _ in range(2))
    for result, name in ((one, "gpt2"), (other, "org/words")):
        result.info["corpus"] = {"sequences": 60, "sequences_sha256": name * 8, "sequence_set_sha256": name * 8}
        result.info["tokenizer"] = {"tokenizer": name}
    with pytest.raises(InputError, match="60 and 60 sequences of the tokenizers gpt2 and org/words, maybe of the same"):
        check_comparable([one, other], ["x", "y"])


@pytest.mark.parametrize("texts", [("e", "f"), ("e", None), (None, None)])
def test_other_texts_are_refused_as_are_texts_that_are_not_recorded(texts):
    one, other = of_texts("a", texts[0]), of_texts("b", texts[1])
    with pytest.raises(InputError, match="differ in their corpus"):
        check_comparable([one, other], ["x", "y"])


def test_texts_in_another_order_are_told_by_the_setting(tmp_path):
    one, other = of_texts("a", "e"), of_texts("b", "f")
    for result, seed in ((one, None), (other, 3)):
        result.info["corpus"]["data"] = "t.jsonl"
        result.info["config"] = {"shuffle_seed": seed}
    with pytest.raises(InputError, match=r"both read t.jsonl, shuffle_seed None and 3; SHA-256"):
        check_comparable([one, other], ["x", "y"])
    other.info["config"] = {"shuffle_seed": None}
    with pytest.raises(InputError, match=r"both read t.jsonl, of which the texts differ; SHA-256"):
        check_comparable([one, other], ["x", "y"])


def test_texts_that_were_cut_are_told(tmp_path):
    one, other = of_texts("a", "e"), of_texts("b", "e")
    other.info["corpus"]["documents_longer_than_max_length"] = 7
    notes = check_comparable([one, other], ["x", "y"])
    assert any("0 and 7 documents were cut at max_length" in note for note in notes)
    other.info["config"] = {"overflow": "split"}
    assert not any("cut" in note for note in check_comparable([one, other], ["x", "y"]))


# --- sweeps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """A sweep over models of 4 and of 6 blocks, two steps of each."""
    results = {(n, step): some_layers(n, None, initializer_range=0.1 * step) for n in (4, 6) for step in (1, 2)}
    return collected_folder(tmp_path_factory.mktemp("sweep"), results), results


def expected(result, name: str) -> float:
    table = result.to_pandas()
    return float(table[(table.metric == "entropy") & (table.name == name)].value.iloc[0])


def test_a_sweeps_table_has_the_index_of_each_layer_in_its_model(unequal):
    table = pd.read_parquet(unequal[0] / "sweep.parquet")
    for n in (4, 6):
        of_model = table[table.model.str.endswith(f"of{n}") & table.layer.notna()]
        assert dict(of_model[["name", "layer"]].drop_duplicates().itertuples(index=False)) == {
            name: index for index, name in enumerate(names(n))
        }


def test_a_sweeps_page_has_the_values_of_every_layer_under_its_name(unequal, tmp_path):
    folder, results = unequal
    (tmp_path / "report.html").write_text(sweep_page(read_sweep(folder)))
    data = page_data(tmp_path / "report.html")
    assert data["rows"] == names(6)
    assert data["by_depth"]
    shown = unpacked(data["series"]["entropy|"]["v"])
    for checkpoint, values in zip(data["checkpoints"], shown, strict=True):
        n = int(checkpoint["model"][-1])
        result = results[n, checkpoint["step"]]
        by_name = {name: v for name, v in zip(data["rows"], values, strict=True) if not math.isnan(v)}
        assert by_name == pytest.approx({name: expected(result, name) for name in names(n)}, abs=1e-5)
        layout = data["layouts"][checkpoint["layout"]]
        assert (layout["layers"], layout["depth"]) == (list(range(n + 2)), n + 1)
        beside = [data["rows"][row] for row in layout["beside"]]  # no cell is empty
        assert beside[-1] == "final_norm"
        assert beside[0] == "embeddings"
        assert "final_norm" not in beside[:-1]
    assert "different numbers of blocks" in (tmp_path / "report.html").read_text()


def test_figures_of_each_model_have_its_layers(unequal):
    sweep = read_sweep(unequal[0])
    for model in dict.fromkeys(c["model"] for c in sweep.done):
        n = int(model[-1])
        table, axis = sweep.table_of(model)
        table = table.assign(step=1)
        assert axis == f"layer (0: embeddings; {n + 1}: final norm)"
        cells = layers_by_step(table, "entropy", axis=axis).axes[0].images[0]
        np.testing.assert_array_equal(cells._Ay, range(n + 2))
        legend = [text.get_text() for text in metric_by_step(table, "entropy").legends[0].get_texts()]
        assert (legend[0], legend[-1]) == ("embeddings", "final_norm")


def test_a_model_that_grew_in_training_is_drawn_by_relative_depth(tmp_path):
    results = {("grows", 1): some_layers(4, None), ("grows", 2): some_layers(6, None)}
    sweep = read_sweep(collected_folder(tmp_path, results))
    table, axis = sweep.table_of(sweep.done[0]["model"])
    assert "relative depth" in axis
    table = table.assign(step=table.checkpoint.cat.codes)
    cells = layers_by_step(table, "entropy", axis=axis).axes[0].images[0]
    np.testing.assert_allclose(cells._Ay, np.arange(8) / 7)
    assert not np.ma.getmaskarray(cells.get_array()).any()
    last = [expected(results["grows", step], "final_norm") for step in (1, 2)]
    np.testing.assert_allclose(cells.get_array()[-1], last)


def test_some_layers_of_a_sweep_are_at_scale(tmp_path):
    results = {("m", step): some_layers(9, SOME, initializer_range=0.1 * step) for step in (1, 2)}
    folder = collected_folder(tmp_path, results)
    sweep = read_sweep(folder)
    data = sweep.data()
    assert (data["rows"], data["places"], data["by_depth"]) == (SOME, [0, 2, 7, 10], False)
    table, _ = sweep.table_of(sweep.done[0]["model"])
    figure = metric_by_step(table.assign(step=1), "entropy", layers=[7])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["layer.7"]
    with pytest.raises(InputError, match="layers: 3 is not in the table"):
        metric_by_step(table.assign(step=1), "entropy", layers=[3])


def test_a_table_with_numbers_of_rows_is_read_as_layers(tmp_path):
    """Earlier versions wrote the number of the row, and no number of blocks."""
    folder = collected_folder(tmp_path, {(n, 1): some_layers(n, None) for n in (4, 6)})
    table = pd.read_parquet(folder / "sweep.parquet")
    table.assign(layer=0).to_parquet(folder / "sweep.parquet")
    info = {key: value for key, value in info_of(folder).items() if key != "parquet_sha256"}
    for checkpoint in info["checkpoints"]:
        del checkpoint["n_blocks"]
    (folder / "sweep.json").write_text(json.dumps(info))
    sweep = read_sweep(folder)
    assert set(sweep.table[sweep.table.name == "final_norm"].layer) == {5, 7}


def warnings_of(folder) -> list[str]:
    with mock.patch("softh_probe.sweep.collection._write_report", return_value=None):
        return collect(folder).warnings


def test_collect_says_that_tokens_differ(tmp_path):
    results = {("m", 1): of_texts("a", "e"), ("m", 2): of_texts("b", "e")}
    folder = collected_folder(tmp_path / "tokens", results)
    assert any("tokenizers differ: the same texts are 2" in text for text in warnings_of(folder))
    assert any("Tokenizers differ" in text for text in read_sweep(folder).warnings)
    results = {("m", 1): of_texts("a", "e"), ("m", 2): of_texts("b", "f")}
    folder = collected_folder(tmp_path / "texts", results)
    assert any("texts differ: 2 different corpora" in text for text in warnings_of(folder))
    results[("m", 3)] = of_texts("c", None)
    folder = collected_folder(tmp_path / "unknown", results)
    assert any("texts differ: 2 different corpora" in text for text in warnings_of(folder))
