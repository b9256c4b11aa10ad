"""Few cases, measured at every change: by asv, and by the regression gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import Case


def quick() -> Iterator[Case]:
    """What asv tracks: two sizes of every problem, to tolerance and at fixed K."""
    for problem in ("quadrotor", "bicycle", "consumption"):
        for n_agents in (1, 20):
            for gradient in ("jfb", "implicit", "unrolled", "direct"):
                yield Case(
                    problem=problem, n_agents=n_agents, gradient=gradient, batch_size=16, n_steps=20
                )
    for gradient in ("cvxpylayers", "torchdeq", "unrolled-checkpoint"):
        yield Case(problem="quadrotor", n_agents=1, gradient=gradient, batch_size=4, n_steps=10)
    for gradient, of in (("jfb", "scaled"), ("unrolled", "scaled"), ("jfb", "plain")):
        yield Case(
            problem="quadrotor",
            n_agents=20,
            gradient=gradient,
            map=of,
            tolerance=None,
            max_iterations=50,
            batch_size=16,
            n_steps=20,
        )


def gate() -> Iterator[Case]:
    """What the regression gate compares: exact counts at small sizes, nothing timed."""
    for problem, n_agents in (("quadrotor", 6), ("bicycle", 6), ("consumption", 5)):
        for gradient in ("jfb", "unrolled", "implicit"):
            case = Case(
                problem=problem,
                n_agents=n_agents,
                gradient=gradient,
                batch_size=4,
                n_steps=8,
                timed=False,
            )
            yield case
            yield replace(case, tolerance=None, max_iterations=50)
    for gradient in ("jfb-3", "unrolled-checkpoint", "torchdeq", "cvxpylayers", "direct"):
        yield Case(
            problem="quadrotor",
            n_agents=6,
            gradient=gradient,
            batch_size=4,
            n_steps=8,
            timed=False,
        )
    yield Case(
        problem="quadrotor", n_agents=100, gradient="jfb", batch_size=4, n_steps=8, timed=False
    )
