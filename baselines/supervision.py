"""Supervision: fitting the value network to the costates of known optimal trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.extremals import Extremals
from jfbcore import _validate
from jfbcore._random import draw
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Problem
from jfbcore.rollout import InnerStatistics, Rollout


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The value network is fitted to the costates of optimal trajectories.

    Alone, or before a gradient trains on the cost, which finds what neither does alone (Zhao and
    Han, arXiv 2211.15930, who compare supervision, direct optimisation, and one after the other).
    `share`: the part of a training run, in steps or in seconds, that fits; 1 is all of it. `rate`:
    what the learning rate is multiplied by after it: at the full rate, and on coarser grids, a
    policy that flies well is lost at once.
    `trajectories`: how many there should be for one agent; swarms need fewer, because every agent
    of a trajectory is an example. `samples`: points on and beside them in a minibatch. `spread`:
    how far beside them the points lie, as a share of how far the trajectories themselves lie apart:
    fitted to the trajectories alone, a policy that errs has no idea of the way back.
    """

    share: float = 1.0
    rate: float = 0.1
    trajectories: int = 64
    samples: int = 256
    spread: float = 0.5

    def __post_init__(self) -> None:
        _validate.positive("share", self.share)
        if self.share > 1:
            raise ValueError(f"`share` must be at most 1, got {self.share:g}")
        _validate.positive("rate", self.rate)
        _validate.positive_int("trajectories", self.trajectories)
        _validate.positive_int("samples", self.samples)
        _validate.non_negative("spread", self.spread)

    def wanted(self, problem: Problem) -> int:
        """How many trajectories of `problem` there should be: at least 4."""
        return max(4, -(-self.trajectories // problem.n_agents))


class ReferenceMisfit:
    """Stands in for the rollout of a training run: the misfit to optimal trajectories is the cost.

    At random points z + d of the trajectories the costate grad phi(t, z + d) is compared with
    p + P d, its first-order expansion there: mean over components of the squared difference, each
    in units of its root mean square at that time. d is normal; in units of the trajectories'
    standard deviation over states and time, its own is `supervision.spread`. The same points are
    drawn from the same `seed`.

    `found`: see `extremals`; it may be of another dtype and device than the policy's.
    """

    def __init__(self, found: Extremals, supervision: Supervision, problem: Problem, *, seed: int):
        self.samples = supervision.samples
        self._generator = torch.Generator().manual_seed(seed)
        beside = supervision.spread * found.states.std(0, correction=0).mean(0)
        expected = found.costates.square() + (found.slopes * beside).square().sum(3)
        # A component that is zero throughout is compared as it is.
        size = expected.mean(0).sqrt()
        size = torch.where(size > 0, size, 1.0)
        parts = found.times, found.states, found.costates, found.slopes, beside, size
        self._times, self._states, self._costates, self._slopes, self._beside, self._size = (
            part.to(problem.device, problem.dtype) for part in parts
        )

    def __call__(
        self,
        policy: Policy,
        initial_states: Tensor,
        *,
        n_steps: int | None = None,
        warm_start: bool = False,
        penalties: bool = False,
    ) -> Rollout:
        """A Rollout whose `running_cost` is the misfit of each of `samples` points, (samples,).

        `initial_states` and the options of `jfbcore.rollout.rollout` play no part. Raises TypeError
        for a policy without a value network.
        """
        if not isinstance(policy, HamiltonianPolicy):
            raise TypeError(f"`policy` must have a value network to fit, got {policy!r}")
        t, z, p, size = self._draw()
        misfit = ((policy.value_network.costate(t, z) - p) / size).square().mean(1)
        return Rollout(misfit, torch.zeros_like(misfit), z, InnerStatistics())

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Times (samples,); states, costates and their units, (samples, n) each."""
        count, n_steps, n = self._states.shape
        which, when = (
            torch.randint(limit, (self.samples,), generator=self._generator).to(self._times.device)
            for limit in (count, n_steps)
        )
        z, p = self._states[which, when], self._costates[which, when]
        d = self._beside * draw(torch.randn, (self.samples, n), self._generator).to(z)
        p = p + (self._slopes[which, when] @ d.unsqueeze(2)).squeeze(2)
        return self._times[when], z + d, p, self._size[when]
