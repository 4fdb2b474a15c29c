"""Check that processes which hold one model see the same hidden states, of which the first of them measures its own.

transformers' plans split what is inside of blocks, and sum it up at their ends. What is split inside (heads, the hidden
layer of an MLP) would be measured in part.
"""

from __future__ import annotations

from typing import Any

from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_rows
from softh_probe.errors import InputError, ProbeError, abbreviated
from softh_probe.hooks.named_modules import find_modules
from softh_probe.probe import SoftEntropyProbe
from softh_probe.run.forward import quiet_inference, run_backbone
from softh_probe.run.processes import Processes, running_together

#: Tokens of the trial, anchors of its soft assignments, and the total variation between these, 0 to 1, that is none.
_N_TOKENS, _N_ANCHORS, _LEAST = 64, 16, 1e-3


def check_whole_states(config: RunConfig, model: Any, corpus: Corpus, processes: Processes) -> None:
    """Run some tokens in all processes of each model and compare their soft assignments; nothing is counted.

    Args:
        config: the run.
        model: the loaded model, or this process's part of it.
        corpus: documents, of which the first one is run.
        processes: those of the run; each has to call this.

    Raises:
        InputError: a row that is asked for differs between the processes of a model.
    """
    if processes.per_model == 1:
        return
    probe = SoftEntropyProbe(
        model,
        labels=(),
        n_anchors=_N_ANCHORS,
        anchor_sets=1,
        layers=config.layers,
        sites=config.sites,
        modules=find_modules(model, config.modules) if config.modules else None,
    )
    try:
        with probe, quiet_inference(), running_together(processes):
            run_backbone(model, *pad_rows([corpus.document(0)[:_N_TOKENS]]))
    except ProbeError as error:
        if "attention_heads" not in config.sites:
            raise
        raise InputError(
            "tensor_parallel: each process of a model holds some of its heads; leave attention_heads out of --sites, "
            "or leave --tensor-parallel out"
        ) from error
    first, *others = processes.gather_in_model((probe.layers, probe.sums / probe.positions))
    apart = {row for rows, _ in others for row in set(rows) ^ set(first[0])}
    for rows, sums_RSM in others:
        if rows == first[0]:
            distance_R = 0.5 * (sums_RSM - first[1]).abs().sum(dim=(1, 2))
            apart |= {row for row, distance in zip(rows, distance_R, strict=True) if not distance <= _LEAST}
    if apart:
        named = abbreviated([row for row in first[0] if row in apart] or sorted(apart))
        raise InputError(
            f"tensor_parallel: the processes of a model hold parts of {named}; measure other layers, sites or modules, "
            "or leave --tensor-parallel out"
        )
