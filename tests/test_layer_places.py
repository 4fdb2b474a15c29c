"""The index of each layer in its model, in tables of results of any layers, of modules, and of earlier versions."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

from softh_probe import ProbeResult, SoftEntropyProbe
from softh_probe.layer_places import place_layers
from softh_probe.report.wide_table import wide_table
from softh_probe.result_files import sealed
from tests.helpers.models import tiny_llama

TOKENS = torch.randint(1, 40, (6, 20), generator=torch.Generator().manual_seed(0))
SOME = ["embeddings", "layer.2", "layer.5", "final_norm"]


def measured(model, **settings) -> ProbeResult:
    probe = SoftEntropyProbe(model, n_anchors=20, anchor_sets=2, **settings)
    with probe, torch.no_grad():
        model(input_ids=TOKENS)
    return probe.result()


def layers_of(table: pd.DataFrame) -> dict[str, int]:
    table = table[table.layer.notna()].astype({"layer": int})  # the mean over layers has no index
    return dict(table[["name", "layer"]].drop_duplicates().itertuples(index=False))


def older(result: ProbeResult, folder) -> None:
    """Write a result as earlier versions did: without the number of blocks."""
    result.save(folder)
    head = json.loads((folder / "result.json").read_text())
    head = {key: value for key, value in head.items() if key not in ("n_blocks", "format", "sha256")}
    (folder / "result.json").write_text(json.dumps(sealed(head)))


@pytest.fixture(scope="module")
def model():
    return tiny_llama(num_hidden_layers=6)


def test_layer_is_the_index_in_the_model_whichever_layers_were_measured(model, tmp_path):
    result = measured(model, layers=SOME)
    expected = {"embeddings": 0, "layer.2": 2, "layer.5": 5, "final_norm": 7}
    assert result.info["n_blocks"] == 6
    assert layers_of(result.to_pandas()) == expected
    assert layers_of(wide_table(result)) == expected
    result.save(tmp_path)
    assert layers_of(pd.read_csv(tmp_path / "layers.csv")) == expected
    assert layers_of(pd.read_parquet(tmp_path / "layers.parquet")) == expected
    assert layers_of(ProbeResult.load(tmp_path).to_pandas("nats")) == expected


def test_tables_joined_on_layer_pair_the_same_layers(model):
    one, other = measured(model, layers=SOME), measured(model, layers=[1, 5, -2, -1])
    one, other = (result.to_pandas().dropna(subset="layer") for result in (one, other))
    joined = one.merge(other, on=["layer", "label_set", "metric"])
    assert set(joined.layer) == {5, 7}
    assert (joined.name_x == joined.name_y).all()
    np.testing.assert_allclose(joined.value_x, joined.value_y)


def test_entropies_by_label_have_the_same_layers(model):
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, layers=SOME)
    with probe, torch.no_grad(), probe.labelled(topic=torch.arange(6) % 2):
        model(input_ids=TOKENS)
    assert layers_of(probe.result().conditional_entropy("topic")) == dict(zip(SOME, (0, 2, 5, 7), strict=True))


def test_calls_of_a_shared_block_count(model):
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4}
    shared = AlbertModel(AlbertConfig(**sizes, embedding_size=16, num_hidden_layers=5, num_hidden_groups=1)).eval()
    result = measured(shared, layers=["layer.4", "layer.5"])
    assert result.info["n_blocks"] == 5
    assert layers_of(result.to_pandas()) == {"layer.4": 4, "layer.5": 5}


def test_a_model_without_a_final_norm_has_its_last_block_at_the_same_place():
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 4}
    result = measured(BertModel(BertConfig(**sizes, num_hidden_layers=4)).eval(), layers=[0, -1])
    assert layers_of(result.to_pandas()) == {"embeddings": 0, "layer.4": 4}
    assert result.places.depths == [0, 4 / 5]


def test_a_continued_measurement_knows_the_number_of_blocks(model):
    first = SoftEntropyProbe(model, layers=["final_norm"])
    with first, torch.no_grad():
        model(input_ids=TOKENS)
    again = first.new_like()
    again.load_state_dict(first.state_dict())
    again.merge(first)
    assert layers_of(again.result().to_pandas()) == {"final_norm": 7}


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("layer.3", "layer.1")])
def test_modules_have_the_number_of_their_row(names, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)).eval()
    probe = SoftEntropyProbe(net, modules=dict(zip(names, net, strict=True)), n_anchors=20)
    with probe, torch.no_grad():
        net(torch.randn(30, 8))
    result = probe.result()
    assert result.info["n_blocks"] is None
    assert layers_of(result.to_pandas()) == {names[0]: 0, names[1]: 1}
    older(result, tmp_path)
    assert layers_of(ProbeResult.load(tmp_path).to_pandas()) == {names[0]: 0, names[1]: 1}


@pytest.mark.filterwarnings("error")
def test_an_older_result_of_all_layers_is_certain(model, tmp_path):
    older(measured(model), tmp_path)
    result = ProbeResult.load(tmp_path)
    assert result.places.is_certain
    assert layers_of(result.to_pandas())["final_norm"] == 7


def test_an_older_result_of_some_layers_warns_that_the_final_norm_may_lie_deeper(model, tmp_path):
    older(measured(model, layers=SOME), tmp_path)
    with pytest.warns(UserWarning, match="does not record how many blocks its model has"):
        result = ProbeResult.load(tmp_path)
    assert layers_of(result.to_pandas()) == {"embeddings": 0, "layer.2": 2, "layer.5": 5, "final_norm": 6}
    assert "does not record how many blocks" in result._repr_html_()


@pytest.mark.parametrize("recorded", ["6", 3, True, 6.5])
def test_a_number_of_blocks_that_cannot_be_is_not_taken(recorded):
    places = place_layers(SOME, {"n_blocks": recorded})
    assert (places.indices, places.is_certain) == ((0, 2, 5, 6), False)


def test_names_of_any_length_are_placed():
    assert place_layers([f"layer.{'9' * 5000}", "x"], {}).indices == (0, 1)
    assert place_layers(["layer.99999999"], {}).indices == (99999999,)
    assert place_layers([], {}).last == 0
