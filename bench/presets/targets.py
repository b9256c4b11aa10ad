"""Training to a stated gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_STEPS, Case
from bench.presets.names import COMPILED_GRADIENTS, JFB_MAPS, MAIN_GRADIENTS
from bench.recipes import LENGTHS, RECOMMENDED, case_settings

#: sizes trained to a target, and for how long [s], `bench.recipes.LENGTHS`: one of each problem first,
#: then growth
_TRAINED = tuple(
    (problem, n_agents, LENGTHS[problem][start][1])
    for problem, n_agents, start in (
        *(("quadrotor", 1, 1), ("rotor-quadrotor", 1, 1), ("consumption", 5, 1)),
        *(("bicycle", 1, 1), ("liquidation", 20, 1), ("quadrotor", 100, 100)),
        *(("consumption", 100, 100), ("quadrotor", 6, 6), ("quadrotor", 20, 20)),
        *(("bicycle", 20, 20), ("rotor-quadrotor", 6, 6)),
    )
)
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

    Every method that can be is compiled.
    """
    solvers = dict(JFB_MAPS)
    for problem, n_agents, seconds in _TRAINED:
        same = problem == "quadrotor" and n_agents > 1
        for gradient in _RANKED:
            if gradient != "implicit" or not same:
                yield trained("recommended", problem, n_agents, gradient, seconds)
        if (problem, n_agents) == ("rotor-quadrotor", 1):
            own = trained("recommended", problem, n_agents, "jfb", seconds)
            yield replace(own, map="newton", solver=solvers["newton"])
        if (problem, n_agents) == ("bicycle", 1):
            for gradient in _COMPETITORS:
                yield trained("recommended", *_TRAINED[0][:2], gradient, _TRAINED[0][2])


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
