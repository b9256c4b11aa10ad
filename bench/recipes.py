"""Training recipes: the optimiser settings a case trains with unless told otherwise."""

from __future__ import annotations

from dataclasses import replace

from bench.case import Case
from jfbcore.train import TrainingConfig

#: per problem, what differs from TrainingConfig's own defaults
LEARNING_RATES = {"quadrotor": 2e-3, "bicycle": 2e-3, "consumption": 2e-3}


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
        learning_rate=LEARNING_RATES[case.problem],
        seed=seed,
    )
    if learning_rate is not None:
        config = replace(config, learning_rate=learning_rate)
    return config if schedule is None else replace(config, schedule=schedule)
