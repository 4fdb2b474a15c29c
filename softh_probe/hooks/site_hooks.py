"""Hooks on the sites of blocks: they hand what a site's module takes or gives to the recorder.

Where hooks of others change what the modules around a site's module give (a steering vector added to the attention, not
to its projection), the site's states are those that leave these modules, as far as the model itself hands the tensor on
unchanged through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from softh_probe.errors import ProbeError
from softh_probe.hooks.edges import HookEdges
from softh_probe.hooks.hook_points import HookPoints, hidden_state
from softh_probe.hooks.recorder import Recorder
from softh_probe.hooks.sites import Site


def site_edges(points: HookPoints, recorder: Recorder, unseen: Callable[[nn.Module], None]) -> list[HookEdges]:
    """Make the hooks of all sites; those of a module that several blocks share are made once.

    Args:
        points: the hook points.
        recorder: is given the states.
        unseen: called with a module whose input or output another hook may change after it was measured.
    """
    sites = {(id(site.module), site.name): site for sites in points.block_sites for site in sites}
    return [edges for site in sites.values() for edges in _edges(site, recorder, unseen)]


def _edges(site: Site, recorder: Recorder, unseen: Callable[[nn.Module], None]) -> list[HookEdges]:
    if site.n_heads:
        return [HookEdges(site.module, enter=partial(_take, site, recorder), leave=_ignore, unseen=unseen)]
    follower = _Follower(site, recorder)
    inner = HookEdges(site.module, leave=follower.leave, unseen=unseen)
    follower.around = [
        HookEdges(
            module,
            give=follower.hand_on,
            leave=partial(follower.leave_outer, is_last=module is site.around[-1]),
            unseen=unseen,
        )
        for module in site.around
    ]
    return [inner, *follower.around]


def _take(site: Site, recorder: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    recorder.site(site, args or kwargs)


def _ignore(output: Any) -> None:
    pass


class _Follower:
    """Follow the states that a site's module gives through the modules around it, where hooks of others are there.

    Args:
        site: the site.
        recorder: is given the states.

    Attributes:
        around: the hooks of the modules around, the innermost first.
    """

    def __init__(self, site: Site, recorder: Recorder) -> None:
        self.around: list[HookEdges] = []
        self._site, self._recorder = site, recorder
        self._pending: tuple[Tensor, Tensor] | None = None  # the states, and a copy that nobody changes in place
        self._is_handed_on = False

    def leave(self, output: Any) -> None:
        """Record the output of the site's module, or follow it outward."""
        if self._site.index is not None:
            output = output[self._site.index]
        self._pending = None
        if not any(edges.has_others_after for edges in self.around):
            self._recorder.site(self._site, output)
        elif self._recorder.measures_sites:
            state = _state(output)
            if state is None:
                self._recorder.site(self._site, output)  # which says what is wrong
            else:
                self._pending = state, state.clone()

    def hand_on(self, output: Any) -> None:
        """Note whether a module around gives the states that its part gave."""
        if self._pending is not None:
            state = _state(output)
            self._is_handed_on = state is not None and _lies_where(state, self._pending[0])

    def leave_outer(self, output: Any, *, is_last: bool) -> None:
        """Take what a module around gives after all hooks, if it was handed on; record it at the last one."""
        if self._pending is None:
            return
        if self._is_handed_on and (state := _state(output)) is not None:
            self._pending = state, state.clone()
        if is_last:
            (_, copy), self._pending = self._pending, None
            self._recorder.site(self._site, copy)


def _state(output: object) -> Tensor | None:
    """Find the states in what a module gives; None where there are none, which is no reason to stop the model."""
    try:
        return hidden_state(output, "")
    except ProbeError:
        return None


def _lies_where(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same values at one place; the shape of positions may differ."""
    return one is other or (one.data_ptr() == other.data_ptr() != 0 and one.numel() == other.numel())
