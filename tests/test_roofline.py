"""What the probe costs on a GPU, counted: the count is right, and no change makes a 7B layer dearer unseen."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "roofline.py"


@pytest.fixture(scope="module")
def roofline():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("roofline", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module  # its dataclasses look their names up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["roofline"]
    sys.path.remove(str(SCRIPT.parent))


def counted(roofline, work):
    with roofline.Count(roofline.Roofline()) as count:
        work()
    return count.model


def test_bytes_are_those_that_are_read_and_written(roofline):
    x, y, rows = torch.zeros(100, 8), torch.ones(100, 8), torch.tensor([3, 4])
    half, mask = x.half(), torch.zeros(100, 1, dtype=torch.bool)
    stacked = torch.zeros(2, 50, 8)
    starts = torch.tensor([0, 2])

    def bag_of_rows():
        with torch.inference_mode():
            torch.nn.functional.embedding_bag(rows, x, starts, mode="sum", include_last_offset=True)

    size, of_rows = x.nbytes, 2 * 8 * 4 + rows.nbytes
    for work, expected in [
        (lambda: x + y, 3 * size),
        (lambda: x.add_(y), 3 * size),
        (lambda: x.exp_(), 2 * size),
        (lambda: torch.exp(x, out=y), 2 * size),
        (lambda: x.masked_fill_(mask, 0.0), 2 * size + 100),
        (lambda: x.copy_(y), 2 * size),
        (lambda: x.unflatten(1, (2, 4)), 0),
        (lambda: x.reshape(200, 4), 0),
        (lambda: x.index_select(0, rows), of_rows + 2 * 8 * 4),
        (lambda: x.index_fill_(0, rows, 0.0), of_rows),
        (lambda: x.index_copy_(0, rows, y[:2]), of_rows + 2 * 8 * 4),
        (lambda: x.index_add_(0, rows, y[:2]), of_rows + 2 * 2 * 8 * 4),
        (lambda: stacked.index_select(1, rows), rows.nbytes + 2 * 2 * 2 * 8 * 4),
        (lambda: stacked.index_copy_(1, rows, stacked[:, 8:10]), rows.nbytes + 2 * 2 * 2 * 8 * 4),
        (lambda: stacked[:, :, 3:].index_add_(1, rows, stacked[:, 8:10, 3:]), rows.nbytes + 3 * 2 * 2 * 5 * 4),
        (lambda: torch._foreach_add_([x, y], 1.0), 4 * size),
        (lambda: torch._foreach_copy_([x], [y]), 2 * size),
        (lambda: x.new_zeros(100, 8), size),
        (lambda: torch.ones_like(x), size),
        (lambda: x.to(torch.float64), 3 * size),
        (bag_of_rows, of_rows + 3 * starts.nbytes + 8 * 4),  # it gives sizes of bags, too
        (lambda: torch.linalg.vector_norm(half, dim=1, dtype=torch.float32), half.nbytes + 400),
        (lambda: torch.linalg.vector_norm(x, dim=1, dtype=torch.float64), size + 4 * size + 800),
    ]:
        assert counted(roofline, work).per_layer(1)["bytes"] == expected


def test_memory_is_that_of_tensors_that_are_held_at_once(roofline):
    x, held = torch.zeros(1000), []
    with roofline.Count(roofline.Roofline()) as count, count.of_probe():
        for _ in range(3):
            x.add(1.0)  # is not held
        x.add_(1.0).view(10, 100)
        held += [x.add(1.0), x.add(2.0)]
        del held[0]
        held.append(x.double())
    assert count.held.peak == 4000 + 8000


def test_the_longer_of_bytes_and_flops_is_the_time(roofline):
    device = roofline.Roofline()
    for dtype, flops_per_second in ((torch.bfloat16, device.half_flops), (torch.float32, device.float32_flops)):
        a = torch.zeros(4096, 4096, dtype=dtype, device="meta")
        for other in (torch.empty_like(a), a.new_empty(4096, 16)):
            of = counted(roofline, lambda a=a, other=other: torch.mm(a, other)).per_layer(1)
            assert of["flops"] == 2 * 4096**2 * other.shape[1]
            assert of["bytes"] == a.nbytes + 2 * other.nbytes
            longest = max(of["bytes"] / device.bytes_per_second, of["flops"] / flops_per_second)
            assert of["seconds"] == pytest.approx(longest + device.kernel_seconds)


@pytest.mark.parametrize("anchor_sets", [1, 8])
@pytest.mark.parametrize(
    ("shape", "sequences", "most"),
    [
        ("smollm2-135m", 32, {1: 0.14, 8: 0.50}),
        ("olmo-2-1b", 16, {1: 0.025, 8: 0.09}),
        ("olmo-2-7b", 16, {1: 0.015, 8: 0.06}),
        ("olmo-2-32b", 16, {1: 0.01, 8: 0.04}),
    ],
)
def test_a_layer_costs_at_most_this_share_of_a_block(roofline, shape, sequences, most, anchor_sets):
    found = roofline.count(roofline.Roofline(shape=shape, sequences=sequences, anchor_sets=anchor_sets))
    assert found["share"] <= most[anchor_sets], found
    assert 0.3 < found["peak_bytes"] / 2**30 < (1.2 if sequences * anchor_sets > 128 else 0.6)


@pytest.mark.parametrize(
    ("anchor_sets", "most"),
    [
        (1, {"seconds": 116e-6, "kernels": 10.8, "bytes": 264e6, "flops": 13.6e9}),
        (8, {"seconds": 377e-6, "kernels": 17.0, "bytes": 674e6, "flops": 107.6e9}),
    ],
)
def test_a_layer_of_a_7b_model_costs_no_more(roofline, anchor_sets, most):
    found = roofline.count(roofline.Roofline(anchor_sets=anchor_sets))
    assert {name: found["probe"][name] <= limit for name, limit in most.items()} == dict.fromkeys(most, True), found
    # The least that there is to do: states are read for products, norms and the mean direction, without a copy, and
    # multiplied with both halves of the anchors and of 1/‖h‖.
    n, width, products = 8192, 4096, 2 * 100 * anchor_sets + 2
    assert found["probe"]["bytes"] > 3 * 2 * n * width
    assert found["probe"]["flops"] >= 2 * n * width * products
    # Copies are those of small sums to float64, and of the batch's labels to the device.
    copies = ("to", "_to_copy", "contiguous", "reshape", "clone", "copy_")
    assert sum(found["operations"].get(name, 0.0) for name in copies) < {1: 5.5, 8: 8.5}[anchor_sets]
    assert found["model"]["flops"] == pytest.approx(
        2 * n * (4 * 4096**2 + 3 * 4096 * 11008) + 4 * n * 512 * 4096, rel=0.01
    )


@pytest.mark.parametrize(("shape", "anchor_sets", "is_hidden"), [("olmo-2-7b", 8, True), ("smollm2-135m", 8, False)])
def test_what_goes_to_host_memory_is_counted(roofline, shape, anchor_sets, is_hidden):
    found = roofline.count(roofline.Roofline(shape=shape, anchor_sets=anchor_sets, blocks=2, sequences=16))
    assert found["to_host"]["bytes"] % (4 * (100 * anchor_sets + anchor_sets + 1)) == 0
    assert (found["to_host"]["seconds"] < found["model"]["seconds"]) == is_hidden


def test_float32_states_take_one_product(roofline):
    found = roofline.count(roofline.Roofline(dtype="float32", blocks=2))
    assert found["probe"]["flops"] == pytest.approx(2 * 8192 * 4096 * (100 + 1), rel=0.01)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"blocks": 0}, "blocks: expected 1 or more, got 0"),
        ({"sequences": 0}, "sequences: expected 1 or more, got 0"),
        ({"tokens": 7}, "tokens: expected 8 or more, got 7"),
        ({"anchor_sets": -1}, "anchor_sets: expected 1 or more, got -1"),
        ({"bytes_per_second": 0.0}, "bytes_per_second: expected more than 0, got 0.0"),
        ({"kernel_seconds": -1.0}, "kernel_seconds: expected 0 or more, got -1.0"),
        ({"json": "/"}, "json: expected a file to write, got the folder /"),
        ({"json": "/proc/no/a.json"}, "json: cannot write to /proc/no/a.json: No such file or directory"),
    ],
)
def test_what_cannot_be_counted_is_said_in_a_line(roofline, given, said):
    with pytest.raises(SystemExit, match=said):
        roofline.main(roofline.Roofline(**given))


def test_the_share_of_a_batch_has_the_layers_beside_the_blocks(roofline, tmp_path, capsys):
    given = roofline.Roofline(shape="smollm2-135m", blocks=2, sequences=2, tokens=32, json=str(tmp_path / "new/a.json"))
    roofline.main(given)
    found = json.loads((tmp_path / "new/a.json").read_text())
    assert found["share_of_batch"] == pytest.approx(found["share"] * 32 / 30)  # embeddings and final norm, too
    assert f"{found['share']:.1%} of a block; all of them cost {found['share_of_batch']:.1%}" in capsys.readouterr().out
