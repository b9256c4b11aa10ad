"""Training to a stated gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_STEPS, Case
from bench.presets.names import COMPILED_GRADIENTS, JFB_MAPS, MAIN_GRADIENTS
from bench.recipes import LENGTHS, RECOMMENDED, case_settings

#: problems trained to a target, and for how long [s]: `bench.recipes.LENGTHS`. One size of each
#: first, then what growth does
_TRAINED = tuple(
    (problem, n_agents, LENGTHS[problem][start][1])
    for problem, n_agents, start in (
        *(("quadrotor", 1, 1), ("consumption", 5, 1), ("bicycle", 1, 1)),
        *(("rotor-quadrotor", 1, 1), ("liquidation", 20, 1), ("quadrotor", 100, 100)),
        *(("consumption", 100, 100), ("quadrotor", 6, 6), ("quadrotor", 20, 20)),
        *(("bicycle", 20, 20), ("rotor-quadrotor", 6, 6)),
    )
)
#: those on which the learning rate is tuned for each gradient, and the factors tried
_TUNED = _TRAINED[:3]
_RATE_FACTORS = (2.0, 0.5)
#: on every problem: the method, the exact gradient and no inner problem at all; of swarms of
#: quadrotors not the second, because on their Newton map it is the first, as one quadrotor shows
_RANKED = ("jfb", "implicit", "direct")
#: on one quadrotor: unrolling, and the faster of the layers that solve a conic program
_COMPETITORS = ("unrolled", "cvxpylayers-moreau")
#: beside the map of the recipe: those on which jfb is biased, or is not where the recipe's is
_OTHER_MAPS = (
    ("quadrotor", 1, "scaled"),
    ("rotor-quadrotor", 1, "newton"),
    ("quadrotor", 1, "plain"),
    ("rotor-quadrotor", 1, "plain"),
)
#: sizes that come before the other maps
_FIRST = 6


def targets() -> Iterator[Case]:
    """Training to a target on the recommended recipe: every row that a release ranks.

    Every method that can be is compiled. Each problem comes first, with whom jfb competes with on
    one quadrotor, then jfb on other maps, then growth.
    """
    for size in _TRAINED[:_FIRST]:
        yield from _ranked(*size)
        if size == _TRAINED[0]:
            for gradient in _COMPETITORS:
                yield trained("recommended", *size[:2], gradient, size[2])
    solvers = dict(JFB_MAPS)
    for problem, n_agents, name in _OTHER_MAPS:
        (seconds,) = (size[2] for size in _TRAINED if size[:2] == (problem, n_agents))
        own = trained("recommended", problem, n_agents, "jfb", seconds)
        yield replace(own, map=name, solver=solvers[name])
    for size in _TRAINED[_FIRST:]:
        yield from _ranked(*size)


def _ranked(problem: str, n_agents: int, seconds: float) -> Iterator[Case]:
    same = problem == "quadrotor" and n_agents > 1
    for gradient in _RANKED:
        if gradient != "implicit" or not same:
            yield trained("recommended", problem, n_agents, gradient, seconds)


def rates() -> Iterator[Case]:
    """The smallest problems at twice and at half the recipe's learning rate, every gradient."""
    for factor in _RATE_FACTORS:
        for problem, n_agents, seconds in _TUNED:
            rate = factor * RECOMMENDED[problem]["learning_rate"]
            for gradient in MAIN_GRADIENTS:
                case = trained("recommended", problem, n_agents, gradient, seconds)
                yield replace(case, learning_rate=rate)


def trained(recipe: str, problem: str, n_agents: int, gradient: str, seconds: float) -> Case:
    """The case that trains on `recipe` for `seconds`, at the problem's own time steps.

    Compiled where the method can be: all these runs are long enough to earn it back.
    """
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
