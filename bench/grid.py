"""A grid of one's own: every combination of the problems, sizes, methods, … that are given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bench.case import Case
from bench.plugins import shown
from bench.registry import default_batch, default_steps

#: the name of its run
NAME = "adhoc"


def grid(
    problems: Sequence[str],
    *,
    agents: Sequence[int] = (1,),
    gradients: Sequence[str] = ("jfb",),
    maps: Sequence[str] = ("scaled",),
    solvers: Sequence[str] = ("picard",),
    iterations: Sequence[int | None] = (None,),
    batches: Sequence[int | None] = (None,),
    n_steps: int | None = None,
    **settings: Any,
) -> list[Case]:
    """The cases of a grid, a combination that means the same as an earlier one left out.

    `iterations`: exactly so many inner iterations; None iterates to the case's tolerance. A batch
    of None and `n_steps` None take the problem's own. `settings`: further fields of every case.
    Raises ValueError where two cases that differ have the same id, as those of two files of the
    same base name do.
    """
    cases: dict[str, Case] = {}
    for problem, n_agents, batch in itertools.product(problems, agents, batches):
        own: dict[str, Any] = {
            "problem": problem,
            "n_agents": n_agents,
            "batch_size": default_batch(problem) if batch is None else batch,
            "n_steps": default_steps(problem) if n_steps is None else n_steps,
        }
        for gradient, map_name, solver, count in itertools.product(
            gradients, maps, solvers, iterations
        ):
            exact = {} if count is None else {"max_iterations": count, "tolerance": None}
            case = Case(**own, gradient=gradient, map=map_name, solver=solver, **(settings | exact))
            earlier = cases.setdefault(case.id, case)
            if earlier.to_order(0) != case.to_order(0):
                raise ValueError(
                    f"two cases are both called {case.id}, of {_places(earlier)} and "
                    f"{_places(case)}; rename one of the files"
                )
    return list(cases.values())


def _places(case: Case) -> str:
    names = (case.problem, case.gradient, case.map, case.solver)
    return ", ".join(name for name in names if shown(name) != name)
