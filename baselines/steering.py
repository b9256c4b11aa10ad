"""Fitting several bicycles to one flight and its feedback, by what their networks steer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from baselines.direct import DirectPolicy
from baselines.extremals import Extremals, flown_beside
from jfbcore._random import draw
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Bicycle, Problem
from jfbcore.rollout import InnerStatistics, Rollout

#: how far beside flights points lie: x, y [m], heading [rad], speed [m/s]; what errs once is soon
#: far away, the heading first
_BESIDE = (0.05, 0.05, 0.15, 0.05)
#: steering up to which H keeps a maximiser inside the bound is 0.65 rad; what feedback asks for
#: stays below, and what a flight has beyond is at the bound
_STEADY, _BEYOND = 0.5, 0.66
#: slope of H half way to the bound, where it has to climb for an ascent to get there
_CLIMB = 0.22
#: least and most of the units that steering and acceleration are compared in
_UNITS = ((0.02, 0.3), (0.02, math.inf))
#: times as many agents are in a minibatch as `Supervision.samples` says: there are as many ways
_MORE = 4
#: what a misfit of one counts for in the cost of a rollout after the fit: without it training goes
#: on to the edge of what H has a moderate maximiser for, and loses single states beyond
_WEIGHT = 10.0
#: the learning rate's factor after the fit: larger steps lose what it has learned, to find it again
_RATE = 0.03


class SteeringMisfit:
    """Stands in for the rollout of a training run, as `ReferenceMisfit` does.

    The Hamiltonian of bicycles is not concave: a costate that changes linearly beside a flight soon
    leaves the range in which its maximiser steers moderately, and flips it to the bound. Points
    beside the flights in `found` are therefore compared by the control u = u_0 + K d there:
    grad H has to vanish at u, or, where the flight steers at its bound, to climb half way to it.
    Of a direct policy the control itself is compared. In units of the root mean square of u.

    `found`: one flight of all bicycles; from `initial` states (S, n), agents numbered as the policy
    numbers them, its feedback flies beside it. Both in float64 on the CPU, of `alone`, which is the
    policy's problem in float64. `samples`: as `Supervision` has them.
    """

    def __init__(
        self,
        alone: Problem,
        found: Extremals,
        initial: Tensor,
        policy: Policy,
        samples: int,
        *,
        seed: int,
    ) -> None:
        problem = policy.problem
        assert isinstance(problem, Bicycle)
        pairs = (problem.n_agents, 2)
        self.weight, self.rate = _WEIGHT, _RATE
        self.rows = max(1, _MORE * samples // problem.n_agents)
        self._generator = torch.Generator().manual_seed(seed)
        states, controls, _ = flown_beside(alone, found, initial)
        beside, feedback = states.new_tensor(_BESIDE).repeat(problem.n_agents), found.feedback[0]
        square = controls.square().mean(0) + (feedback * beside).square().sum(2)
        least, most = (states.new_tensor(each) for each in zip(*_UNITS, strict=True))
        units = square.sqrt().unflatten(1, pairs).clamp(least, most)
        steering = found.controls[0].unflatten(1, pairs)[..., 0]
        self._held = (steering.abs() > _BEYOND).to(problem.device)
        parts = found.times, states, controls, feedback, beside, units
        self._times, self._states, self._controls, self._feedback, self._beside, self._units = (
            part.to(problem.device, problem.dtype) for part in parts
        )

    def __call__(self, policy: Policy, initial_states: Tensor, **options: Any) -> Rollout:
        """A Rollout whose `running_cost` is the misfit of each point; its arguments after the
        policy play no part."""
        problem, (flights, steps) = policy.problem, self._states.shape[:2]
        assert isinstance(problem, Bicycle)
        which, when = (
            torch.randint(count, (self.rows,), generator=self._generator).to(problem.device)
            for count in (flights, steps)
        )
        d = self._beside * draw(torch.randn, (self.rows, problem.state_dim), self._generator).to(
            self._states
        )
        t, z = self._times[when], self._states[which, when] + d
        u = self._controls[which, when] + (self._feedback[when] @ d.unsqueeze(2)).squeeze(2)
        steering, acceleration = problem.controls(u)
        if isinstance(policy, DirectPolicy):
            bound = problem.max_steering
            asked = torch.stack((steering.clamp(-bound, bound), acceleration), 2)
            off = policy(t, z).control.view(asked.shape) - asked
        else:
            assert isinstance(policy, HamiltonianPolicy)
            held = self._held[when]
            moderate = steering.clamp(-_STEADY, _STEADY)
            moderate = torch.where(held, 0.5 * problem.max_steering * steering.sign(), moderate)
            at = torch.stack((moderate, acceleration), 2)
            hamiltonian = problem.hamiltonian(t, z, policy.value_network.costate(t, z))
            slope = torch.zeros_like(at)
            slope[..., 0] = torch.where(held, _CLIMB * steering.sign(), 0.0)
            off = hamiltonian.grad(at.flatten(1)).view(at.shape) - slope
        misfit = (off / self._units[when]).square().mean((1, 2))
        return Rollout(misfit, torch.zeros_like(misfit), z, InnerStatistics())
