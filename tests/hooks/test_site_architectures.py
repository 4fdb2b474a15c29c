"""Attention, MLP and router of every architecture in transformers' own lists: right, or refused by name.

The reference shares no code with the package and knows no names (`tests.helpers.site_reference`).
"""

import numpy as np
import pytest
import torch

from softh_probe import SoftEntropyProbe
from softh_probe.errors import SofthProbeError
from softh_probe.hooks.hook_points import find_hook_points
from tests.helpers import architectures
from tests.helpers.site_reference import block_calls, is_added, mixing_calls
from tests.hooks.test_architectures import LISTED, N_ANCHORS, parameters, soft_counts, stacks

SITES = ("attention", "mlp", "router")
VERDICTS: dict[str, dict[str, str]] = {}
#: Projections of a block that see other tokens before that of its attention: the number of these.
EARLIER_MIXERS = {
    "falcon_h1": 1,  # that of a state-space model beside it
    "rwkv": 3,  # keys, values and gates, of tokens that are mixed with the ones before
    "convbert": 1,  # the kernel of a convolution
}
#: Without a GPU, its attention gives zeros.
WITHOUT_KERNELS = {"mra"}


@pytest.mark.parametrize(("kind", "model_type", "class_name"), parameters(LISTED, "{0}-{1}"))
def test_sites_are_right_or_refused(kind, model_type, class_name, record_property):
    name = f"{kind} {model_type}"
    try:
        model = architectures.build(kind, model_type, class_name)
        batch = architectures.padded_batch(model)
        with torch.no_grad():
            model(**batch)
    except Exception as error:
        VERDICTS[name] = dict.fromkeys(SITES, "not built")
        pytest.skip(" ".join(f"{type(error).__name__}: {error}".split())[:160])
    for site in SITES:
        verdicts = [
            check_site(model, batch, stack, mask_name, site, model_type) for stack, mask_name, _ in stacks(model)
        ]
        refused = [verdict for verdict in verdicts if verdict.startswith("refused")]
        VERDICTS.setdefault(name, dict.fromkeys(SITES, "wrong"))[site] = "refused" if refused else "right"
        record_property(f"site {site}", f"{name}: {(refused or verdicts)[0]}")


def check_site(model, batch, stack, mask_name, site, model_type) -> str:
    """The verdict on one site of a stack; fails where its sums are not those of its rows."""
    try:
        points = find_hook_points(stack, sites=(site,))
        probe = SoftEntropyProbe(stack, labels=(), n_anchors=N_ANCHORS, sites=site, anchor_sets=1)
        with probe, torch.no_grad(), block_calls(points.blocks) as calls:
            model(**batch)
    except SofthProbeError as error:
        return f"refused: {error}"
    real = batch[mask_name]
    mixing = [[]] * len(calls)
    if site != "router":
        mixing = mixing_calls(points.blocks, lambda: run(model, batch), tuple(real.shape))
    expected = {}
    for number, (call, mixers) in enumerate(zip(calls, mixing, strict=True)):
        for found in points.sites_of(number):
            (own,) = [part for part in call.inside if part.module is found.module]
            given = logits(own) if site == "router" else own.given[0]
            state = given.reshape(*real.shape, -1)
            n_earlier = EARLIER_MIXERS.get(model_type, 0)
            attention = mixers[n_earlier].given[0].reshape(*real.shape, -1) if mixers else None
            if site == "attention" and model_type not in WITHOUT_KERNELS:
                state = attention
            elif site == "mlp":
                assert is_added(call, state, beside=attention), f"block call {number}: not added to the residual stream"
                assert attention is None or not torch.equal(state, attention)
            expected[f"layer.{number + 1}.{site}"] = state
    assert probe.layers == list(expected)
    assert probe.positions == real.sum()
    for row, ours, state in zip(probe.layers, probe.sums[:, 0].numpy(), expected.values(), strict=True):
        theirs = soft_counts(state, real.bool().numpy())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=row)
    return "right"


def logits(call):
    """What the one matrix of a router makes of what it takes."""
    (weight,) = [parameter for parameter in call.module.parameters(recurse=False) if parameter.ndim == 2]
    return torch.nn.functional.linear(
        call.taken[0].to(weight.dtype), weight, getattr(call.module, "bias", None)
    ).detach()


def run(model, batch):
    with torch.no_grad():
        model(**batch)


@pytest.mark.slow
def test_nearly_all_sites_are_right():
    if len(VERDICTS) < len(LISTED):
        pytest.skip("not all architectures were tried")
    for site in ("attention", "mlp"):
        found = [verdicts[site] for verdicts in VERDICTS.values()]
        assert {*found} <= {"right", "refused", "not built"}
        assert found.count("refused") <= 0.12 * len(found)
