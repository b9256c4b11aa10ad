"""Why a direct policy wins on swarms: equal steps in place of equal seconds."""

from __future__ import annotations

from collections.abc import Iterator

from bench.case import Case
from bench.presets.targets import trained

#: long enough for every recipe to end with its schedule, eager: steps are equal, seconds are not
_LIMIT = 3600.0


def study() -> Iterator[Case]:
    """The value network's costate, a network's that outputs it directly, and no costate at all.

    On 1, 6 and 20 quadrotors, each for the whole recommended recipe: the same training steps, the
    same width and depth.
    """
    for n_agents in (1, 6, 20):
        for gradient in ("jfb", "costate-network", "direct"):
            yield trained("recommended", "quadrotor", n_agents, gradient, _LIMIT)
