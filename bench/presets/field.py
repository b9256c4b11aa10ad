"""One table of every method side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import GRADIENT_NAMES, Case
from bench.presets.names import JFB_MAPS

#: quadrotors, and minibatch, of a row: smaller where a step is dearer
_SIZES = ((1, 8), (20, 4), (100, 2))


def field() -> Iterator[Case]:
    """Every method on 1, 20, 100 quadrotors: a step's time, memory, errors and residual."""
    for n_agents, batch_size in _SIZES:
        for gradient in GRADIENT_NAMES:
            case = Case(
                problem="quadrotor",
                n_agents=n_agents,
                gradient=gradient,
                batch_size=batch_size,
                n_steps=12,
            )
            if gradient == "jfb":
                yield from (replace(case, map=m, solver=s) for m, s in JFB_MAPS)
            else:
                yield case
