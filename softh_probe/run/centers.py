"""The means that a run subtracts for its rows of centered states: taken beforehand, the same in all processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from softh_probe.config import RunConfig
from softh_probe.data.corpus import Corpus, pad_batch
from softh_probe.hooks.named_modules import find_modules
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult
from softh_probe.run.forward import quiet_inference, run_backbone
from softh_probe.run.processes import Processes, running_together


class Centers(NamedTuple):
    """Means by name of the layer [D], and the positions that they are of; there are none where none is subtracted."""

    means: dict[str, torch.Tensor]
    n_positions: int

    def record(self, result: ProbeResult) -> None:
        """Record in a result how many positions the means are of."""
        if self.means:
            result.info["center"]["positions"] = self.n_positions


def find_centers(config: RunConfig, model: Any, corpus: Corpus, processes: Processes) -> Centers:
    """Take the means of one batch of documents, at even distances in the corpus, by the first process's model.

    Args:
        config: the run, with `tokens_per_batch`.
        model: the loaded model, without head.
        corpus: the documents.
        processes: those that measure the run together; all have to call this.
    """
    if not config.center:
        return Centers({}, 0)
    found = None
    if processes.share == 0:  # those that hold the model with the first process run it, too
        with running_together(processes):
            found = _means_of_sample(config, model, corpus)
    shared: Centers = processes.from_first(found)
    return shared


def sampled_documents(lengths: np.ndarray, most_tokens: int) -> np.ndarray:
    """Choose documents at even distances, as many as a padded batch takes, and one at least.

    >>> sampled_documents(np.array([4, 4, 4, 4, 4, 4]), most_tokens=12)
    array([0, 2, 5])
    """
    n = max(1, min(len(lengths), most_tokens // max(1, int(lengths.max()))))
    return np.linspace(0, len(lengths) - 1, n).astype(int)


def _means_of_sample(config: RunConfig, model: Any, corpus: Corpus) -> Centers:
    assert config.tokens_per_batch is not None
    probe = SoftEntropyProbe(
        model,
        labels=(),
        n_anchors=2,
        anchor_sets=1,
        modules=find_modules(model, config.modules) if config.modules else None,
        center=True,
    )
    with probe, quiet_inference():
        run_backbone(model, *pad_batch(corpus, sampled_documents(corpus.lengths, config.tokens_per_batch)))
    return Centers(probe.centers, probe.positions)
