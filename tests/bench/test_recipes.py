"""What the recipes decide, and what they leave to who asks."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace

import pytest

from baselines import METHODS
from bench.build import Unsupported, build, build_problem
from bench.case import GRADIENT_NAMES, PROBLEM_NAMES, RECIPES, Case
from bench.commands import train
from bench.recipes import LENGTHS, case_settings, training_config
from jfbcore.train import Training


def case_of(*arguments: str) -> Case:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train._case(parser.parse_args(["--gradient", "jfb", *arguments]))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("n_agents", [1, 3])
@pytest.mark.parametrize("problem", PROBLEM_NAMES)
def test_every_gradient_builds_under_every_recipe(problem, n_agents, recipe):
    """A recipe's solver, map and network serve the gradient, or the gradient cannot serve the
    problem under any recipe."""
    for gradient in GRADIENT_NAMES:
        settings = case_settings(recipe, problem, n_agents, gradient)
        case = Case(problem=problem, n_agents=n_agents, gradient=gradient, n_steps=4, **settings)
        training_config(case, steps=5, recipe=recipe)
        reason = METHODS[gradient].supports(build_problem(case))
        if reason is None:
            build(case, 0)
        else:
            with pytest.raises(Unsupported, match=re.escape(reason)):
                build(case, 0)


def test_the_recommended_quadrotor():
    one = case_of("--problem", "quadrotor", "--agents", "1")
    assert (one.map, one.solver, one.network, one.batch_size) == ("newton", "newton", "dense", 50)
    many = case_of("--problem", "quadrotor", "--agents", "20")
    assert (many.network, many.batch_size) == ("shared", 10)
    # The direct policy gets the same kind of network and the same batch.
    direct = case_of("--problem", "quadrotor", "--agents", "20", "--gradient", "direct")
    assert (direct.network, direct.batch_size) == ("shared", 10)


def test_the_recommended_bicycles():
    """One keeps the paper's network and the whole cost; many are told apart and begin with a
    light terminal cost, but not in runs too short for stages."""
    one = case_of("--problem", "bicycle", "--agents", "1")
    assert (one.network, one.batch_size) == ("dense", 100)
    assert training_config(one, time_limit=60.0).terminal_ramp is None
    many = case_of("--problem", "bicycle", "--agents", "20")
    assert (many.network, many.batch_size) == ("assigned", 10)
    assert training_config(many, time_limit=60.0).terminal_ramp == (0.01, 0.3, 0.7)
    assert training_config(many, steps=50).terminal_ramp is None


@pytest.mark.parametrize("gradient", ["jfb", "unrolled", "direct"])
def test_the_schedule_does_not_depend_on_method_or_limit(gradient):
    """Once the limit leaves time for the whole recipe: twice the limit, the same stages."""
    case = case_of("--problem", "quadrotor", "--agents", "6", "--gradient", gradient)
    whole, seconds = LENGTHS["quadrotor"][6]
    for limit in (seconds, 2 * seconds):
        config = training_config(case, time_limit=limit)
        assert (config.full_steps, config.time_limit) == (whole, limit)
    # A shorter limit shortens the schedule, for every method alike.
    assert training_config(case, time_limit=seconds / 4).full_steps == whole / 4
    # Steps on another grid or batch were not timed.
    assert training_config(replace(case, n_steps=8), time_limit=9.0).full_steps is None
    assert training_config(replace(case, batch_size=1), time_limit=9.0).full_steps is None
    # What trains for a number of steps has no other end.
    assert training_config(case, steps=300).time_limit is None


def test_sizes_between_take_the_length_of_the_smaller():
    def length(n_agents: str) -> float | None:
        case = case_of("--problem", "quadrotor", "--agents", n_agents)
        return training_config(case, time_limit=1e9).full_steps

    assert length("5") == length("1") == LENGTHS["quadrotor"][1][0]
    assert length("99") == length("20") == LENGTHS["quadrotor"][20][0]
    released = case_of("--problem", "quadrotor", "--agents", "1", "--recipe", "released")
    assert training_config(released, time_limit=9.0, recipe="released").full_steps is None


def test_what_is_asked_for_wins():
    asked = case_of("--problem", "quadrotor", "--agents", "6", "--map", "scaled", "--batch", "7",
                    "--network", "dense", "--iterations", "9")  # fmt: skip
    assert (asked.map, asked.solver) == ("scaled", "picard")
    assert (asked.network, asked.batch_size) == ("dense", 7)
    assert (asked.max_iterations, asked.tolerance) == (9, None)


def test_the_released_recipe_is_the_released_code():
    """arXiv 2602.00921's code: plain ascent, step 1e-4, 499 iterations, tolerance 0.1 (absolute),
    Adam at 1e-2, plateau."""
    case = case_of("--problem", "consumption", "--agents", "5", "--recipe", "released")
    assert (case.map, case.step_size, case.max_iterations) == ("plain", 1e-4, 499)
    policy = build(case, 0)
    assert policy.solver.tolerance == pytest.approx(0.1)
    config = training_config(case, steps=500, recipe="released")
    assert (config.optimizer, config.learning_rate) == ("adam", 1e-2)
    assert (config.schedule, config.coarsening, config.warm_start) == ("plateau", (), False)
    assert (config.plateau_patience, config.hjb_running, config.hjb_final) == (100, 0.0, 0.0)


@pytest.mark.parametrize("gradient", ["jfb", "unrolled", "direct"])
def test_the_released_recipe_penalises_bicycles(gradient):
    """With the released weights, where there is a value network; and it trains."""
    case = case_of("--problem", "bicycle", "--agents", "1", "--gradient", gradient,
                   "--recipe", "released", "--batch", "2", "--horizon-steps", "3",
                   "--iterations", "2")  # fmt: skip
    config = training_config(case, steps=1, recipe="released")
    expected = (0.0, 0.0) if gradient == "direct" else (1e-4, 1e-2)
    assert (config.hjb_running, config.hjb_final) == expected
    assert Training(build(case, 0), config).run().status == "ok"
    recommended = training_config(case, steps=1)
    assert (recommended.hjb_running, recommended.hjb_final) == (0.0, 0.0)


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="`recipe` must be one of recommended, released"):
        case_of("--problem", "quadrotor", "--agents", "1", "--recipe", "secret")
