"""The cases that the claims are made of: short for the quick check, the problems' own for all."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bench.build import released_tolerance
from bench.case import DEFAULT_STEPS, Case
from bench.jobs import Job
from bench.probes.probe import Probe
from bench.probes.trace import Trace
from bench.recipes import RELEASED_INNER, case_settings

#: the smallest size of each problem that is worth measuring, and its time steps in a quick check
SMALL = (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
SHORT = {"quadrotor": 32, "bicycle": 30, "consumption": 25}
FULL_SIZES = (
    *(("quadrotor", 1), ("quadrotor", 6), ("quadrotor", 20), ("quadrotor", 100)),
    *(("bicycle", 1), ("bicycle", 20), ("consumption", 5), ("consumption", 100)),
)
#: seeds of what is random, in a quick check and in all
SEEDS = {True: 1, False: 5}


def case(problem: str, n_agents: int, **changes: Any) -> Case:
    """A case of jfb and a batch of 8 at the problem's own time steps, but for `changes`."""
    usual: dict[str, Any] = {"gradient": "jfb", "batch_size": 8, "n_steps": DEFAULT_STEPS[problem]}
    return Case(problem=problem, n_agents=n_agents, **(usual | changes))


def trained(problem: str, n_agents: int, **changes: Any) -> Case:
    """The same on the network that the recommended recipe gives its gradient."""
    settings = case_settings("recommended", problem, n_agents, changes.get("gradient", "jfb"))
    network = {"network": settings["network"]} if "network" in settings else {}
    return case(problem, n_agents, **(network | changes))


def seeded(cases: Iterable[Case], probe: Probe, quick: bool) -> list[Job]:
    """`probe` of every case and seed."""
    return [Job(case=c, probe=probe, seed=s) for c in cases for s in range(SEEDS[quick])]


@functools.cache
def traced(quick: bool) -> list[Job]:
    """The training runs that claims 1 to 3 rest on: each size on the scaled and the plain map and
    on the released recipe.
    """
    if quick:
        cases = [
            case(problem, n, map=kind, n_steps=SHORT[problem], train_steps=50)
            for problem, n in SMALL
            for kind in ("scaled", "plain")
        ]
        released = _released("quadrotor", 1, n_steps=16, train_steps=2)
        return [
            *seeded(cases, Trace(), quick),
            *seeded([released], Trace(recipe="released", interval=2), quick),
        ]
    found = []
    for problem, n in FULL_SIZES:
        large = n >= 100
        batch_size = 8 if large and problem == "quadrotor" else 16
        probe = Trace(
            interval=50,
            minibatch=4 if large else 2,
            map_every=DEFAULT_STEPS[problem] // (10 if large else 20),
        )
        for kind in ("scaled", "plain"):
            # An inner iteration that has not converged after 100 applications is not going to.
            most = 500 if kind == "scaled" else 100
            run = trained(
                problem, n, map=kind, batch_size=batch_size, train_steps=200, max_iterations=most
            )
            found += seeded([run], probe, quick)
        run = _released(problem, n, batch_size=batch_size, train_steps=8 if large else 12)
        probe = replace(probe, recipe="released", interval=run.train_steps // 2)
        found += seeded([run], probe, quick)
    return found


def _released(problem: str, n_agents: int, **changes: Any) -> Case:
    found = case(problem, n_agents, **(RELEASED_INNER | changes))
    return replace(found, tolerance=released_tolerance(found))
