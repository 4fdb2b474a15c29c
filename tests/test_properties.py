"""Random labels, masks, shapes, dtypes, configurations and results: right, or refused in one line."""

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, example, given, settings

from softh_probe import (
    ProbeResult,
    SoftEntropyProbe,
    sample_anchors,
    soft_entropy,
    soft_mutual_information,
    temperature,
)
from softh_probe.accumulators.statistics import LayerStatistics
from softh_probe.config import RunConfig, config_yaml
from softh_probe.errors import InputError, SofthProbeError
from softh_probe.estimators.anchors import KINDS
from softh_probe.labels import NGRAM_SETS
from softh_probe.result_files import OF_DIRECTIONS, OF_DOCUMENTS, OF_LABELS, OF_SAMPLE, RESULT_JSON, SHAPES, SUMS
from softh_probe.sweep.config import SweepConfig
from tests.helpers import references
from tests.helpers.comparisons import assert_same_values
from tests.helpers.corpora import corpus_of
from tests.helpers.models import tiny_llama
from tests.helpers.probes import NGRAMS, batches, reference, run, run_planned, value


def examples(n: int):
    """Settings of a property: the same n examples each time, without a deadline."""
    unworried = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=unworried)


TOKENS = st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=9), min_size=1, max_size=5)
LABEL_SETS = st.lists(st.sampled_from(NGRAMS), min_size=1, max_size=3, unique=True)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**31, -(2**63) - 1]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\0", "\ud800", "a" * 5000, "input_unigram", "column:x", "exact", "1", "--1", ","]),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(), st.text(max_size=5), st.none(), st.sampled_from(NGRAM_SETS)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([object(), {1, 2}, 1j, np.int64(3), np.float32(0.5), torch.tensor(3)]),
)


@pytest.fixture(scope="module")
def tiny():
    return tiny_llama()


def one_line(error: SofthProbeError) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert 10 < len(text) < 1300
    return text


# -- the probe --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@examples(25)
@given(TOKENS, LABEL_SETS, st.sampled_from(["left", "right"]), st.integers(1, 5), st.sampled_from(KINDS))
def test_any_batches_of_any_documents_equal_the_reference(tiny, docs, label_sets, side, size, kind):
    probe = SoftEntropyProbe(
        tiny, labels=[name for name, _, _ in label_sets], n_anchors=20, anchors=kind, anchor_sets=1
    )
    run(probe, tiny, docs, size, side)
    anchors = sample_anchors(20, 24, 0, kind).numpy()
    expected = references.measure(tiny, docs, label_sets, anchors, temperature(20, 24))
    assert probe.positions == len(expected.labels.get(label_sets[0][0], []))
    if not probe.positions:
        with pytest.raises(SofthProbeError) as caught:
            probe.result()
        one_line(caught.value)
        return
    result = probe.result()
    for row, q in expected.q.items():
        np.testing.assert_allclose(probe.sums[probe.layers.index(row), 0], q.sum(axis=0), rtol=1e-4, atol=1e-6)
        for name, _, _ in label_sets:
            information = references.mutual_information(q, expected.labels[name])
            assert value(result, row, "mutual_information", name) == pytest.approx(information, abs=2e-5)


MASK_TYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float16, torch.bfloat16]


@examples(15)
@given(TOKENS, st.sampled_from(MASK_TYPES), st.integers(0, 3), st.booleans())
def test_masks_of_any_type_and_width_say_the_same(tiny, docs, dtype, more, strided):
    """The last columns of a mask that is wider than the batch, as with a cache, are those of its tokens."""
    (batch,) = batches(docs, len(docs))
    mask = torch.nn.functional.pad(batch["attention_mask"], (more, 0), value=1).to(dtype)
    if strided:
        mask = mask.T.contiguous().T
    probe = SoftEntropyProbe(tiny, labels=["input_unigram"], n_anchors=20, anchor_sets=1)
    with probe, torch.no_grad(), probe.masked(mask):
        tiny(input_ids=batch["input_ids"])
    q = reference(tiny, docs, NGRAMS[:1]).q
    assert probe.positions == sum(map(len, docs))
    np.testing.assert_allclose(probe.sums[:, 0], [q[row].sum(axis=0) for row in probe.layers], rtol=1e-4, atol=1e-6)


@examples(40)
@given(st.lists(st.integers(0, 4), max_size=4), st.sampled_from([*MASK_TYPES, torch.complex64]))
def test_masks_of_any_shape_are_right_or_refused(tiny, shape, dtype):
    probe = SoftEntropyProbe(tiny, labels=(), n_anchors=20, anchor_sets=1)
    ids = torch.ones(2, 3, dtype=torch.long)
    try:
        with probe, torch.no_grad(), probe.masked(torch.ones(shape, dtype=dtype)):
            tiny(input_ids=ids)
    except SofthProbeError as error:
        one_line(error)
        assert len(shape) != 2 or shape[0] != 2 or shape[1] < 3
        return
    assert probe.positions == 6


LABEL_TYPES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.slow
@examples(30)
@given(st.data(), TOKENS, st.sampled_from(LABEL_TYPES), st.booleans())
def test_labels_of_ones_own_of_any_type_equal_the_reference(tiny, data, docs, dtype, per_position):
    (batch,) = batches(docs, len(docs))
    shape = batch["input_ids"].shape if per_position else batch["input_ids"].shape[:1]
    low, high = (0, 1) if dtype is torch.bool else (0, 127) if dtype is torch.uint8 else (-1, 127)
    numbers = data.draw(st.lists(st.integers(low, high), min_size=math.prod(shape), max_size=math.prod(shape)))
    labels = torch.tensor(numbers, dtype=torch.long).reshape(shape).to(dtype)
    probe = SoftEntropyProbe(tiny, labels=(), n_anchors=20, anchor_sets=1)
    with probe, torch.no_grad(), probe.labelled(own=labels):
        tiny(**batch)
    q, result = reference(tiny, docs, NGRAMS[:1]).q, probe.result()
    wide = (labels if per_position else labels[:, None].expand(batch["input_ids"].shape)).long()
    flat = [n for row, doc in zip(wide.tolist(), docs, strict=True) for n in row[: len(doc)]]
    has = [i for i, label in enumerate(flat) if label != -1]
    for row in probe.layers:
        got = value(result, row, "mutual_information", "own")
        if has:
            expected = references.mutual_information(q[row][has], [flat[i] for i in has])
            assert got == pytest.approx(expected, abs=2e-5)
        else:
            assert math.isnan(got)


@examples(10)
@given(st.lists(TOKENS, min_size=3, max_size=3), LABEL_SETS)
def test_it_does_not_matter_in_which_order_parts_are_merged(tiny, parts, label_sets):
    names = [name for name, _, _ in label_sets]

    def measured(docs):
        return run(SoftEntropyProbe(tiny, labels=names, n_anchors=20, anchor_sets=1), tiny, docs)

    left, right = measured(parts[0]), measured(parts[1])
    left.merge(measured(parts[1]))
    left.merge(measured(parts[2]))
    right.merge(measured(parts[2]))
    whole = measured(parts[0])
    whole.merge(right)
    assert left.positions == whole.positions
    torch.testing.assert_close(left.sums, whole.sums, rtol=1e-6, atol=0)
    if left.positions:
        assert_same_values(left.result().to_pandas("nats"), whole.result().to_pandas("nats"))


@examples(10)
@given(TOKENS, LABEL_SETS, st.integers(1, 40))
def test_planned_runs_equal_attached_ones(tiny, docs, label_sets, tokens_per_batch):
    names = [name for name, _, _ in label_sets]
    attached = run(SoftEntropyProbe(tiny, labels=names, n_anchors=20, anchor_sets=1), tiny, docs)
    assume(attached.positions)
    planned = run_planned(tiny, corpus_of(docs), names, tokens_per_batch)
    assert planned.positions == attached.positions
    torch.testing.assert_close(planned.sums, attached.sums, rtol=1e-5, atol=1e-7)
    assert_same_values(planned.result().to_pandas("nats"), attached.result().to_pandas("nats"))


# -- the estimator ----------------------------------------------------------------------------------------------


@st.composite
def hidden_states(draw, dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64)):
    """Tensors of any number of dimensions, type, scale and strides."""
    shape = [*draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), draw(st.integers(2, 9))]
    dtype = draw(st.sampled_from(list(dtypes)))
    scale = 10.0 ** draw(st.integers(-2, 2) if dtype in (torch.float16, torch.bfloat16) else st.integers(-30, 30))
    z = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(torch.float64)
    z = (z * scale).to(dtype)
    how = draw(st.sampled_from(["plain", "transposed", "sliced", "expanded"]))
    if how == "transposed":
        z = z.transpose(0, -1).contiguous().transpose(0, -1)
    elif how == "sliced":
        z = torch.stack([z, torch.full_like(z, math.nan)], dim=-1)[..., 0]
    elif how == "expanded":
        z = z[:1].expand(3, *z.shape[1:])
    return z


@examples(60)
@given(hidden_states(), st.data(), st.sampled_from(["exact", "leading_order", 0.05]), st.integers(2, 30))
def test_any_hidden_states_and_labels_equal_the_reference(z, data, calibration, n_anchors):
    n = z[..., 0].numel()
    dtype = data.draw(st.sampled_from(LABEL_TYPES))
    numbers = data.draw(st.lists(st.integers(0, 1 if dtype is torch.bool else 100), min_size=n, max_size=n))
    labels = torch.tensor(numbers, dtype=torch.long).to(dtype).reshape(z.shape[:-1])
    dim = z.shape[-1]
    epsilon = calibration if isinstance(calibration, float) else temperature(n_anchors, dim, calibration)
    anchors = sample_anchors(n_anchors, dim, 3).numpy()
    q = references.assignments(z.double().reshape(n, dim).numpy(), anchors, epsilon)
    given_ = {"n_anchors": n_anchors, "seed": 3, "calibration": calibration}
    expected = references.entropy(q.mean(axis=0)) / math.log(n_anchors)
    assert soft_entropy(z, **given_).item() == pytest.approx(expected, abs=2e-5)
    expected = references.mutual_information(q, numbers) / math.log(n_anchors)
    assert soft_mutual_information(z, labels, **given_).item() == pytest.approx(expected, abs=2e-5)


@examples(30)
@given(hidden_states(), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 10**6))
def test_states_that_are_not_finite_give_nan_not_a_number(z, bad, where):
    z = z.contiguous().clone()
    z.view(-1)[where % z.numel()] = bad
    assert math.isnan(soft_entropy(z, n_anchors=10).item())


ANY_TYPE = [
    torch.int64,
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint64,
    torch.float32,
    torch.float16,
    torch.complex64,
]


@pytest.mark.slow
@examples(80)
@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(ANY_TYPE),
    st.sampled_from(ANY_TYPE),
    st.one_of(st.integers(2, 9), ODD),
    st.one_of(st.integers(0, 9), ODD),
    st.one_of(st.just("exact"), ODD),
)
@example([2, 3], [2], torch.float32, torch.uint64, 4, 0, "exact")
def test_any_shapes_and_settings_are_a_number_or_one_line(shape, of_labels, dtype, label_type, n, seed, calibration):
    z, labels = torch.ones(shape, dtype=dtype), torch.ones(of_labels, dtype=label_type)
    assume(not isinstance(n, int) or n < 10**5)  # more are memory, not mistakes
    for call in (soft_entropy, lambda *a: soft_mutual_information(a[0], labels, *a[1:])):
        try:
            assert call(z, n, seed, calibration).shape == ()
        except InputError as error:
            one_line(error)


@pytest.mark.parametrize("z", [None, [[1.0, 2.0]], np.ones((2, 2)), "states"])
def test_what_is_no_tensor_is_refused(z):
    with pytest.raises(InputError, match="z: expected floating point hidden states"):
        soft_entropy(z)
    with pytest.raises(InputError, match="z: expected floating point hidden states"):
        soft_mutual_information(z, torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="labels: expected a tensor of integers"):
        soft_mutual_information(torch.ones(2, 2), z)


# -- configurations and results -----------------------------------------------------------------------------------


def fields(config: type) -> st.SearchStrategy:
    names = [field.name for field in dataclasses.fields(config)]
    whole = {"model": "owner/name", "data": "texts.jsonl", "out": "out"}
    return st.dictionaries(st.sampled_from(names), ODD, max_size=3).map(lambda odd: {**whole, **odd})


@pytest.mark.slow
@pytest.mark.parametrize("config", [RunConfig, SweepConfig])
@examples(300)
@given(st.data())
def test_any_values_are_a_configuration_or_one_line(config, data):
    values = data.draw(fields(config))
    try:
        made = config(**values)
    except InputError as error:
        named = one_line(error).split(":")[0]
        made = None
    if made is None:
        assert named in {field.name for field in dataclasses.fields(config)}
        return
    assert config(**dataclasses.asdict(made)) == made
    if config is RunConfig:
        assert RunConfig(**yaml.safe_load(config_yaml(made))) == made


NAMES = st.text(max_size=12).filter(lambda text: text.isprintable() or len(text) < 4)
LABELS = st.one_of(
    NAMES, st.sampled_from(["\ud800", "nan", "None", "1.0", "</script>", "\u202eabc", "👩‍👩‍👧", "\0", "a\nb"])
)


@st.composite
def results(draw):
    """Any numbers under any names."""
    rows, sets = (
        draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)),
        draw(st.lists(NAMES, max_size=3, unique=True)),
    )
    labels = [(name, draw(LABELS)) for name in sets for _ in range(draw(st.integers(0, 3)))]
    sizes = {
        "R": len(rows),
        "X": len(sets),
        "L": len(labels),
        "S": draw(st.integers(1, 3)),
        "M": draw(st.integers(2, 5)),
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = {name: [sizes[letter] for letter in letters] for name, letters in SHAPES.items()}
    tensors = {name: torch.rand(s, generator=generator, dtype=torch.float64) for name, s in shapes.items()}
    info = draw(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), LABELS), max_size=3))
    return ProbeResult(rows=rows, label_sets=sets, tensors=tensors, labels=labels, info=info)


@examples(40)
@given(results())
def test_results_read_back_as_they_were_saved(tmp_path_factory, result):
    folder = tmp_path_factory.mktemp("result")
    result.save(folder)
    again = ProbeResult.load(folder)
    assert (again.rows, again.label_sets, again.labels) == (result.rows, result.label_sets, result.labels)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in result.tensors.items())
    pd.testing.assert_frame_equal(again.to_pandas("bits"), result.to_pandas("bits"))
    reserved = {"format", "sha256", "files", "rows", "label_sets", "labels"}
    assert again.info == {name: value for name, value in result.info.items() if name not in reserved}


@examples(60)
@given(results(), st.sampled_from([RESULT_JSON, SUMS]), st.integers(0, 10**6), st.integers(1, 255))
def test_a_result_of_which_one_byte_is_another_is_refused_or_the_same(tmp_path_factory, result, name, where, bits):
    folder = tmp_path_factory.mktemp("result")
    result.save(folder)
    before = ProbeResult.load(folder)
    content = bytearray((folder / name).read_bytes())
    content[where % len(content)] ^= bits
    (folder / name).write_bytes(content)
    try:
        after = ProbeResult.load(folder)
    except InputError as error:
        one_line(error)
        return
    assert name == RESULT_JSON  # where white space may be other white space
    assert (after.rows, after.label_sets, after.labels, after.info) == (
        before.rows,
        before.label_sets,
        before.labels,
        before.info,
    )


def test_the_shapes_of_a_result_are_those_of_its_statistics():
    assert {
        *SHAPES,
        *OF_LABELS,
        *OF_DIRECTIONS,
        *OF_SAMPLE,
        *OF_DOCUMENTS,
    } == LayerStatistics.__dataclass_fields__.keys()
