"""Anchors of one's own: from tensors, arrays and files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from softh_probe import SoftEntropyProbe, sample_anchors, soft_entropy, soft_mutual_information
from softh_probe.errors import InputError
from softh_probe.estimators.given_anchors import GivenAnchors, given_anchors
from softh_probe.hashing import bytes_sha256
from tests.helpers.models import tiny_llama

IDS = torch.arange(60).reshape(3, 20) % 37


def probed(model, **settings):
    with SoftEntropyProbe(model, labels=["input_unigram"], **settings) as probe, torch.inference_mode():
        model(input_ids=IDS)
    return probe


def width(model) -> int:
    return model.config.hidden_size


def test_anchors_of_a_kind_given_as_a_tensor_measure_the_same():
    model = tiny_llama()
    points = torch.stack([sample_anchors(20, width(model), seed) for seed in (3, 4)])
    drawn = probed(model, n_anchors=20, anchor_sets=2, seed=3)
    given = probed(model, anchors=points)
    assert torch.equal(drawn.sums, given.sums)
    assert given.result().to_pandas().equals(drawn.result().to_pandas())
    ours, theirs = given.result().info["anchors"][0], drawn.result().info["anchors"][0]
    assert ours == {**theirs, "recipe": "given"}
    assert given.result().info["settings"]["anchors"] == f"given:{ours['sha256']}"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_files_give_the_anchors_that_were_written(suffix, tmp_path):
    points, path = sample_anchors(20, 16, 5), tmp_path / f"mine{suffix}"
    if suffix == ".npy":
        np.save(path, points.numpy())
    elif suffix == ".npz":
        np.savez(path, first=points.numpy(), second=sample_anchors(20, 8, 5).numpy())
    else:
        save_file({"first": points, "second": sample_anchors(20, 8, 5)}, path)
    given = given_anchors(str(path))
    assert given.widths == ([16] if suffix == ".npy" else [8, 16])
    np.testing.assert_array_equal(given.of_width(16), points.numpy()[None])
    if suffix == ".npy":
        assert given.sha256 == bytes_sha256(points.numpy().astype("<f4").tobytes())


def test_bfloat16_anchors_are_read(tmp_path):
    points = sample_anchors(20, 64, 5).bfloat16()
    save_file({"w": points}, tmp_path / "w.safetensors")
    expected = points.float().numpy()[None]
    np.testing.assert_array_equal(given_anchors(tmp_path / "w.safetensors").of_width(64), expected)
    np.testing.assert_array_equal(given_anchors(points).of_width(64), expected)


def test_functions_take_a_tensor():
    z, labels = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 5
    points = sample_anchors(30, 16, 2)
    assert soft_entropy(z, anchors=points) == soft_entropy(z, 30, seed=2)
    assert soft_mutual_information(z, labels, anchors=points) == soft_mutual_information(z, labels, 30, seed=2)


def test_probes_with_other_anchors_are_not_merged_and_states_know_them():
    model = tiny_llama()
    one, other = (probed(model, anchors=sample_anchors(20, width(model), seed)) for seed in (0, 1))
    with pytest.raises(InputError, match="merge: expected anchors='given:"):
        one.merge(other)
    again = SoftEntropyProbe(model, labels=["input_unigram"], anchors=sample_anchors(20, width(model), 0))
    again.load_state_dict(one.state_dict())
    assert torch.equal(again.sums, one.sums)
    assert torch.equal(one.new_like().sums, torch.zeros(0, 1, 20, dtype=torch.float64))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(20, 16), "expected rows of unit length, got 20 of 20 of others"),
        (torch.full((20, 16), float("nan")), "expected rows of unit length"),
        (torch.arange(32).reshape(2, 16), r"expected floats \[M, D\] or \[S, M, D\], got int64 \[2, 16\]"),
        (torch.eye(16)[0], r"expected floats \[M, D\] or \[S, M, D\]"),
        (torch.eye(16)[:1], "expected 2 anchors or more"),
        ([torch.eye(16), torch.eye(16)], "two arrays are for width 16"),
        ([torch.eye(16), torch.eye(8)], "as many sets and anchors for each width"),
        ("there/is/none.npy", "there is no file there/is/none.npy"),
        (7.0, r"expected floats \[M, D\]"),
    ],
)
def test_what_are_no_anchors_is_said_in_a_line(value, said):
    with pytest.raises(InputError, match=f"anchors: .*{said}"):
        GivenAnchors.of(value)


@pytest.mark.parametrize("name", ["empty.npy", "cut.safetensors", "pickled.npy", "other.txt"])
def test_files_that_hold_none_are_refused(name, tmp_path):
    path = tmp_path / name
    if name == "pickled.npy":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(b"\0\1" * 4)
    with pytest.raises(InputError, match="anchors: "):
        given_anchors(str(path))


def test_other_numbers_and_widths_are_refused():
    model = tiny_llama()
    points = sample_anchors(20, width(model))
    with pytest.raises(InputError, match="anchor_sets: the given anchors have 1, got 3; leave it out"):
        SoftEntropyProbe(model, anchors=points, anchor_sets=3)
    with pytest.raises(InputError, match="n_anchors: the given anchors have 20, got 50"):
        SoftEntropyProbe(model, anchors=points, n_anchors=50)
    with pytest.raises(Exception, match=f"width {width(model) + 1}, and these are {width(model)} wide"):
        probed(model, anchors=sample_anchors(20, width(model) + 1))
