"""The influence of documents: standard errors and files."""

import numpy as np
import pandas as pd
import pytest
import torch

from softh_probe.errors import InputError
from softh_probe.influence import DocumentInfluence, standard_error
from softh_probe.result import ProbeResult


def influence_of(n_documents: int = 5) -> DocumentInfluence:
    random = np.random.default_rng(0)
    return DocumentInfluence(
        rows=["layer.1", "final_norm"],
        documents=np.arange(n_documents) * 2,
        keys=random.integers(2**63, 2**64 - 1, n_documents, dtype=np.uint64),
        units=np.arange(n_documents) // 2,
        positions=random.integers(1, 9, n_documents),
        n_documents=8,
        n_units=4,
        n_positions=100,
        values={
            ("", "entropy"): random.normal(size=(2, n_documents)),
            ("unigram", "optimality"): random.normal(size=(2, n_documents)),
        },
    )


def test_units_are_summed_and_a_share_is_scaled():
    psi_RD = np.array([[1.0, 2.0, -3.0], [0.0, 1.0, 1.0]])
    found = standard_error(psi_RD, np.array([7, 3, 7]), n_units=6)
    np.testing.assert_allclose(found, np.sqrt([(4 + 4) * 3, (1 + 1) * 3]))


def test_it_is_read_as_it_was_written(tmp_path):
    written = influence_of()
    written.write(tmp_path / "documents.parquet", [1, 3])
    read = DocumentInfluence.read(tmp_path / "documents.parquet")
    for name in ("documents", "keys", "units", "positions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.rows, read.n_documents, read.n_units, read.n_positions) == (written.rows, 8, 4, 100)
    assert list(read.values) == list(written.values)
    for name, values_RD in written.values.items():
        np.testing.assert_array_equal(read.values[name], values_RD)
    table = pd.read_parquet(tmp_path / "documents.parquet")
    assert list(table) == ["document", "key", "unit", "positions", "layer", "name", "label_set", "metric", "value"]
    assert set(table.layer) == {1, 3}


def test_a_result_keeps_the_influence_of_its_documents(tmp_path):
    sums = torch.tensor([[[3.0, 1.0], [2.0, 2.0]]] * 2, dtype=torch.float64)
    tensors = {"mass": sums, "entropy_document_sd": torch.zeros(2, 2, dtype=torch.float64)}
    tensors |= {"positions": sums.sum(dim=(1, 2)) / 2, "position_entropy": torch.zeros(2, 2, dtype=torch.float64)}
    shapes = {"labelled_positions": (0,), "covered_positions": (0,), "label_positions": (0,), "label_entropy": (0, 2)}
    shapes |= dict.fromkeys(("labelled_entropy", "labelled_position_entropy", "conditional_entropy"), (0, 2))
    shapes |= dict.fromkeys(("null_information", "corrected_information"), (0, 2))
    tensors |= {name: torch.zeros(2, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    influence = influence_of()
    tensors["se_entropy"] = torch.from_numpy(influence.standard_error(("", "entropy")))
    tensors |= {f"se_{name}": tensors["labelled_positions"] for name in ("information", "regularity", "optimality")}
    result = ProbeResult(
        rows=influence.rows, label_sets=[], tensors=tensors, info={"n_blocks": 2, "positions": 4}, influence=influence
    )
    result.save(tmp_path)
    loaded = ProbeResult.load(tmp_path)
    np.testing.assert_array_equal(loaded.influence.keys, influence.keys)
    table = loaded.to_pandas("nats")
    se = table[table.metric == "entropy"].se
    of_layers = influence.standard_error(("", "entropy"))
    np.testing.assert_allclose(se, [*of_layers, of_layers[0]])  # the mean over blocks is that of layer.1
    assert table[table.metric == "entropy_document_sd"].se.isna().all()
    kept = (tmp_path / "documents.parquet").read_bytes()
    (tmp_path / "documents.parquet").unlink()
    with pytest.warns(
        UserWarning, match=r"documents\.parquet is missing, so means of layers and differences to other results"
    ):
        without = ProbeResult.load(tmp_path)
    assert without.influence is None
    lost, known = (result.to_pandas() for result in (without, loaded))
    is_mean = known.name == "mean"
    assert lost[~is_mean].equals(known[~is_mean])
    assert known[is_mean].se.notna().any()
    assert lost[is_mean].se.isna().all()
    (tmp_path / "documents.parquet").write_bytes(kept[:-1])
    with pytest.raises(InputError, match=r"documents\.parquet was changed after it was written") as error:
        ProbeResult.load(tmp_path)
    assert str(error.value).count("the result is damaged") == 1
