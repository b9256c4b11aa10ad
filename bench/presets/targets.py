"""Training to a stated gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS, Case
from bench.presets.names import COMPILED_GRADIENTS, JFB_MAPS, MAIN_GRADIENTS, SUPERVISED
from bench.recipes import LENGTHS, RECOMMENDED, RELEASED_TOLERANCE, case_settings

#: problems trained to a target, and for how long [s]: `bench.recipes.LENGTHS`
_TRAINED = tuple(
    (problem, n_agents, LENGTHS[problem][start][1])
    for problem, n_agents, start in (
        *(("quadrotor", 1, 1), ("consumption", 5, 1), ("bicycle", 1, 1), ("quadrotor", 6, 6)),
        *(("quadrotor", 20, 20), ("consumption", 100, 100), ("bicycle", 20, 20)),
        *(("quadrotor", 100, 100), ("rotor-quadrotor", 1, 1), ("liquidation", 20, 1)),
        ("rotor-quadrotor", 6, 6),
    )
)
#: those on which the learning rate is tuned for each gradient, and the factors tried
_TUNED = _TRAINED[:3]
_RATE_FACTORS = (2.0, 0.5)
#: on every problem: the method, the exact gradient and no inner problem at all
_RANKED = ("jfb", "implicit", "direct")
#: on quadrotors: unrolling, and the faster of the layers that solve a conic program
_COMPETITORS = ("unrolled", "cvxpylayers-moreau")
#: problems whose scaled map is not Newton's, so that JFB's gradient depends on the map
_BIASED = ("quadrotor", "rotor-quadrotor")
#: methods of which the whole schedule is asked, whatever it takes, on these: their limit is so many
#: times as long
_WHOLE = (
    *(("costate-network", "quadrotor", n) for n in (1, 6, 20)),
    ("reversible", "rotor-quadrotor", 1),
)
_LONGER = 4


def targets() -> Iterator[Case]:
    """Training to a target on the recommended recipe: every row that a release ranks.

    Every method that can be is compiled. JFB is there on each of its maps where they differ. Beside
    them what else there is to choose: supervision from reference trajectories, a network that
    outputs the costate, jfb eager and as released, and a swarm's direct policy on a dense network.
    """
    for problem, n_agents, seconds in _TRAINED:
        for gradient in _RANKED:
            yield trained("recommended", problem, n_agents, gradient, seconds)
    quadrotors = [size for size in _TRAINED if size[0] == "quadrotor"]
    for gradient, problem, n_agents in _WHOLE:
        seconds = LENGTHS[problem][n_agents][1]
        yield trained("recommended", problem, n_agents, gradient, _LONGER * seconds)
    for problem, n_agents, seconds in quadrotors[:2]:
        for gradient in SUPERVISED:
            yield trained("recommended", problem, n_agents, gradient, seconds)
    for problem, n_agents, seconds in _TRAINED:
        recommended = trained("recommended", problem, n_agents, "jfb", seconds)
        for map_name, solver in JFB_MAPS if problem in _BIASED else ():
            if map_name != recommended.map:
                yield replace(recommended, map=map_name, solver=solver)
    problem, n_agents, seconds = _TRAINED[0]
    yield replace(trained("recommended", problem, n_agents, "jfb", seconds), compile=False)
    yield replace(
        trained("released", problem, n_agents, "jfb", seconds),
        tolerance=RELEASED_TOLERANCE,  # one quadrotor's gradient scale is 1: absolute
    )
    for problem, n_agents, seconds in quadrotors:
        for gradient in _COMPETITORS:
            yield trained("recommended", problem, n_agents, gradient, seconds)
    direct = trained("recommended", *quadrotors[1][:2], "direct", quadrotors[1][2])
    yield replace(direct, network="dense", batch_size=DEFAULT_BATCH["quadrotor"])


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
