"""The sweep of a release: agents, inner iterations, batch and method, thinned to what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.case import DEFAULT_STEPS, Case

#: agents, or goods; the ends first, because growth shows there
_SIZES = (1, 100, 20)
_BATCH = 32
#: those that reach K = 500 in minutes: the others apply the map as often again on the way back
_FAR = ("jfb", "unrolled", "implicit")
#: who competes on memory; all others are flat in K by construction and measured once, to tolerance
_MEMORY = ("jfb", "unrolled", "unrolled-checkpoint", "reversible", "implicit")
#: who is timed on quadrotors, and on the other problems
_TIMED = (
    *("jfb", "implicit", "unrolled", "unrolled-checkpoint", "reversible", "torchdeq"),
    *("cvxpylayers", "cvxpylayers-moreau", "direct"),
)
_BRIEFLY = ("jfb", "implicit", "unrolled", "direct")


def sweep() -> Iterator[Case]:
    """Step time and bytes over agents, iterations and batches, thinned to what is drawn.

    Not every combination is measured. Bytes are exact and grow linearly in K and in the batch, so
    two or three K at one batch and two more batches at one K draw every line; they are counted,
    not timed, on quadrotors, the paper's largest problem. Time is measured to the tolerance at one
    batch: every method on quadrotors, four of them on both ends of the other problems.
    """
    for n_agents in _SIZES:
        for gradient in _TIMED:
            yield _case("quadrotor", n_agents, gradient)
    for problem in DEFAULT_STEPS:
        for n_agents in _SIZES[:2] if problem != "quadrotor" else ():
            for gradient in _BRIEFLY:
                yield _case(problem, n_agents, gradient)
    for iterations in (50, 5):
        for n_agents in _SIZES:
            for gradient in _MEMORY:
                yield _counted(n_agents, gradient, iterations, _BATCH)
    for n_agents in (20, 1):
        for gradient in _FAR:
            yield _counted(n_agents, gradient, 500, _BATCH)
    for batch_size in (8, 128):
        for n_agents in (1, 100):
            for gradient in ("jfb", "unrolled"):
                yield _counted(n_agents, gradient, 50, batch_size)


def _case(problem: str, n_agents: int, gradient: str, **changes: Any) -> Case:
    fields: dict[str, Any] = {"batch_size": _BATCH, "n_steps": DEFAULT_STEPS[problem]} | changes
    return Case(problem=problem, n_agents=n_agents, gradient=gradient, **fields)


def _counted(n_agents: int, gradient: str, iterations: int, batch_size: int) -> Case:
    return _case(
        "quadrotor",
        n_agents,
        gradient,
        tolerance=None,
        max_iterations=iterations,
        batch_size=batch_size,
        timed=False,
    )
