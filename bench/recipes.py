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
}
#: what the released code of arXiv 2602.00921 trains with, for every problem
RELEASED: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "plateau", "plateau_patience": 100}
#: its weights of the HJB penalties, on bicycles only
RELEASED_PENALTIES: dict[str, Any] = {"hjb_running": 1e-4, "hjb_final": 1e-2}
#: its inner iteration; the tolerance is absolute there, whatever the problem's gradient scale
RELEASED_INNER: dict[str, Any] = {"map": "plain", "step_size": 1e-4, "max_iterations": 499}
RELEASED_TOLERANCE = 0.1
#: gradients that do not follow the solver's own iteration, and may have any solver
_ANY_SOLVER = ("jfb", "implicit")
#: the network of several identical agents; a problem that is not here has a dense one
_SHARED_NETWORKS = {"quadrotor": "shared", "bicycle": "indexed"}
#: agents' states in a minibatch of a shared network
_SHARED_STATES = 200
#: runs of fewer steps stay on the case's own grid and costs; so do cases on a coarser grid
_SHORTEST_STAGED_RUN = 200


def case_settings(recipe: str, problem: str, n_agents: int, gradient: str) -> dict[str, Any]:
    """What `recipe` builds a case with: fields of Case; the batch size too.

    One quadrotor's Hessian is diagonal plus rank one, so a Newton map costs what the scaled one
    does, and with it jfb's gradient is the exact one; gradients that track the solver's iteration
    keep Picard on the scaled map. Identical agents share a network, a direct policy's too; bicycles
    have to part, and theirs is told which agent it serves.
    """
    settings: dict[str, Any] = {"batch_size": default_batch(problem)}
    if recipe == "released":
        return settings | RELEASED_INNER if has_inner_problem(gradient) else settings
    if problem == "quadrotor" and gradient.split("-")[0] in _ANY_SOLVER:
        settings |= {"map": "newton", "solver": "newton"}
    if problem in _SHARED_NETWORKS and n_agents > 1:
        batch = min(settings["batch_size"], max(8, _SHARED_STATES // n_agents))
        settings |= {"network": _SHARED_NETWORKS[problem], "batch_size": batch}
    return settings


def has_value_network(gradient: str) -> bool:
    """Whether the policies of `gradient` have a value network of their own to penalise.

    Those of a gradient estimator do.
    """
    return method(gradient).estimator is not None


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
    """The optimiser settings of `recipe` for `case`, for `steps` steps or `time_limit` seconds.

    Clipping and the guard are on in the released recipe too.
    """
    # Here, so that listing cases does not import torch.
    from jfbcore.train import TrainingConfig

    settings = RELEASED if recipe == "released" else RECOMMENDED.get(case.problem, {})
    if recipe == "released" and case.problem == "bicycle" and has_value_network(case.gradient):
        settings = settings | RELEASED_PENALTIES
    config = TrainingConfig(
        steps=steps,
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
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    return config if schedule is None else replace(config, schedule=schedule)
