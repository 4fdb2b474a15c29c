"""The probe's own error: against float64 on the very hidden states it saw, in every dtype, over long runs."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from tests.helpers import references
from tests.helpers.models import tiny_llama

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Replay(nn.Module):
    """Hands out stored hidden states, as a model that reads tokens would."""

    def __init__(self) -> None:
        super().__init__()
        self.states = nn.Identity()

    def forward(self, input_ids, hidden_states):
        return self.states(hidden_states)


def replayed(n_positions: int, dim: int, dtype: torch.dtype, n_tokens: int = 1024, n_sequences: int = 32):
    """Batches of token ids and of states that depend on them, anisotropic as those of language models are."""
    generator = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(300, dim, generator=generator)
    offset = 2 * torch.randn(dim, generator=generator)
    for _ in range(-(-n_positions // (n_tokens * n_sequences))):
        uniform = torch.rand(n_sequences, n_tokens, generator=generator)
        ids = (300 * uniform**4).long()  # a few labels are frequent, many are rare
        noise = torch.randn(n_sequences, n_tokens, dim, generator=generator)
        yield ids, (means[ids] + noise + offset).to(dtype)


def rows_of(model, batch):
    """A probe's sums, and the states that its hooks saw, by hooks of the test's own."""
    probe = SoftEntropyProbe(model, labels=(), n_anchors=20, anchor_sets=1)
    seen: list[torch.Tensor] = []
    backbone = model.model
    handles = [
        backbone.layers[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone())),
        *(
            module.register_forward_hook(lambda _m, _a, out: seen.append(out.detach().clone()))
            for module in [*backbone.layers, backbone.norm]
        ),
    ]
    with probe, torch.no_grad():
        backbone(**batch)
    for handle in handles:
        handle.remove()
    return probe, seen


def check_rows(probe, seen, dtypes):
    assert {state.dtype for state in seen} == set(dtypes)
    anchors, epsilon = sample_anchors(20, 24).numpy(), temperature(20, 24)
    for name, sums, state in zip(probe.layers, probe.sums, seen, strict=True):
        q = references.assignments(state.double().reshape(-1, 24).numpy(), anchors, epsilon)
        np.testing.assert_allclose(sums[0], q.sum(0), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_summed_as_in_float64(dtype):
    ids = torch.randint(1, 40, (4, 30), generator=torch.Generator().manual_seed(0))
    check_rows(*rows_of(tiny_llama().to(dtype), {"input_ids": ids}), [dtype])


def test_layers_of_different_dtypes_in_one_model():
    model = tiny_llama().to(torch.bfloat16)
    model.model.norm.float()
    ids = torch.randint(1, 40, (4, 30), generator=torch.Generator().manual_seed(0))
    check_rows(*rows_of(model, {"input_ids": ids}), [torch.bfloat16, torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_positions_are_within_1e_4_of_float64(dtype):
    model, dim, n_anchors = Replay().eval(), 12, 16
    probe = SoftEntropyProbe(
        model,
        labels=["input_unigram", "output_unigram"],
        n_anchors=n_anchors,
        modules={"states": model.states},
        anchor_sets=1,
    )
    anchors, epsilon = sample_anchors(n_anchors, dim).numpy(), temperature(n_anchors, dim)
    total, own_entropy, counted = np.zeros(n_anchors), 0.0, 0
    by_label = {"input_unigram": np.zeros((300, n_anchors)), "output_unigram": np.zeros((300, n_anchors))}
    with probe:
        for ids, states in replayed(1_000_000, dim, dtype):
            model(input_ids=ids, hidden_states=states)
            q = references.assignments(states[:, :-1].reshape(-1, dim).double().numpy(), anchors, epsilon)
            total += q.sum(0)
            own_entropy -= (q * np.log(q)).sum()
            counted += len(q)
            for name, labels in (("input_unigram", ids[:, :-1]), ("output_unigram", ids[:, 1:])):
                order = np.argsort(labels.reshape(-1).numpy(), kind="stable")
                sorted_labels = labels.reshape(-1).numpy()[order]
                starts = np.flatnonzero(np.diff(sorted_labels, prepend=-1))
                by_label[name][sorted_labels[starts]] += np.add.reduceat(q[order], starts)
    assert probe.positions == counted >= 1_000_000
    table = probe.result().to_pandas(unit="nats")
    h = references.entropy(total)

    def ours(metric: str, label_set: str = "") -> float:
        return table[(table.metric == metric) & (table.label_set == label_set)].value.item()

    assert ours("entropy") == pytest.approx(h, abs=1e-4)
    for name, rows in by_label.items():
        conditional = sum(row.sum() * references.entropy(row) for row in rows if row.sum()) / counted
        assert ours("mutual_information", name) == pytest.approx(h - conditional, abs=1e-4)
        assert ours("mutual_information_max", name) == pytest.approx(h - own_entropy / counted, abs=1e-4)
    assert ours("mutual_information", "input_unigram") > 0.05  # there is something to get wrong


@pytest.mark.slow
@pytest.mark.parametrize(("n_sequences", "n_tokens"), [(128, 1024), (1, 131_072)])
def test_five_million_positions_lose_no_mass(n_sequences, n_tokens):
    model = Replay().eval()
    probe = SoftEntropyProbe(model, labels=(), n_anchors=8, anchor_sets=2, modules={"states": model.states})
    with probe:
        for ids, states in replayed(5_000_000, 4, torch.bfloat16, n_tokens, n_sequences):
            model(input_ids=ids, hidden_states=states)
    assert probe.positions >= 5_000_000
    np.testing.assert_allclose(probe.sums.sum(-1), probe.positions, rtol=1e-6)


def test_labels_that_are_kept_lose_no_mass_in_long_batches():
    """All 131,072 positions of a batch have one of two labels: float32 sums of so many would be off by 1e-4."""
    model = Replay().eval()
    probe = SoftEntropyProbe(model, labels=(), n_anchors=8, modules={"states": model.states}, anchor_sets=1)
    anchors, epsilon = sample_anchors(8, 4).double().numpy(), temperature(8, 4)
    expected = torch.zeros(2, 8, dtype=torch.float64)
    own = torch.zeros(1, 131_072, dtype=torch.int64)
    own[:, 1000:] = 1
    with probe:
        for ids, states in replayed(500_000, 4, torch.float32, 131_072, 1):
            with probe.labelled(kind=own):
                model(input_ids=ids, hidden_states=states)
            q = references.assignments(states[0].double().numpy(), anchors, epsilon)
            expected.index_add_(0, own[0], torch.from_numpy(q))
    kept = next(iter(probe._sums.values())).tables.kept
    torch.testing.assert_close(kept[:, :8], expected, rtol=2e-6, atol=0)


@pytest.mark.slow
@pytest.mark.checkpoint
def test_bfloat16_is_within_2e_3_of_float32_on_a_real_model(smollm2_gguf):
    where = {"pretrained_model_name_or_path": smollm2_gguf.parent, "gguf_file": smollm2_gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tables = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModel.from_pretrained(**where, dtype=dtype).eval()
        probe = SoftEntropyProbe(model, labels=["input_unigram", "output_unigram"], anchor_sets=1)
        with probe, torch.no_grad():
            for text in list(topics.values())[:20]:
                model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=128))
        table = probe.result().to_pandas()
        tables.append(table[table.metric.isin(["entropy", "mutual_information"])].value.to_numpy())
    assert np.abs(tables[0] - tables[1]).max() < 2e-3
