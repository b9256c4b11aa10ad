"""Training to a stated gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_STEPS, Case
from bench.presets.names import COMPILED_GRADIENTS, MAIN_GRADIENTS
from bench.recipes import LENGTHS, RECOMMENDED, case_settings

#: sizes trained to a target, and for how long [s] (`bench.recipes.LENGTHS`), one of each problem
#: first, then growth
_TRAINED = tuple(
    (problem, n_agents, LENGTHS[problem][start][1])
    for problem, n_agents, start in (
        *(("quadrotor", 1, 1), ("rotor-quadrotor", 1, 1), ("bicycle", 1, 1)),
        *(("consumption", 5, 1), ("liquidation", 20, 1), ("quadrotor", 100, 100)),
        *(("consumption", 100, 100), ("quadrotor", 6, 6), ("quadrotor", 20, 20)),
        *(("bicycle", 20, 20), ("rotor-quadrotor", 6, 6)),
    )
)
#: sizes that are measured before the others' first
_FIRST = 4
#: those on which the learning rate is tuned for each gradient, and the factors tried
_TUNED = (_TRAINED[0], *_TRAINED[2:4])
_RATE_FACTORS = (2.0, 0.5)
#: on every problem: the method, the exact gradient and no inner problem at all; of swarms of
#: quadrotors not the second, because on their Newton map it is the first, as one quadrotor shows
_RANKED = ("jfb", "implicit", "direct")
#: on one quadrotor: unrolling, and the faster of the layers that solve a conic program
_COMPETITORS = ("unrolled", "cvxpylayers-moreau")


def targets() -> Iterator[Case]:
    """Training to a target on the recommended recipe: every row that a release ranks.

    Every method that can be is compiled. Of one size of each problem jfb and the exact gradient
    come first, then what else there is to choose, then growth.
    """
    for size in _TRAINED[:_FIRST]:
        yield from _ranked(*size, _RANKED[:2])
        if size[:2] == ("rotor-quadrotor", 1):
            yield replace(trained("recommended", *size[:2], "jfb", size[2]), map="newton")
    for size in _TRAINED[:_FIRST]:
        yield from _ranked(*size, _RANKED[2:])
    yield from _ranked(*_TRAINED[0], _COMPETITORS)
    for size in _TRAINED[_FIRST:]:
        yield from _ranked(*size, _RANKED)


def _ranked(
    problem: str, n_agents: int, seconds: float, gradients: tuple[str, ...]
) -> Iterator[Case]:
    same = problem == "quadrotor" and n_agents > 1
    for gradient in gradients:
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
