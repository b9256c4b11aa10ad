"""Training recipes: the optimiser settings a case trains with unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.case import DEFAULT_STEPS, Case
from jfbcore.train import TrainingConfig

#: per problem, what differs from TrainingConfig's own defaults (reports/recipes.md says why)
RECOMMENDED: dict[str, dict[str, Any]] = {
    "quadrotor": {
        "learning_rate": 5e-3,
        "warm_start": True,
        "coarsening": ((0.5, 4), (0.8, 2)),
    },
    # The steering gain 1/wheelbase makes the bicycle's Euler map change with the step: a policy
    # trained on a coarser grid fails on the real one.
    "bicycle": {"learning_rate": 2e-3, "warm_start": True},
    "consumption": {
        "learning_rate": 5e-3,
        "warm_start": True,
        "coarsening": ((0.3, 4), (0.5, 2)),
    },
}
#: what the released code of arXiv 2602.00921 trains with, for every problem
RELEASED: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "plateau"}
#: its inner iteration; the tolerance is absolute there, whatever the problem's gradient scale
RELEASED_INNER: dict[str, Any] = {"map": "plain", "step_size": 1e-4, "max_iterations": 499}
RELEASED_TOLERANCE = 0.1
#: runs of fewer steps stay on the case's own grid, as do cases whose grid is already coarse
_SHORTEST_COARSE_RUN = 200


def training_config(
    case: Case,
    *,
    steps: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    learning_rate: float | None = None,
    schedule: str | None = None,
) -> TrainingConfig:
    """The recipe for `case`, for `steps` steps or `time_limit` seconds."""
    config = TrainingConfig(
        steps=steps,
        time_limit=time_limit,
        batch_size=case.batch_size,
        seed=seed,
        **RECOMMENDED[case.problem],
    )
    short = steps is not None and steps < _SHORTEST_COARSE_RUN
    if short or case.n_steps < DEFAULT_STEPS[case.problem]:
        config = replace(config, coarsening=())
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    return config if schedule is None else replace(config, schedule=schedule)


def released_config(case: Case, *, steps: int, seed: int = 0) -> TrainingConfig:
    """The released code's optimiser settings for `case`; clipping and guard stay on."""
    return TrainingConfig(steps=steps, batch_size=case.batch_size, seed=seed, **RELEASED)
