"""How much is measured: the quick scope for continuous integration, the full one for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.case import DEFAULT_STEPS, Case


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run to trace: `case` trains for `case.train_steps` steps, measured every
    `interval`, with `states` initial states in the expectation and minibatches of `minibatch`.
    """

    case: Case
    interval: int
    seeds: int
    states: int = 16
    minibatch: int = 4

    @property
    def label(self) -> str:
        step = "" if self.case.step_size is None else f" {self.case.step_size:g}"
        return f"{self.case.problem} n={self.case.n_agents}, {self.case.map}{step}"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Everything `verify` measures."""

    name: str
    traces: tuple[Run, ...]
    memory: tuple[Case, ...]
    iterations: tuple[int, ...]
    races: tuple[Case, ...]
    race_seconds: float
    race_seeds: int
    scale: tuple[Case, ...]
    descent_steps: int


def _case(problem: str, n_agents: int, **changes: Any) -> Case:
    settings: dict[str, Any] = {
        "gradient": "jfb",
        "batch_size": 8,
        "n_steps": DEFAULT_STEPS[problem],
    }
    return Case(problem=problem, n_agents=n_agents, **(settings | changes))


def quick() -> Scope:
    """Minutes on two cores: short horizons, one seed."""
    short = {"quadrotor": 32, "bicycle": 30, "consumption": 25}
    traces = tuple(
        Run(
            case=_case(problem, n, map=kind, n_steps=short[problem], train_steps=50),
            interval=25,
            seeds=1,
            states=8,
            minibatch=4,
        )
        for problem, n in (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
        for kind in ("scaled", "plain")
    )
    released = _case(
        "quadrotor", 1, map="plain", step_size=1e-4, max_iterations=499, tolerance=0.1,
        n_steps=16, train_steps=2,
    )  # fmt: skip
    return Scope(
        name="quick",
        traces=(*traces, Run(case=released, interval=2, seeds=1, states=8)),
        memory=tuple(
            _case(problem, n, batch_size=2, n_steps=4)
            for problem, n in (("quadrotor", 6), ("bicycle", 6), ("consumption", 5))
        ),
        iterations=(5, 50, 100, 500),
        races=tuple(
            _case("quadrotor", 1, gradient=gradient, batch_size=8, n_steps=32)
            for gradient in ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")
        ),
        race_seconds=8.0,
        race_seeds=1,
        scale=tuple(
            _case(problem, 100, n_steps=16, train_steps=12)
            for problem in ("quadrotor", "bicycle", "consumption")
        ),
        descent_steps=40,
    )


def full() -> Scope:
    """The report's figures: the problems' own horizons, sizes up to 100, three seeds."""
    sizes = (
        ("quadrotor", 1), ("quadrotor", 6), ("quadrotor", 20), ("quadrotor", 100),
        ("bicycle", 1), ("bicycle", 20), ("consumption", 5), ("consumption", 100),
    )  # fmt: skip
    traces = tuple(
        Run(case=_case(problem, n, map=kind, train_steps=200, batch_size=16), interval=50, seeds=3)
        for kind in ("scaled", "plain")
        for problem, n in sizes
    )
    released = _case(
        "quadrotor", 1, map="plain", step_size=1e-4, max_iterations=499, tolerance=0.1,
        train_steps=30,
    )  # fmt: skip
    return Scope(
        name="full",
        traces=(*traces, Run(case=released, interval=10, seeds=1)),
        memory=tuple(_case(problem, n, batch_size=2, n_steps=8) for problem, n in sizes),
        iterations=(5, 50, 100, 500),
        races=tuple(
            _case("quadrotor", n, gradient=gradient, batch_size=16)
            for n in (1, 6, 20)
            for gradient in ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")
        ),
        race_seconds=60.0,
        race_seeds=3,
        scale=tuple(
            _case(problem, 100, batch_size=16, train_steps=60)
            for problem in ("quadrotor", "bicycle", "consumption")
        ),
        descent_steps=150,
    )
