"""Training recipes: what a case is built with and how it is optimised unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.case import Case
from bench.registry import default_batch, default_steps, has_inner_problem, method

if TYPE_CHECKING:
    from jfbcore.train import TrainingConfig

#: per problem, what differs from TrainingConfig's own defaults (docs/recipes.md says why); a
#: problem that is not here trains on the defaults
RECOMMENDED: dict[str, dict[str, Any]] = {
    "quadrotor": {
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "warm_start": True,
        # Eight time steps first: on them training finds the cheaper kind of flight (one long lean).
        "coarsening": ((0.15, 20), (0.3, 8), (0.45, 4), (0.6, 2)),
    },
    # The steering gain 1/wheelbase makes the bicycle's Euler map change with the step: a policy
    # trained on a coarser grid fails on the real one.
    "bicycle": {
        "optimizer": "muon",
        "learning_rate": 5e-3,
        "warm_start": True,
        # Under the whole terminal cost from the start a flock never parts.
        "terminal_ramp": (0.01, 0.3, 0.7),
    },
    "consumption": {
        "learning_rate": 5e-3,
        "warm_start": True,
        "coarsening": ((0.3, 4), (0.5, 2)),
    },
    # On the scaled map, where JFB is biased; Newton's method finds the control for gradients that
    # do not follow the iteration.
    "rotor-quadrotor": {
        "optimizer": "muon",
        "learning_rate": 7e-3,
        "warm_start": True,
        # Twenty time steps first; on ten, what training finds does not serve the finer grids.
        "coarsening": ((0.6, 4), (0.85, 2)),
    },
    "liquidation": {
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "warm_start": True,
    },
}
#: per problem, from a number of agents on: whole training steps of a recommended run (those on a
#: coarser grid count for less), and the seconds that they are given: what compiled jfb takes on one
#: core, building included, and up to half more (`docs/recipes.md`). The same for every method.
LENGTHS: dict[str, dict[int, tuple[int, float]]] = {
    "quadrotor": {1: (700, 100.0), 6: (900, 150.0), 20: (1300, 250.0), 100: (950, 180.0)},
    "bicycle": {1: (3000, 150.0), 20: (4800, 400.0), 100: (2400, 600.0)},
    "consumption": {1: (280, 60.0), 100: (770, 90.0)},
    "rotor-quadrotor": {1: (1500, 150.0), 6: (1500, 300.0)},
    "liquidation": {1: (400, 60.0)},
}
#: what the released code of arXiv 2602.00921 trains with, for every problem
RELEASED: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "plateau", "plateau_patience": 100}
#: its weights of the HJB penalties, on bicycles only
RELEASED_PENALTIES: dict[str, Any] = {"hjb_running": 1e-4, "hjb_final": 1e-2}
#: its inner iteration; the tolerance is absolute there, whatever the problem's gradient scale
RELEASED_INNER: dict[str, Any] = {"map": "plain", "step_size": 1e-4, "max_iterations": 499}
RELEASED_TOLERANCE = 0.1
#: gradients that do not follow the solver's own iteration, and may have any solver
_ANY_SOLVER = ("jfb", "implicit", "supervised", "pretrained", "costate")
#: the network of several identical agents; a problem that is not here has a dense one
_SHARED_NETWORKS = {"quadrotor": "shared", "bicycle": "assigned", "rotor-quadrotor": "shared"}
#: agents' states in a minibatch of a shared network
_SHARED_STATES = 200
#: the least batch there: bicycles have to part, which one sample of few states does not show; where
#: agents need not, every one of them is a sample, and 2 do
_LEAST_BATCH = {"bicycle": 8}
#: runs of fewer steps stay on the case's own grid and costs; so do cases on a coarser grid
_SHORTEST_STAGED_RUN = 200


def case_settings(recipe: str, problem: str, n_agents: int, gradient: str) -> dict[str, Any]:
    """What `recipe` builds a case with: fields of Case; the batch size too.

    One quadrotor's Hessian is diagonal plus rank one, so a Newton map costs what the scaled one
    does, and with it jfb's gradient is the exact one; gradients that track the solver's iteration
    keep Picard on the scaled map. Identical agents share a network, a direct policy's too; bicycles
    have to part, and theirs is told which place an agent starts at. A network that is fitted to
    flights of quadrotors has a branch for each of the two kinds.
    """
    settings: dict[str, Any] = {"batch_size": default_batch(problem)}
    if recipe == "released":
        return settings | RELEASED_INNER if has_inner_problem(gradient) else settings
    any_solver = gradient.split("-")[0] in _ANY_SOLVER and has_inner_problem(gradient)
    if problem == "quadrotor" and any_solver:
        settings |= {"map": "newton", "solver": "newton"}
    if problem == "rotor-quadrotor" and any_solver:
        settings |= {"solver": "newton"}
    if problem == "rotor-quadrotor" and gradient == "reversible":
        settings |= {"map": "newton"}  # it applies the map twice an iteration, and inverts it
    if problem in _SHARED_NETWORKS and n_agents > 1:
        batch = max(_LEAST_BATCH.get(problem, 2), _SHARED_STATES // n_agents)
        settings["network"] = _SHARED_NETWORKS[problem]
        settings["batch_size"] = min(settings["batch_size"], batch)
    if problem == "quadrotor" and method(gradient).supervision is not None:
        settings["network"] = "branched"  # what is fitted to two kinds of flight
    return settings


def has_value_network(gradient: str) -> bool:
    """Whether the policies of `gradient` have a value network of their own to penalise.

    Those of a gradient estimator do.
    """
    return method(gradient).estimator is not None


def run_length(case: Case, time_limit: float) -> float | None:
    """Whole training steps of the recommended recipe within `time_limit` seconds.

    `LENGTHS` alone decides, from the problem, its size and the limit, so that every method has the
    same schedule at the same step on every machine. A limit that leaves time for the whole recipe
    changes nothing: its stages stay where they are, and what is not used is not spent. A shorter
    one shortens the schedule in proportion. A method too slow for its steps is cut off.

    None where a step is not the one that was timed (another grid or batch, a problem of somebody
    else's): the schedule is then stretched over the limit.
    """
    own = case_settings("recommended", case.problem, case.n_agents, case.gradient)["batch_size"]
    as_timed = case.n_steps == default_steps(case.problem) and case.batch_size == own
    if case.problem not in LENGTHS or not as_timed:
        return None
    sizes = LENGTHS[case.problem]
    whole, seconds = sizes[max(size for size in sizes if size <= case.n_agents)]
    return whole * min(1.0, time_limit / seconds)


def training_config(
    case: Case,
    *,
    steps: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    learning_rate: float | None = None,
    schedule: str | None = None,
    recipe: str = "recommended",
) -> TrainingConfig:
    """The optimiser settings of `recipe` for `case`: `steps`, at most `time_limit` seconds of them.

    With a time limit alone `run_length` says how long the recommended recipe is; the released one
    has no schedule that would have to know. Clipping and the guard are on there too.
    """
    # Here, so that listing cases does not import torch.
    from jfbcore.train import TrainingConfig

    settings = RELEASED if recipe == "released" else RECOMMENDED.get(case.problem, {})
    length = None
    if steps is None and time_limit is not None and recipe != "released":
        length = run_length(case, time_limit)
    if recipe == "released" and case.problem == "bicycle" and has_value_network(case.gradient):
        settings = settings | RELEASED_PENALTIES
    config = TrainingConfig(
        steps=steps,
        full_steps=length,
        time_limit=time_limit,
        batch_size=case.batch_size,
        seed=seed,
        **settings,
    )
    short = steps is not None and steps < _SHORTEST_STAGED_RUN
    if short or case.n_steps < default_steps(case.problem):
        config = replace(config, coarsening=(), terminal_ramp=None)
    if case.n_agents == 1:
        config = replace(config, terminal_ramp=None)  # nobody to part from
    elif case.problem == "bicycle" and method(case.gradient).supervision is not None:
        # What was at its bound would stay there when the next inner solve starts from it; the
        # steering that was fitted is what an ascent from zero finds.
        config = replace(config, warm_start=False)
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    return config if schedule is None else replace(config, schedule=schedule)
