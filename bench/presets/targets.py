"""Training to a stated gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_STEPS, Case
from bench.presets.names import COMPILED_GRADIENTS, MAIN_GRADIENTS
from bench.recipes import LENGTHS, RECOMMENDED, case_settings

#: one size of each problem that a release ranks
_FIRST = (("quadrotor", 1), ("rotor-quadrotor", 1), ("bicycle", 1), ("consumption", 5))
#: what grows, and the problem whose optimum is known exactly
_GROWTH = (
    *(("quadrotor", 100), ("liquidation", 20), ("consumption", 100), ("quadrotor", 6)),
    *(("quadrotor", 20), ("bicycle", 20), ("rotor-quadrotor", 6)),
)
#: what there is a hundred of, beside the quadrotors of `targets`
_MANY = ("consumption", "liquidation", "bicycle")
#: those on which the learning rate is tuned for each gradient, and the factors tried
_TUNED = (("quadrotor", 1), ("bicycle", 1), ("consumption", 5))
_RATE_FACTORS = (2.0, 0.5)
#: the method, the exact gradient, and no inner problem at all
_RANKED = ("jfb", "implicit", "direct")
#: unrolling, and the faster of the layers that solve a conic program
_COMPETITORS = ("unrolled", "cvxpylayers-moreau")
#: fitted to optima first, and the problems whose swarms are
_PRETRAINED = ("pretrained-jfb", "pretrained-direct")
_FITTED = ("quadrotor", "bicycle")
#: sizes of quadrotors that jfb is trained on with each of its maps, and those where it is biased
_SWARMS = (1, 6, 20, 100)
_BIASED = ("scaled", "plain")


def targets() -> Iterator[Case]:
    """Training to a target on the recommended recipe: every row that a release ranks.

    On one size of each problem jfb and the exact gradient, compiled; on one rotor quadrotor, where
    the recipe's map leaves jfb biased, jfb on the Newton map, where it is exact; on one quadrotor a
    direct policy. At the end jfb on each of its maps, exact or biased, at every size of quadrotors.
    """
    for problem, n_agents in _FIRST:
        for gradient in _RANKED[:2]:
            yield trained("recommended", problem, n_agents, gradient)
        if problem == "rotor-quadrotor":
            yield replace(trained("recommended", problem, n_agents, "jfb"), map="newton")
    yield trained("recommended", "quadrotor", 1, "direct")
    for n_agents in _SWARMS:
        case = trained("recommended", "quadrotor", n_agents, "jfb")
        if n_agents > 1:
            yield case
        yield from (replace(case, map=name, solver="picard") for name in _BIASED)


def growth() -> Iterator[Case]:
    """The same on larger swarms and portfolios, direct policies everywhere, and what else competes.

    Of swarms of quadrotors without jfb, which `targets` have, and without the exact gradient: on
    their Newton map it is jfb's. They and bicycles are also fitted to optima first. At the end
    jfb on the map where it is exact of six rotor quadrotors.
    """
    for problem, n_agents in _GROWTH:
        for gradient in () if problem == "quadrotor" else _RANKED[:2]:
            yield trained("recommended", problem, n_agents, gradient)
    for gradient in (*_COMPETITORS, *_PRETRAINED):
        yield trained("recommended", "quadrotor", 1, gradient)
    for problem, n_agents in _GROWTH:
        for gradient in _PRETRAINED if problem in _FITTED else ():
            yield trained("recommended", problem, n_agents, gradient)
    for problem, n_agents in (*_FIRST[1:], *_GROWTH):
        yield trained("recommended", problem, n_agents, "direct")
    yield replace(trained("recommended", "rotor-quadrotor", 6, "jfb"), map="newton")


def scale() -> Iterator[Case]:
    """A hundred goods, assets or bicycles trained by jfb; a hundred quadrotors `targets` have."""
    for problem in _MANY:
        yield trained("recommended", problem, 100, "jfb")


def rates() -> Iterator[Case]:
    """The smallest problems at twice and at half the recipe's learning rate, every gradient."""
    for factor in _RATE_FACTORS:
        for problem, n_agents in _TUNED:
            rate = factor * RECOMMENDED[problem]["learning_rate"]
            for gradient in MAIN_GRADIENTS:
                case = trained("recommended", problem, n_agents, gradient)
                yield replace(case, learning_rate=rate)


def trained(
    recipe: str, problem: str, n_agents: int, gradient: str, seconds: float | None = None
) -> Case:
    """The case that trains on `recipe` for `seconds`, at the problem's own time steps.

    Without `seconds` for those of `bench.recipes.LENGTHS`. Compiled where the method can be: all
    these runs are long enough to earn it back.
    """
    if seconds is None:
        sizes = LENGTHS[problem]
        seconds = sizes[max(size for size in sizes if size <= n_agents)][1]
    return Case(
        problem=problem,
        n_agents=n_agents,
        gradient=gradient,
        n_steps=DEFAULT_STEPS[problem],
        recipe=recipe,
        train_seconds=seconds,
        compile=gradient in COMPILED_GRADIENTS,
        **case_settings(recipe, problem, n_agents, gradient),
    )
