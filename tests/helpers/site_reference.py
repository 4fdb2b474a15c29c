"""A reference for the sites of blocks that knows no names: it looks at what a change of one token does, and at sums.

- The attention's output is what the first projection of a block gives that sees other tokens than its own: where a
  token is changed at the block's input, what this projection takes changes at other positions.
- The output of an MLP is what the block adds to the residual stream, up to a factor and a norm, apart from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHANGED, SEQUENCE = 4, 2  # the token that is changed: one inside the sequence without padding


@dataclass
class Call:
    """A call of a module inside a block."""

    module: nn.Module
    taken: list[Tensor]
    given: list[Tensor]
    number: int  # of calls that began before it


@dataclass
class BlockCall:
    """A call of a block, with the calls inside it in the order in which they ended."""

    block: nn.Module
    taken: Tensor
    given: Tensor
    inside: list[Call]


def tensors(value: object) -> list[Tensor]:
    """All tensors of floats in a value, copied."""
    if torch.is_tensor(value):
        return [value.detach().clone()] if value.is_floating_point() else []
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    return [] if isinstance(value, str) else [found for item in values for found in tensors(item)]


@contextmanager
def block_calls(blocks: Sequence[nn.Module]) -> Iterator[list[BlockCall]]:
    """The calls of blocks, as the model runs."""
    found: list[BlockCall] = []
    under_way: list[BlockCall] = []
    began = 0

    def enter(module, args, kwargs):
        under_way.append(BlockCall(module, tensors([*args, *kwargs.values()])[0], torch.empty(0), []))

    def leave(module, args, kwargs, output):
        call = under_way.pop()
        call.given = tensors(output)[0]
        found.append(call)

    def begin(module, args, kwargs):
        nonlocal began
        began += 1
        module.began = [*getattr(module, "began", []), began]

    def inside(module, args, kwargs, output):
        number = module.began.pop()
        if under_way:
            call = Call(module, tensors([*args, *kwargs.values()]), tensors(output), number)
            under_way[-1].inside.append(call)

    handles = []
    for block in dict.fromkeys(blocks):
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, with_kwargs=True))
        parts = {id(part): part for part in block.modules() if part is not block}
        for part in parts.values():
            if not getattr(part, "is_watched", False):
                part.is_watched = True
                handles.append(part.register_forward_pre_hook(begin, with_kwargs=True))
                handles.append(part.register_forward_hook(inside, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            for part in block.modules():
                part.__dict__.pop("is_watched", None)
                part.__dict__.pop("began", None)


def mixing_calls(blocks: Sequence[nn.Module], run: Callable[[], object], shape: tuple[int, int]) -> list[list[Call]]:
    """For each block call, the calls of projections that see other tokens than their own, in their order.

    Args:
        blocks: the blocks.
        run: runs the model.
        shape: sequences and tokens of the batch.
    """
    with block_calls(blocks) as plain:
        run()
    found = []
    for number, call in enumerate(plain):
        with changed_input(blocks, number, shape), block_calls(blocks) as changed:
            run()
        found.append(_mixing(call, changed[number], shape))
    return found


@contextmanager
def changed_input(blocks: Sequence[nn.Module], number: int, shape: tuple[int, int]) -> Iterator[None]:
    """Change one token of all hidden states that the block call of that number takes."""
    count = 0

    def changed(value):
        if not torch.is_tensor(value) or not value.is_floating_point() or value.ndim < 3:
            return value
        value = value.clone()
        direction = torch.linspace(-1, 1, value.shape[-1])
        if value.shape[:2] == shape:
            value[SEQUENCE, CHANGED] += direction
        elif value.shape[1:3] == shape and value.ndim == 4:  # several streams
            value[:, SEQUENCE, CHANGED] += direction
        return value

    def change(module, args, kwargs):
        nonlocal count
        count += 1
        if count != number + 1:
            return None
        return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}

    handles = [
        block.register_forward_pre_hook(change, with_kwargs=True, prepend=True) for block in dict.fromkeys(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mixing(plain: BlockCall, changed: BlockCall, shape: tuple[int, int]) -> list[Call]:
    found = []
    for one, other in sorted(zip(plain.inside, changed.inside, strict=True), key=lambda pair: pair[0].number):
        n_positions = shape[0] * shape[1]
        if not is_projection(one.module) or any(not c.taken or c.taken[0].numel() % n_positions for c in (one, other)):
            continue
        before, after = (call.taken[0].reshape(*shape, -1) for call in (one, other))
        moved = (before - after).abs().amax(-1)[SEQUENCE]
        moved[CHANGED] = 0
        if moved.max() > 1e-6:
            found.append(one)
    return found


def is_projection(module: nn.Module) -> bool:
    """Whether a module has a matrix of weights, and no parts."""
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not list(module.children())


def is_added(call: BlockCall, output: Tensor, *, beside: Tensor | None = None) -> bool:
    """Whether a block call adds an output to its residual stream, perhaps times factors, or after a norm.

    Args:
        call: the call of the block.
        output: [B, T, D].
        beside: another output that may be added at the same time, that of the attention.
    """
    states = [call.taken, call.given] + [state for part in call.inside for state in (*part.taken, *part.given)]
    states = [state for state in states if state.shape == output.shape]
    normed = [
        part.given[0]
        for part in call.inside
        if part.taken and part.given and part.given[0].shape == output.shape and torch.equal(part.taken[0], output)
    ]
    starts = states + [state + beside for state in states[:1] if beside is not None and beside.shape == state.shape]
    for added in (output, *normed):
        if any(_is_multiple(after - before, added) for after in states for before in starts):
            return True
        if any(_is_scaled_sum(after, before, added) for after in states for before in starts):
            return True
    return any(_mixes_streams(call, added) for added in (output, *normed))


def _is_multiple(difference: Tensor, added: Tensor) -> bool:
    difference, added = difference.double().flatten(), added.double().flatten()
    if not (torch.isfinite(difference).all() and added.norm() > 0):
        return False
    factor = difference @ added / (added @ added)
    return bool(factor.abs() > 1e-3 and (difference - factor * added).norm() < 1e-4 * difference.norm())


def _is_scaled_sum(after: Tensor, before: Tensor, added: Tensor) -> bool:
    """Whether in every feature, over positions, after = a · before + b · added + c; both are needed for it."""
    after, before, added = (state.double().flatten(0, 1).T for state in (after, before, added))
    terms = torch.stack([before, added, torch.ones_like(before)], dim=-1)
    return all(
        _is_sum(after, terms[..., [*kept]]) == needed
        for kept, needed in ((range(3), True), ((0, 2), False), ((1, 2), False))
    )


def _mixes_streams(call: BlockCall, added: Tensor) -> bool:
    """Whether every token of a stream that the block gives is a sum of the streams that it takes and of the output."""
    width = added.shape[-1]
    states = [call.given, call.taken, *(state for part in call.inside for state in (*part.taken, *part.given))]
    given, *starts = (_streams(state, width) for state in states)
    if given is None:
        return False
    output = added.double().unsqueeze(2)
    return any(
        _is_sum(given[:, :, 0].flatten(0, 1), torch.cat([start, output], 2).flatten(0, 1).mT)
        for start in starts
        if start is not None and start.shape == given.shape
    )


def _streams(state: Tensor, width: int) -> Tensor | None:
    """Several streams as [B, T, S, D]; None where this is one."""
    if state.ndim == 3 and state.shape[-1] > width and state.shape[-1] % width == 0:
        state = state.unflatten(-1, (-1, width))
    return state.double() if state.ndim == 4 and state.shape[-1] == width else None


def _is_sum(values: Tensor, terms: Tensor) -> bool:
    """Whether in each row, values [R, N] are sums of terms [R, N, K]."""
    if not (torch.isfinite(values).all() and torch.isfinite(terms).all()):
        return False
    factors = torch.linalg.lstsq(terms, values.unsqueeze(-1), driver="gelsd").solution
    rest = (terms @ factors).squeeze(-1) - values
    return bool(rest.norm() < 1e-5 * values.norm())
