"""How the guard tells a run that has drifted away from one whose objective has become dearer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jfbcore.extras.guard import Guard, GuardSettings

SETTINGS = GuardSettings(
    window=4, snapshot_interval=4, jump_factor=1e6, jump_offset=0.0, recovery=2.0
)


class Run:
    """Training in one number: every step sets the only parameter and has a loss."""

    def __init__(self, settings: GuardSettings = SETTINGS) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.guard = Guard(settings, self.module)
        self.step = 0

    @property
    def parameter(self) -> float:
        return self.module.weight.item()

    def take(self, parameter: float, loss: float, objective=None) -> str | None:
        """A step with this parameter and loss; `objective(parameter)` gives a loss as of now."""
        with torch.no_grad():
            self.module.weight.fill_(parameter)
        reason = self.guard.inspect(loss, 1.0)
        if reason is None:
            reason = self.guard.look_back(loss, lambda: objective(self.parameter))
        if reason is None:
            self.guard.accept(loss)
        else:
            self.guard.reject(self.step, reason)
        self.step += 1
        return reason


def unused(parameter: float) -> float:
    raise AssertionError("the objective was asked for without need")


def climb(run: Run, objective, start: float = 10.0, growth: float = 1.1) -> tuple[int, str]:
    """Forty steps at `start`, then a slow climb until the guard steps in: after how many steps."""
    for _ in range(40):
        assert run.take(1.0, start, unused) is None
    for k in range(1, 100):
        loss = start + (growth**k - 1.0) * abs(start)
        if (reason := run.take(1.0 + k, loss, objective)) is not None:
            return k, reason
    raise AssertionError("nothing happened in a hundred steps")


@pytest.mark.parametrize("start", [10.0, -10.0])
def test_a_climb_too_slow_for_a_jump_ends_where_it_began(start):
    """Losses of either sign: twice as dear is the size of the loss above it."""
    run = Run()
    steps, reason = climb(run, lambda parameter: start if parameter == 1.0 else 1e3, start)
    # The median of the last four losses, 2.5 steps back, passes twice the least: 1.1^7.3 = 2. It
    # is looked at every fourth step.
    assert 9 < steps <= 14
    assert reason.startswith("loss drifted to a median of ")
    assert f"from {start:.4g}; the parameters of then give {start:.4g} here" in reason
    assert run.parameter == 1.0
    assert len(run.guard.interventions) == 1


def test_the_rate_stays_lower_after_a_drift():
    run = Run()
    climb(run, lambda parameter: 10.0)
    assert run.guard.learning_rate_scale == 0.5
    for _ in range(10):
        run.take(1.0, 10.0, unused)
    assert run.guard.learning_rate_scale == 0.5
    climb(run, lambda parameter: 10.0)
    assert run.guard.learning_rate_scale == 0.25


def test_an_objective_that_has_become_dearer_is_no_drift():
    """The parameters of then would lose as much now: what there is stays, and counts as best."""
    run = Run()
    for _ in range(8):
        run.take(1.0, 10.0, unused)
    asked = []

    def objective(parameter: float) -> float:
        asked.append(parameter)
        return 21.0

    for k in range(1, 30):
        assert run.take(1.0 + k, min(10.0 * 1.1**k, 30.0), objective) is None
        assert run.parameter == 1.0 + k
    # Once for the parameters of the first steps; medians of up to 30 are below twice the next.
    assert asked == [1.0]
    assert run.guard.learning_rate_scale == 1.0


def test_best_parameters_that_are_no_longer_finite_are_not_taken_back():
    run = Run()
    for _ in range(8):
        run.take(1.0, 10.0, unused)
    for k in range(1, 20):
        assert run.take(1.0 + k, 10.0 * 1.1**k, lambda parameter: math.nan) is None


def test_another_grid_has_no_best_parameters_yet():
    run = Run()
    for _ in range(8):
        run.take(1.0, 10.0, unused)
    run.guard.forget()
    for k in range(20):
        assert run.take(2.0 + k, 100.0, unused) is None


def test_the_best_parameters_survive_a_checkpoint():
    first, second = Run(), Run()
    for _ in range(8):
        first.take(1.0, 10.0, unused)
    second.guard.load_state_dict(first.guard.state_dict())
    climb(second, lambda parameter: 10.0)
    assert second.parameter == 1.0
    third = Run()
    third.guard.load_state_dict(second.guard.state_dict())
    for _ in range(10):
        third.take(1.0, 10.0, unused)
    assert third.guard.learning_rate_scale == 0.5


@pytest.mark.parametrize("usual", [10.0, -10.0])
def test_losses_are_expected_to_grow_with_the_objective(usual):
    settings = GuardSettings(window=4, jump_factor=3.0, jump_offset=0.0)
    run = Run(settings)
    for _ in range(4):
        assert run.take(1.0, usual) is None
    run.guard.rescale(4.0)
    grown = usual + 3.0 * abs(usual)
    assert run.take(1.0, grown) is None
    limit = grown + 2.0 * abs(grown)
    assert run.take(1.0, limit) is None
    assert "loss jumped" in run.take(1.0, limit + 1.0)
