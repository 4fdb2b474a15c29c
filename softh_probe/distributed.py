"""Merge the probes of several processes, each of which measures its share of the documents.

In a script that `torchrun --nproc-per-node 8 evaluate.py` starts:

    with probe:
        evaluate(model, documents[rank::world_size])
    everything = gather(probe)
    if rank == 0:
        everything.result().save("out")

Processes that hold one model between them (tensor parallel) are fed the same documents, which count once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor
from torch import distributed as dist

from softh_probe.errors import InputError, ProbeError
from softh_probe.measurement import Measurement
from softh_probe.models.parallelism import Parallelism, find_parallelism

#: A probe or a meter.
Measured = TypeVar("Measured", bound=Measurement)

#: What to do with processes that were fed the same tokens.
REPEATED = ("refuse", "once", "count")
#: Share of the mass by which the sums of two processes may differ that were fed the same: those of the same tokens, and
#: those of which the tokens are unknown. Sums of other texts differ by more, however many there are.
_SAME_TOKENS, _SAME_SUMS = 1e-3, 1e-6


def gather(
    probe: Measured,
    group: dist.ProcessGroup | None = None,
    *,
    repeated: Literal["refuse", "once", "count"] = "refuse",
) -> Measured:
    """Merge the probes (or meters) of all processes into a new one, which is the same in every process.

    Every process of the group has to call this, even without documents. The states are broadcast one after the other,
    so that each process holds the labels of at most one other process at a time. Without process groups, the new probe
    is a copy of this one.

    Of processes that hold one model between them, one counts. They are found by the model's device meshes: those of
    DTensors, of `fully_shard` and of transformers' `tp_plan`. Other processes are expected to hold a model each, and to
    be fed documents of their own.

    Args:
        probe: the probe of this process; it is not changed and can continue to measure.
        group: the process group; None for all processes.
        repeated: what to do where processes were fed the same tokens, and no mesh says that they hold one model:
            "refuse", count them "once", or "count" each.

    Returns:
        A probe with the sums of all processes.

    Raises:
        ProbeError: a measurement failed in any process, processes were fed the same tokens, or those that hold one
            model were fed different ones; raised in all of them.
        InputError: the probes have different settings, in all processes, or belong to planned runs.
    """
    if repeated not in REPEATED:
        raise InputError(f"repeated: expected one of {', '.join(REPEATED)}, got {repeated!r}")
    world = dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
    shares = [_share(probe)]
    if world > 1:
        shares *= world
        dist.all_gather_object(shares, _share(probe), group=group)
    everything = probe.new_like()
    everything.origin = probe.origin
    for rank in _counting(shares, repeated):
        sent: list[Any] = [None]
        if world == 1 or dist.get_rank(group) == rank:
            sent = [_on_host(probe.state_dict())]
        if world > 1:
            dist.broadcast_object_list(sent, group=group, group_src=rank)
        part = probe.new_like()
        part.load_state_dict(sent[0])
        everything.merge(part)
    return everything


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What a process tells the others of its measurement.

    Attributes:
        rank: its number among all processes, which meshes use.
        problem: its error message, if it has one.
        settings: those of its probe.
        parallelism: the processes that hold one model with it.
        fed: numbers that are equal where the same was fed: positions and tokens.
        sums: [n, S, M], those of the first and the last layer.
        sample: keys of some positions, made of their tokens; None where tokens are not known.
    """

    rank: int
    problem: str | None
    settings: dict[str, Any]
    parallelism: Parallelism
    fed: tuple[int, int]
    sums: Tensor
    sample: Tensor | None

    @property
    def is_empty(self) -> bool:
        return not self.fed[0]

    def is_like(self, other: _Share, *, one_model: bool = False) -> bool:
        """Whether two processes were fed the same; those of one model are expected to."""
        if self.fed != other.fed or self.sums.shape != other.sums.shape:
            return False
        same_tokens = self.sample is not None and other.sample is not None and self.sample.equal(other.sample)
        tolerance = _SAME_TOKENS if same_tokens or one_model else _SAME_SUMS
        return bool((self.sums - other.sums).abs().sum() <= tolerance * self.sums.sum())


def _share(probe: Measurement) -> _Share:
    problem = None
    try:
        probe.check()
    except ProbeError as error:
        problem = str(error)
    state = probe.state_parts()[0]
    sums = probe.sums
    return _Share(
        rank=dist.get_rank() if dist.is_available() and dist.is_initialized() else 0,
        problem=problem,
        settings=state["settings"],
        parallelism=Parallelism() if probe.model is None else find_parallelism(probe.model),
        fed=(state["positions"], state["tokens"]),
        sums=sums[[0, -1]] if len(sums) else sums,
        sample=state["rows"]["sample"] if state["settings"]["labels"] else None,
    )


def _counting(shares: Sequence[_Share], repeated: str) -> list[int]:
    """Choose the processes that count, by their index in the group: one of each model that was fed something.

    Raises:
        ProbeError: a measurement failed, or nobody can tell which processes count.
        InputError: the settings differ.
    """
    _refuse_split(shares)
    problems = [(f"process {s.rank}: " if len(shares) > 1 else "") + s.problem for s in shares if s.problem]
    if problems:
        raise ProbeError("; ".join(problems))
    if len(shares) > 1:
        _refuse_other_settings(shares)
    counting = []
    for held in _models(shares):
        fed = [i for i in held if not shares[i].is_empty] or held[:1]
        others = [i for i in fed if not shares[i].is_like(shares[fed[0]], one_model=True)]
        if others:
            raise ProbeError(
                f"processes {shares[fed[0]].rank} and {shares[others[0]].rank} hold one model between them, but were "
                "fed different tokens; feed all processes of a model the same batches, each inside the probe's block"
            )
        counting.append(fed[0])
    return counting if repeated == "count" else _without_repeats(shares, counting, repeated)


def _refuse_other_settings(shares: Sequence[_Share]) -> None:
    """Refuse different settings in every process: one that found them alone would leave the others waiting."""
    first = shares[0]
    for share in shares[1:]:
        for name, value in first.settings.items():
            other = share.settings.get(name)
            if other != value:
                raise InputError(
                    f"gather: the probe of process {first.rank} has {name}={value!r}, that of process {share.rank} "
                    f"{name}={other!r}; give all processes the same"
                )


def _refuse_split(shares: Sequence[_Share]) -> None:
    for share in shares:
        if refusal := share.parallelism.refusal:
            raise ProbeError(refusal)


def _models(shares: Sequence[_Share]) -> list[list[int]]:
    """Group the processes that hold one model between them, by their index."""
    model_of = list(range(len(shares)))
    index = {share.rank: i for i, share in enumerate(shares)}
    for i, share in enumerate(shares):
        for other in share.parallelism.one_model:
            if other in index and model_of[index[other]] != model_of[i]:
                old, new = sorted((model_of[index[other]], model_of[i]), reverse=True)
                model_of = [new if number == old else number for number in model_of]
    models: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(model_of):
        models[number].append(i)
    return list(models.values())


def _without_repeats(shares: Sequence[_Share], counting: Sequence[int], repeated: str) -> list[int]:
    """Find the processes that were fed something that no earlier one was; refuse others if asked to."""
    kept: list[int] = []
    for i in counting:
        same = [shares[k].rank for k in kept if not shares[i].is_empty and shares[i].is_like(shares[k])]
        if same and repeated == "refuse":
            raise ProbeError(
                f"processes {same[0]} and {shares[i].rank} were fed the same tokens, and nothing tells whether they "
                "hold one model between them: if so, use gather(probe, repeated='once'); if each holds a model of its "
                "own, feed each its share of the documents, or use repeated='count'"
            )
        if not same:
            kept.append(i)
    return kept


def _on_host(state: Any) -> Any:
    """Copy all tensors of a nested state to host memory."""
    if isinstance(state, Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {name: _on_host(value) for name, value in state.items()}
    return [_on_host(value) for value in state] if isinstance(state, list) else state
