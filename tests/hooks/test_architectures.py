"""Every architecture in transformers' own lists: the layers are right, or the probe says why it refuses.

The reference shares no code with the package and knows nothing of lists of modules. It watches the calls of all
modules and takes for blocks those that turn one of the library's `output_hidden_states` into the next; what the
library's list does not hold (the last block's raw output, lists that are shifted) comes from the calls of modules at
the same place of the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe, sample_anchors, temperature
from softh_probe.errors import SofthProbeError
from tests.helpers import architectures, references

N_ANCHORS, TOLERANCE = 20, 1e-5
LISTED = architectures.listed()
FAST = {"bart", "bert", "gpt2", "llama", "mamba", "mixtral", "qwen3", "t5"}
VERDICTS: dict[str, str] = {}


def parameters(listed, name):
    """Return a parameter set for each architecture; those outside of `FAST` are slow."""
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(*entry, id=name.format(*entry), marks=marks[entry[1] in FAST]) for entry in listed]


@pytest.mark.parametrize(("kind", "model_type", "class_name"), parameters(LISTED, "{0}-{1}"))
def test_layers_are_right_or_refused(kind, model_type, class_name, record_property):
    name = f"{kind} {model_type}"

    def tell(verdict: str) -> None:
        VERDICTS[name] = verdict.split(":")[0]
        record_property("architecture", f"{name}: {verdict}")

    try:
        model = architectures.build(kind, model_type, class_name)
        batch = architectures.padded_batch(model)
        with torch.no_grad():
            model(**batch)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        tell(f"not built: {reason}")
        pytest.skip(reason)
    verdicts = [check_stack(model, batch, *stack) for stack in stacks(model)]
    refused = [verdict for verdict in verdicts if verdict.startswith("refused")]
    tell(refused[0] if refused else "right: " + ", ".join(dict.fromkeys(verdicts)))


#: Their positions in generate, with a cache, are other ones than without it.
OTHER_POSITIONS = {
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
#: Their caches are none of transformers' own, so what was fed before is unknown, and its labels are absent.
OTHER_CACHES = {"reformer"}
GENERATING = [(kind, model_type, name) for kind, model_type, name in LISTED if kind == "causal"]


@pytest.mark.parametrize(("kind", "model_type", "class_name"), parameters(GENERATING, "{1}"))
def test_generating_counts_each_fed_token_with_its_labels(kind, model_type, class_name):
    n_prompt, n_new = 9, 4
    ids = torch.randint(5, 60, (2, n_prompt), generator=torch.Generator().manual_seed(1))
    how = {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False, "use_cache": True}
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **how}
    try:
        model = architectures.build(kind, model_type, class_name)
        expected = model.generate(**arguments)
    except Exception as error:
        pytest.skip(f"{type(error).__name__}: {error}"[:160])
    labels = ["input_bigram", "output_unigram"]
    try:
        alone, probe = (SoftEntropyProbe(model, labels=labels, anchor_sets=1) for _ in range(2))
        with probe:
            output = model.generate(**arguments)
    except SofthProbeError as error:
        pytest.skip(f"refused: {error}"[:160])
    assert torch.equal(output, expected)
    with alone, torch.no_grad():
        for row in output:
            model(input_ids=row[None, :-1], use_cache=False)
    again = sum(2 * (n_prompt + k - 2) for k in range(n_new))  # without a cache, all is fed again
    if model_type in OTHER_CACHES:
        assert probe.positions == 2 * (n_prompt - 2)
    elif probe.positions != again:
        assert probe.positions == alone.positions == 2 * (n_prompt + n_new - 3)
        if model_type not in OTHER_POSITIONS:
            torch.testing.assert_close(probe.sums, alone.sums, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_nearly_all_are_right():
    if len(VERDICTS) < len(LISTED):
        pytest.skip("not all architectures were tried")
    counts = {word: sum(v == word for v in VERDICTS.values()) for word in ("right", "refused", "not built")}
    assert sum(counts.values()) == len(LISTED)
    assert counts["not built"] <= 0.05 * len(LISTED)
    assert counts["refused"] <= 0.1 * len(LISTED)


def stacks(model):
    """Find the module to attach to, and the names of its mask and of its hidden states."""
    if not model.config.is_encoder_decoder:
        return [(model, "attention_mask", "hidden_states")]
    with pytest.raises(SofthProbeError, match=r"model\.get_encoder\(\) or to model\.get_decoder\(\)"):
        SoftEntropyProbe(model, anchor_sets=1)
    return [
        (model.get_encoder(), "attention_mask", "encoder_hidden_states"),
        (model.get_decoder(), "decoder_attention_mask", "decoder_hidden_states"),
    ]


def check_stack(model, batch, stack, mask_name, states_name) -> str:
    """The verdict on one stack; fails where the sums are not those of its layers."""
    try:
        probe = SoftEntropyProbe(stack, labels=(), n_anchors=N_ANCHORS, anchor_sets=1)
        with probe, torch.no_grad(), every_call(stack) as calls:
            output = model(**batch, output_hidden_states=True)
    except SofthProbeError as error:
        return f"refused: {error}"
    real = batch[mask_name].bool().numpy()
    assert probe.positions == real.sum()
    listed = getattr(output, states_name)
    expected = rows_by_definition(calls, listed)
    assert probe.layers == list(expected)
    counts = np.stack([soft_counts(hidden, real) for hidden in expected.values()])
    # A norm without weights (nanochat) keeps the direction, so the last row is left out of this.
    blocks = counts[: len(listed)]
    assert np.abs(np.diff(blocks, axis=0)).max(axis=1).min() > 100 * TOLERANCE, "layers too alike for a test"
    for row, ours, theirs in zip(probe.layers, probe.sums[:, 0].numpy(), counts, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=row)
    by_library = [*list(expected.values())[: len(listed) - 1], list(expected.values())[-1]]
    same = len(by_library) == len(listed) and all(map(torch.equal, by_library, listed))
    return "as output_hidden_states" if same else "by definition"


def soft_counts(hidden: torch.Tensor, real: np.ndarray) -> np.ndarray:
    z = hidden.double().numpy()[real]
    dim = z.shape[-1]
    return references.assignments(z, sample_anchors(N_ANCHORS, dim).numpy(), temperature(N_ANCHORS, dim)).sum(0)


# --- the reference ------------------------------------------------------------------------------------------


@dataclass
class Call:
    place: str  # the module's name with its numbers taken out
    module: torch.nn.Module
    taken: torch.Tensor | None
    given: torch.Tensor | None


@contextmanager
def every_call(stack: torch.nn.Module):
    """The calls of all modules of a stack, in the order in which they end."""
    names = {id(module): name for name, module in stack.named_modules()}
    calls: list[Call] = []

    def hook(module, args, kwargs, output):
        place = re.sub(r"\d+", "#", names[id(module)])
        calls.append(Call(place, module, first_tensor([*args, *kwargs.values()]), first_tensor(output)))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in stack.modules()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(value) -> torch.Tensor | None:
    if torch.is_tensor(value):
        return value.clone() if value.is_floating_point() else None
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return next((item.clone() for item in values if torch.is_tensor(item) and item.is_floating_point()), None)


def rows_by_definition(calls: list[Call], listed: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Input of the first block, raw output of every block call, output of the final norm."""
    place = block_place(calls, listed)
    blocks = [call for call in calls if call.place == place]
    rows = {"embeddings": blocks[0].taken}
    rows |= {f"layer.{i}": call.given for i, call in enumerate(blocks, start=1)}
    last = blocks[-1].given
    for call in calls[max(i for i, call in enumerate(calls) if call.place == place) + 1 :]:
        is_norm = "norm" in type(call.module).__name__.lower()
        outside = place.startswith(call.place.rpartition(".")[0])  # not part of something else that follows the blocks
        # Reformer's norm takes its two streams side by side.
        takes_last = call.taken is not None and same(call.taken[..., -last.shape[-1] :], last)
        if is_norm and outside and (takes_last or same(call.given, listed[-1])):
            return {**rows, "final_norm": call.given}
    return rows


def block_place(calls: list[Call], listed: Sequence[torch.Tensor]) -> str:
    """Find the modules that turn one of the library's hidden states into the next."""
    count: dict[str, int] = {}
    for call in calls:
        steps = sum(same(call.taken, a) and same(call.given, b) for a, b in pairwise(listed))
        count[call.place] = count.get(call.place, 0) + steps
    best = max(count.values())
    assert best >= min(len(listed) - 2, 1), "no module turns one hidden state of the library's into the next"
    return min((place for place, n in count.items() if n == best), key=len)


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)
