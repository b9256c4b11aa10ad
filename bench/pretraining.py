"""Training with supervision: the part of a run that fits reference trajectories, and its price."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import (
    Choice,
    ReferenceMisfit,
    SteeringMisfit,
    Supervision,
    extremals,
    tolerances,
)
from bench import registry
from bench.case import Case
from bench.reference.solution import in_double
from bench.reference.trajectories import flown_alone, training_references, training_states
from jfbcore.extras.places import places_in
from jfbcore.extras.results import TrainingResult
from jfbcore.extras.schedules import Schedules
from jfbcore.policy import Policy
from jfbcore.problems import Bicycle
from jfbcore.rollout import Rollout
from jfbcore.train import Training

Misfit = ReferenceMisfit | SteeringMisfit
#: flights of several bicycles beside the one that is solved: each bicycle has a way of its own
_FLIGHTS = 64
#: what a step that fits counts for among the whole steps of a recipe: it costs a thirtieth to a
#: seventieth of one
_FIT_STEP = 1.0 / 20.0
#: a sample that costs so many times the median of its minibatch is lost
_LOST = 1.5


def reference_misfit(case: Case, policy: Policy, seed: int = 0) -> tuple[Misfit, float]:
    """What the policy of `case` is fitted with, and the seconds its reference trajectories took.

    Solves them unless they are on file. Raises ValueError where the method of `case` fits nothing.
    """
    supervision = registry.method(case.gradient).supervision
    if supervision is None:
        raise ValueError(f"`gradient` {case.gradient} learns from no reference trajectories")
    problem = policy.problem
    several, places = isinstance(problem, Bicycle) and problem.n_agents > 1, places_in(policy)
    wanted = 1 if several else supervision.wanted(flown_alone(problem))
    start = None  # training states
    if several and places is not None:
        start = places.states.double().cpu().view(1, problem.state_dim)
    known = training_references(problem, wanted, initial_states=start)
    began = time.perf_counter()
    alone = in_double(known.problem)
    found = [extremals(alone, known.initial_states, controls) for controls in known.controls]
    misfit: Misfit
    if several:
        initial = policy.assigned(training_states(problem, _FLIGHTS))
        misfit = SteeringMisfit(alone, found[0], initial, policy, supervision.samples, seed=seed)
    else:
        choice = None
        if known.problem is not problem:
            generator = torch.Generator().manual_seed(seed)
            choice = Choice.between(alone, found, tolerances(policy, supervision), generator)
        misfit = ReferenceMisfit(found, supervision, policy, choice, seed=seed)
    return misfit, known.seconds + time.perf_counter() - began


@dataclass(eq=False)
class Pretraining:
    """A hook of a training run that fits first, as `supervision` says; then `then` rolls out.

    Each part has learning rates of its own, from the highest to the lowest; rollouts are on the
    whole grid and under the whole terminal cost throughout. The parts are divided in the steps of
    the recipe, where it says how many. A misfit with a weight counts in the cost of rollouts after
    the fit, and in their loss. `references`: seconds that the reference trajectories took. `fit`:
    seconds of training steps that fitted, None of a run that was continued after them.
    """

    supervision: Supervision
    misfit: Misfit
    then: Callable[..., Rollout]
    references: float
    fit: float | None = 0.0
    #: whether the first rollout after the fit compiles
    compiling: bool = False

    @classmethod
    def begin(cls, case: Case, training: Training) -> Pretraining | None:
        """Let `training`, which has not run, fit first if the method of `case` does; else None."""
        supervision = registry.method(case.gradient).supervision
        if supervision is None:
            return None
        misfit, seconds = reference_misfit(case, training.policy, training.config.seed)
        begun = cls(supervision, misfit, training.rollout, seconds)
        begun.compiling, training.clock.compiling = training.clock.compiling, False
        training.rollout = misfit
        n_steps = max(1, round(_FIT_STEP * training.problem.n_steps))
        training.schedules = _schedules(training, 1.0, (0.0, supervision.share), n_steps)
        training.hooks.insert(0, begun)
        if training.step > 0:  # it continues from a checkpoint, which may be past the fit
            begun(training)
            begun.fit = begun.fit if training.rollout is begun.misfit else None
        return begun

    def __call__(self, training: Training) -> None:
        if training.rollout is not self.misfit:
            return
        self.fit = training.clock.seconds
        share = self.supervision.share
        if share < 1.0 and training.scheduled() >= share:
            training.rollout = self._beside_fit if self.misfit.weight else self.then
            training.clock.compiling = self.compiling
            rate, n_steps = self.misfit.rate, training.problem.n_steps
            training.schedules = _schedules(training, rate, (share, 1.0), n_steps)
            # The misfit's losses and moments say nothing of the costs to come; a gate, whose
            # gradient is zero from now on, would drift with its own.
            training.guard.forget()
            training.optimizer.forget()

    def _beside_fit(self, policy: Policy, initial_states: Tensor, **options: Any) -> Rollout:
        """A rollout in whose running cost the misfit counts as well, and lost samples do not.

        Where an agent is flipped about, the gradient says nothing of the way back, and is large
        enough to lose others; the misfit says it. A lost sample costs what the median one does.
        """
        flown = self.then(policy, initial_states, **options)
        cost = flown.cost.detach()
        usual = cost.nanmedian()
        lost = ~(cost <= _LOST * usual)
        misfit = self.misfit.weight * self.misfit(policy, initial_states).running_cost.mean()
        return replace(
            flown,
            running_cost=torch.where(lost, usual, flown.running_cost) + misfit,
            terminal_cost=torch.where(lost, 0.0, flown.terminal_cost),
        )

    @property
    def seconds(self) -> dict[str, float | None]:
        """What came before training by the cost, by part."""
        return {"references": self.references, "fit": self.fit}

    def counted(self, result: TrainingResult) -> TrainingResult:
        """`result` with its clock started before the references were solved."""
        curve = [replace(point, seconds=point.seconds + self.references) for point in result.curve]
        return replace(result, curve=curve, seconds=result.seconds + self.references)


def _schedules(
    training: Training, rate: float, part: tuple[float, float], n_steps: int
) -> Schedules:
    """The run's schedules at `rate` times its learning rate, in a `part` of it, without stages, for
    steps that count as those on a grid of `n_steps`."""
    config = replace(
        training.config,
        learning_rate=rate * training.config.learning_rate,
        coarsening=(),
        terminal_ramp=None,
    )
    return Schedules(config, n_steps, part)
