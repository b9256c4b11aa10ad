"""How much is measured: the quick scope for continuous integration, the full one for the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bench.build import released_tolerance
from bench.case import DEFAULT_STEPS, Case
from bench.recipes import RELEASED_INNER, case_settings


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run to trace: `case` trains for `case.train_steps` steps, measured every
    `interval`, with `states` initial states in the expectation and minibatches of `minibatch`.

    `recipe`: "recommended" or "released", see bench.recipes. The map is measured at every
    `map_every`-th time step. `seconds`: about how long one seed takes on two cores.
    """

    case: Case
    interval: int
    #: not part of what a job is kept under: more seeds leave those that are done
    seeds: int = field(repr=False)
    recipe: str = "recommended"
    states: int = 16
    minibatch: int = 4
    map_every: int = 1
    seconds: float = 10.0

    @property
    def variant(self) -> str:
        """The map, or the whole recipe where it is the released one."""
        return self.recipe if self.recipe == "released" else self.case.map

    @property
    def label(self) -> str:
        return f"{self.case.problem} n={self.case.n_agents}, {self.variant}"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Everything `verify` measures. Pairs are (case, about how many seconds one job takes).

    `derivatives`: where the derivative's error is measured against K, at `derivative_counts`.
    `crossovers`: sizes whose memory is predicted at full batch and horizon, for
    `crossover_gradients`. `maximisers`: runs with bicycles whose controls are held against global
    maximisers. `sizes`: whether costs of the references are compared over sizes.
    """

    name: str
    traces: tuple[Run, ...]
    descents: tuple[tuple[Case, float], ...]
    descent_steps: int
    descent_seeds: int
    memory: tuple[Case, ...]
    iterations: tuple[int, ...]
    crossovers: tuple[Case, ...]
    crossover_gradients: tuple[str, ...]
    races: tuple[Case, ...]
    race_seconds: float
    race_seeds: int
    scale: tuple[tuple[Case, float], ...]
    scale_seeds: int
    derivatives: tuple[tuple[Case, float], ...]
    derivative_counts: tuple[int, ...]
    derivative_seeds: int
    maximisers: tuple[Run, ...] = ()
    sizes: bool = False


def _case(problem: str, n_agents: int, **changes: Any) -> Case:
    settings: dict[str, Any] = {
        "gradient": "jfb",
        "batch_size": 8,
        "n_steps": DEFAULT_STEPS[problem],
    }
    return Case(problem=problem, n_agents=n_agents, **(settings | changes))


def _trained(problem: str, n_agents: int, **changes: Any) -> Case:
    """A case on the network that the recommended recipe gives this gradient."""
    settings = case_settings("recommended", problem, n_agents, changes.get("gradient", "jfb"))
    network = {"network": settings["network"]} if "network" in settings else {}
    return _case(problem, n_agents, **(network | changes))


def _released(problem: str, n_agents: int, **changes: Any) -> Case:
    case = _case(problem, n_agents, **(RELEASED_INNER | changes))
    return replace(case, tolerance=released_tolerance(case))


def quick() -> Scope:
    """Minutes on two cores: short horizons, one seed."""
    short = {"quadrotor": 32, "bicycle": 30, "consumption": 25}
    small = (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
    traces = tuple(
        Run(
            case=_case(problem, n, map=kind, n_steps=short[problem], train_steps=50),
            interval=25,
            seeds=1,
            states=8,
        )
        for problem, n in small
        for kind in ("scaled", "plain")
    )
    released = _released("quadrotor", 1, n_steps=16, train_steps=2)
    memory = tuple(
        _case(problem, n, batch_size=2, n_steps=1)
        for problem, n in (("quadrotor", 6), ("bicycle", 6), ("consumption", 5))
    )
    return Scope(
        name="quick",
        traces=(*traces, Run(case=released, recipe="released", interval=2, seeds=1, states=8)),
        descents=tuple((_case(problem, n, n_steps=short[problem]), 7.0) for problem, n in small),
        descent_steps=40,
        descent_seeds=1,
        memory=memory,
        iterations=(5, 50, 100, 500),
        crossovers=memory,
        crossover_gradients=("unrolled",),
        races=tuple(
            _case("quadrotor", 1, gradient=gradient, batch_size=8, n_steps=32)
            for gradient in ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")
        ),
        race_seconds=8.0,
        race_seeds=1,
        scale=tuple(
            (_trained(problem, 100, n_steps=16, train_steps=12), 4.0)
            for problem in ("quadrotor", "bicycle", "consumption")
        ),
        scale_seeds=1,
        derivatives=tuple(
            (_case(problem, n, n_steps=short[problem] // 2, dtype="float64", train_steps=50), 8.0)
            for problem, n in small
        ),
        derivative_counts=(1, 2, 3, 5, 8, 12, 20, 35, 60),
        derivative_seeds=1,
    )


#: the sizes of the full scope, and about how many seconds one traced run of each variant takes
FULL_SIZES: dict[tuple[str, int], dict[str, float]] = {
    ("quadrotor", 1): {"scaled": 60, "plain": 150, "released": 170},
    ("quadrotor", 6): {"scaled": 80, "plain": 180, "released": 200},
    ("quadrotor", 20): {"scaled": 110, "plain": 230, "released": 250},
    ("quadrotor", 100): {"scaled": 250, "plain": 400, "released": 450},
    ("bicycle", 1): {"scaled": 30, "plain": 40, "released": 80},
    ("bicycle", 20): {"scaled": 35, "plain": 60, "released": 110},
    ("consumption", 5): {"scaled": 30, "plain": 60, "released": 90},
    ("consumption", 100): {"scaled": 60, "plain": 100, "released": 170},
}


def full() -> Scope:
    """The report's figures: the problems' own horizons, sizes up to 100, five seeds."""
    traces = []
    for (problem, n), seconds in FULL_SIZES.items():
        large = n >= 100
        common: dict[str, Any] = {
            "seeds": 5,
            "states": 8,
            "minibatch": 4 if large else 2,
            "map_every": DEFAULT_STEPS[problem] // 10 if large else DEFAULT_STEPS[problem] // 20,
        }
        batch_size = 8 if large and problem == "quadrotor" else 16
        for kind in ("scaled", "plain"):
            # An inner iteration that has not converged after 100 applications is not going to.
            case = _trained(
                problem, n, map=kind, batch_size=batch_size, train_steps=200,
                max_iterations=500 if kind == "scaled" else 100,
            )  # fmt: skip
            traces.append(Run(case=case, interval=50, seconds=seconds[kind], **common))
        case = _released(problem, n, batch_size=batch_size, train_steps=8 if large else 12)
        traces.append(
            Run(case=case, recipe="released", interval=case.train_steps // 2,
                seconds=seconds["released"], **common)
        )  # fmt: skip
    small = (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
    return Scope(
        name="full",
        traces=tuple(traces),
        descents=tuple(
            (_case(problem, n, batch_size=16), seconds)
            for problem, n, seconds in (
                ("quadrotor", 1, 100.0),
                ("quadrotor", 6, 110.0),
                ("bicycle", 1, 50.0),
                ("consumption", 5, 50.0),
            )
        ),
        descent_steps=100,
        descent_seeds=5,
        memory=tuple(_case(problem, n, batch_size=2, n_steps=4) for problem, n in FULL_SIZES),
        iterations=(5, 50, 100, 500),
        crossovers=tuple(_case(problem, n) for problem, n in FULL_SIZES),
        crossover_gradients=("jfb", "unrolled", "unrolled-network"),
        races=tuple(
            _trained(problem, n, gradient=gradient, batch_size=16)
            for problem, n, others in (
                ("quadrotor", 1, ("cvxpylayers",)),
                ("quadrotor", 6, ("cvxpylayers",)),
                ("quadrotor", 20, ("cvxpylayers",)),
                ("bicycle", 1, ()),
                ("consumption", 5, ()),
            )
            for gradient in ("jfb", "implicit", "unrolled", *others, "direct")
        ),
        race_seconds=12.0,
        race_seeds=5,
        scale=tuple(
            (_trained(problem, 100, batch_size=16, train_steps=60), seconds)
            for problem, seconds in (("quadrotor", 60.0), ("bicycle", 30.0), ("consumption", 30.0))
        ),
        scale_seeds=5,
        derivatives=tuple(
            (_case(problem, n, dtype="float64", train_steps=50), seconds)
            for (problem, n), seconds in zip(small, (110.0, 50.0, 70.0), strict=True)
        ),
        derivative_counts=(1, 2, 3, 5, 8, 12, 20, 35, 60, 100),
        derivative_seeds=5,
        maximisers=tuple(
            run
            for run in traces
            if run.case.problem == "bicycle" and run.variant in ("scaled", "released")
        ),
        sizes=True,
    )
