"""The cases that the claims are made of: short for the quick check, the problems' own for all."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bench.build import released_tolerance
from bench.case import DEFAULT_STEPS, Case
from bench.jobs import Job
from bench.presets.names import JFB_MAPS
from bench.probes.probe import Probe
from bench.probes.trace import Trace
from bench.recipes import RELEASED_INNER, case_settings

#: the smallest size of each problem that is worth measuring, and its time steps in a quick check
SMALL = (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
SHORT = {"quadrotor": 32, "bicycle": 30, "consumption": 25}
#: the sizes that are trained under measurement; what growth does to memory and gap has its own
SWARM = ("quadrotor", 20)
TRACED = (*SMALL, SWARM)
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


def released(problem: str, n_agents: int, **changes: Any) -> Case:
    """The same with the released code's inner iteration, to its own tolerance."""
    found = case(problem, n_agents, **(RELEASED_INNER | changes))
    return replace(found, tolerance=released_tolerance(found))


def seeded(cases: Iterable[Case], probe: Probe, quick: bool) -> list[Job]:
    """`probe` of every case and seed."""
    return [Job(case=c, probe=probe, seed=s) for c in cases for s in range(SEEDS[quick])]


@functools.cache
def traced(quick: bool) -> list[Job]:
    """The training runs that claims 1 to 3 rest on: each size on each of JFB's maps and on the
    released recipe.
    """
    found = []
    for problem, n in SMALL if quick else TRACED:
        short = {"n_steps": SHORT[problem]} if quick else {}
        # Below 200 steps a recipe has no coarse grids, and bicycles never have: fewer steps do.
        steps = 50 if quick else 100 if problem == "bicycle" else 200
        probe = Trace(minibatch=2) if quick else Trace(
            interval=steps // 4, states=16, minibatch=2, map_every=DEFAULT_STEPS[problem] // 10
        )  # fmt: skip
        # Of the swarm those maps that grow with it: on Newton's map one agent shows all there is.
        swarm = (problem, n) == SWARM
        for name, solver in JFB_MAPS[:2] if swarm else JFB_MAPS:
            # An inner iteration that has not converged after 100 applications is not going to.
            most = 100 if name == "plain" else 500
            own = {"map": name, "solver": solver, "max_iterations": most, "train_steps": steps}
            found += seeded([trained(problem, n, **own, **short)], probe, quick)
        if not quick and not swarm:
            # Its unrolled derivative, 499 applications at every time step, costs what 20 steps do.
            last = replace(probe, recipe="released", interval=4)
            found += seeded([released(problem, n, train_steps=4)], last, quick)
    if quick:
        run = released("quadrotor", 1, n_steps=16, train_steps=2)
        found += seeded([run], Trace(recipe="released", interval=2, minibatch=2), quick)
    return found
