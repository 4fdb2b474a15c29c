"""What a forward pass shows to be wrong: layers that were not called, modules that are no blocks, another layout."""

from __future__ import annotations

from typing import Any

from softh_probe.hooks.chain import is_time_first
from softh_probe.hooks.forward_pass import ForwardPass
from softh_probe.hooks.hook_points import HookPoints

DATA_PARALLEL = (
    "DataParallel runs copies of the model, which cannot be measured; use DistributedDataParallel in processes "
    "of their own (torchrun, accelerate launch), or give it one GPU"
)


class PassChecks:
    """Check forward passes as they end.

    Args:
        points: the hooked modules.
        finds_layout: whether the layout of layers is found in another way.
    """

    def __init__(self, points: HookPoints, *, finds_layout: bool) -> None:
        self._points = points
        self._layout_known = finds_layout

    def problems(self, current: ForwardPass, n_blocks: int, output: Any) -> list[str]:
        """Describe layers that were not called, or modules that turn out not to be blocks.

        Args:
            current: the forward pass.
            n_blocks: block calls of a forward pass.
            output: of the model; None where it failed.
        """
        missing = [name for name in self._points.block_layers(n_blocks) if name not in current.layers]
        if missing and output is None:
            last = list(current.layers)[-1:]
            failed = f"a forward pass failed after {''.join(last)}: later layers lack its positions"
            return [f"{failed}; leave it out with probe.paused()"] if last else []
        if missing:
            names = ", ".join(missing[:3]) + " …" * (len(missing) > 3)
            return [
                f"{names}: never called in a forward pass (a compiled model skips hooks; some models skip blocks that "
                "would read images, or run their blocks without calling them as modules)"
            ]
        return self._of_blocks(current, output) if self._points.blocks and output is not None else []

    def _of_blocks(self, current: ForwardPass, output: Any) -> list[str]:
        path, chain = self._points.path, current.chain
        found = []
        if not chain.holds:
            found.append(
                f"{path}: these are not blocks whose outputs are the next one's inputs ({chain.broken} of "
                f"{chain.links} are not); name the modules to probe with modules={{name: module}}"
            )
        n_sequences, n_tokens, *_ = (*current.shapes[0], 1)
        if not self._layout_known and n_sequences == n_tokens > 1 and is_time_first(current.last, output):
            found.append(f"{path}: expected hidden states [B, T, D], got [T, B, D]")
        self._layout_known |= n_sequences != n_tokens
        return found
