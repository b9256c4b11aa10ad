"""Every gradient on every problem in minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import Case
from bench.presets.names import (
    BRIEF_PROBLEMS,
    FEW_GRADIENTS,
    JFB_MAPS,
    MAIN_GRADIENTS,
    OTHER_PROBLEMS,
)


def smoke() -> Iterator[Case]:
    """Every gradient on every problem in minutes: short horizons, small batches."""
    for n_agents in (1, 6, 20, 100):
        for case in _gradients("quadrotor", n_agents, n_steps=12, batch_size=4):
            if case.gradient == "jfb":
                yield from (replace(case, map=m, solver=s) for m, s in JFB_MAPS)
            else:
                yield case
    base = Case(
        problem="quadrotor", n_agents=1, gradient="jfb", batch_size=4, n_steps=12, train_steps=6
    )
    for solver in ("anderson", "newton", "closed-form"):
        yield replace(base, solver=solver)
    for problem, n_agents, n_steps in OTHER_PROBLEMS:
        yield from _gradients(problem, n_agents, n_steps=n_steps, batch_size=8)
    for problem, n_agents, n_steps in BRIEF_PROBLEMS:
        few = (*FEW_GRADIENTS, "jfb-recompute")
        yield from _gradients(problem, n_agents, few, n_steps=n_steps, batch_size=8)
    yield Case(
        problem="consumption",
        variant="concave",
        n_agents=5,
        gradient="cvxpylayers",
        batch_size=4,
        n_steps=12,
        train_steps=6,
    )
    yield from _iteration_sweep(6, batch_size=4, n_steps=8, gradients=("jfb", "unrolled"))
    yield from _iteration_sweep(
        6, batch_size=4, n_steps=8, gradients=("unrolled-checkpoint", "implicit"), counts=(5, 50)
    )
    yield from _iteration_sweep(
        100, batch_size=2, n_steps=4, gradients=("jfb", "unrolled"), counts=(5, 500)
    )


def _gradients(
    problem: str,
    n_agents: int,
    gradients: tuple[str, ...] = MAIN_GRADIENTS,
    *,
    n_steps: int,
    batch_size: int,
) -> Iterator[Case]:
    for gradient in gradients:
        yield Case(
            problem=problem,
            n_agents=n_agents,
            gradient=gradient,
            batch_size=batch_size,
            n_steps=n_steps,
            train_steps=6,
        )


def _iteration_sweep(
    n_agents: int,
    *,
    batch_size: int,
    n_steps: int,
    gradients: tuple[str, ...],
    counts: tuple[int, ...] = (5, 50, 500),
) -> Iterator[Case]:
    for iterations in counts:
        for gradient in gradients:
            yield Case(
                problem="quadrotor",
                n_agents=n_agents,
                gradient=gradient,
                tolerance=None,
                max_iterations=iterations,
                batch_size=batch_size,
                n_steps=n_steps,
                timed=False,
            )
