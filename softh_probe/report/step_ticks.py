"""Ticks of an axis of training steps: as many as stand beside each other, from 1 checkpoint to thousands.

>>> log_ticks([0, *range(1000, 143001, 1000)], inches=2.0)
[0, 1000, 10000, 100000]
>>> log_ticks([0, 143000], inches=2.0)
[0, 143000]
>>> every_nth(["1,000"] * 300, inches=2.0)
100

Pages choose theirs alike, in assets/ticks.js.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

#: Inches of a letter of a tick, and between two ticks, at matplotlib's size of ticks.
_LETTER, _GAP = 0.082, 0.1
#: Most ticks: more say no more.
_MOST = 14


def every_nth(names: Sequence[str], inches: float) -> int:
    """Choose every how many-th of some names, evenly spaced over some inches, gets a tick."""
    most = int(inches / (_LETTER * max(map(len, names), default=1) + _GAP))
    return max(1, math.ceil(len(names) / max(1, min(_MOST, most))))


def log_place(step: float, least: float) -> float:
    """Place a step on a logarithmic axis; step 0, which has no logarithm, stands half a decade left of the least."""
    return math.log10(step) if step > 0 else math.log10(least) - 0.5


def log_ticks(steps: Sequence[int], inches: float) -> list[int]:
    """Choose the steps that get a tick on a logarithmic axis of some inches.

    Args:
        steps: of the checkpoints, 0 or more.
        inches: from the least to the greatest of them.

    Returns:
        The finest of these that fits: 1, 2 and 5 of each decade, decades, every second to fourth decade, the ends. Step
        0 is always among them where a checkpoint has it.
    """
    positive = [step for step in steps if step > 0]
    if not positive:
        return [0] if 0 in steps else []
    least, greatest = min(positive), max(positive)
    scale = inches / ((log_place(greatest, least) - log_place(min(steps), least)) or 1.0)

    def apart(tick: int, following: int) -> bool:
        distance = log_place(following, least) - log_place(tick, least)
        return distance * scale >= _LETTER * (len(f"{tick:,}") + len(f"{following:,}")) / 2 + _GAP

    def with_zero(ticks: list[int]) -> list[int]:
        """Add step 0; a tick that would touch it gives way."""
        return [0, *(tick for tick in ticks if apart(0, tick))] if 0 in steps else ticks

    def fits(ticks: list[int]) -> bool:
        return len(ticks) <= _MOST and all(apart(*pair) for pair in pairwise(ticks))

    powers = range(math.floor(math.log10(least)), math.floor(math.log10(greatest)) + 1)
    ladder = [[factor * 10**power for power in powers for factor in factors] for factors in ((1, 2, 5), (1,))]
    ladder += [[10**power for power in powers if power % stride == 0] for stride in (2, 3, 4)]
    for rung in ladder:
        ticks = with_zero([tick for tick in rung if least <= tick <= greatest])
        if sum(tick > 0 for tick in ticks) >= 2 and fits(ticks):
            return ticks
    ends = sorted({least, greatest})
    return with_zero(ends if fits(ends) else [greatest])
