"""Supervision: fitting a network to the costates or controls of known optimal trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from baselines.direct import DirectPolicy
from baselines.extremals import Extremals
from baselines.kinds import Choice
from jfbcore import _validate
from jfbcore._random import draw
from jfbcore.extras.network_defaults import network_defaults
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Problem
from jfbcore.rollout import InnerStatistics, Rollout


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The network is fitted to optimal trajectories: a value network to their costates, a direct
    policy to their controls.

    Alone, or before a gradient trains on the cost, which finds what neither does alone (Zhao and
    Han, arXiv 2211.15930, who compare supervision, direct optimisation, and one after the other).
    `share`: the part of a training run, in steps or in seconds, that fits; 1 is all of it. `rate`:
    what the learning rate is multiplied by after it: at the full rate, and on coarser grids, a
    policy that flies well is lost at once.
    `trajectories`: how many there should be for one agent; trajectories of swarms need to be fewer,
    because every agent of one is an example. `samples`: points on and beside trajectories in a
    minibatch. `spread`: how far beside them the points lie, as a share of how far the trajectories
    themselves lie apart: fitted to the trajectories alone, a policy that errs has no idea of the
    way back. `parting`: see `tolerances`.
    """

    share: float = 1.0
    rate: float = 0.1
    trajectories: int = 64
    samples: int = 256
    spread: float = 0.5
    parting: float = 0.0025

    def __post_init__(self) -> None:
        _validate.positive("share", self.share)
        if self.share > 1:
            raise ValueError(f"`share` must be at most 1, got {self.share:g}")
        _validate.positive("rate", self.rate)
        _validate.positive_int("trajectories", self.trajectories)
        _validate.positive_int("samples", self.samples)
        _validate.non_negative("spread", self.spread)
        _validate.non_negative("parting", self.parting)

    def wanted(self, problem: Problem) -> int:
        """How many trajectories of `problem` there should be: at least 4."""
        return max(4, -(-self.trajectories // problem.n_agents))


class ReferenceMisfit:
    """Stands in for the rollout of a training run: the misfit to optimal trajectories is the cost.

    At random points z + d of the trajectories the costate grad phi(t, z + d) is compared with
    p + P d, its first-order expansion there: mean over components of the squared difference, each
    in units of its root mean square at that time. Of a direct policy it is the control, and the
    optimal one with its feedback. d is normal; in units of the trajectories' standard deviation
    over states and time, its own is `supervision.spread`. The same points are drawn from the same
    `seed`.

    `found`: for each kind of flight the `extremals` from the same initial states; of another dtype
    and device than the policy's if need be. They are of the whole problem, or of one agent where
    there is a `choice`. Points are then those of single agents where these share a network; where
    they do not, every agent of a swarm is on a trajectory of its own, all at the same time.

    A network without a gate learns the first kind. One with a gate learns each kind on a branch of
    its own, and the gate learns `choice`.

    Raises TypeError for a policy without anything to fit.
    """

    def __init__(
        self,
        found: Sequence[Extremals],
        supervision: Supervision,
        policy: Policy,
        choice: Choice | None = None,
        *,
        seed: int,
    ) -> None:
        problem, controls = policy.problem, isinstance(policy, DirectPolicy)
        if not isinstance(policy, DirectPolicy | HamiltonianPolicy):
            raise TypeError(f"`policy` must have a network to fit, got {policy!r}")
        #: what it counts for after the fit, and the learning rate's factor then
        self.weight, self.rate = 0.0, supervision.rate
        self.samples, self._choice = supervision.samples, choice
        self._generator = torch.Generator().manual_seed(seed)
        #: what the costates of a trajectory count for in the problem's
        self._share = 1.0
        if choice is not None and not controls:
            self._share = network_defaults(problem).agent_share or 1.0
        states = torch.stack([part.states for part in found])
        values = torch.stack([part.controls if controls else part.costates for part in found])
        slopes = torch.stack([part.feedback if controls else part.slopes for part in found])
        beside = supervision.spread * states.std(1, correction=0).mean(1)
        expected = values.square() + (slopes * beside[:, None, None, None]).square().sum(4)
        # A component that is zero throughout is compared as it is.
        size = expected.mean(1).sqrt()
        size = torch.where(size > 0, size, 1.0)
        parts = found[0].times, states, values, slopes, beside, size
        self._times, self._states, self._values, self._slopes, self._beside, self._size = (
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
        """A Rollout whose `running_cost` is the misfit of each point, (points,): `samples` of them,
        or as many as have `samples` agents.

        `initial_states` and the options of `jfbcore.rollout.rollout` play no part.
        """
        network, of_whole, of_agents = _fitted(policy)
        n_agents, device = policy.problem.n_agents, self._times.device
        if of_agents is None or self._choice is None:
            # One point of a swarm that shares a network is as many of its agents'.
            each = 1 if of_agents is None and self._choice is None else n_agents
            units = 1 if self._choice is None else n_agents
            kinds = torch.zeros(max(1, self.samples // each), units, dtype=torch.long)
            t, z, wanted, size = self._draw(kinds)
            misfit = ((of_whole(t, z) / self._share - wanted) / size).square().mean(1)
            return Rollout(misfit, torch.zeros_like(misfit), z, InnerStatistics())
        agents = torch.randint(n_agents, (self.samples,), generator=self._generator)
        branches = 1 if network.gate is None else len(self._states)
        kinds = torch.randint(branches, (self.samples, 1), generator=self._generator)
        t, z, wanted, size = self._draw(kinds)
        agents, kinds = agents.to(device), kinds[:, 0].to(device)
        misfit = ((of_agents(t, z, agents, kinds) - wanted) / size).square().mean(1)
        if network.gate is not None:
            when, at, agents, right = self._choice.draw(self.samples, self._generator)
            when, at = when.to(t), at.to(z)
            logits = network.gate(when.unsqueeze(1), at, network.indices[agents.to(device)])
            right = right.to(z)
            wrong = binary_cross_entropy_with_logits(logits, right, reduction="none")
            misfit = misfit + wrong
        return Rollout(misfit, torch.zeros_like(misfit), z, InnerStatistics())

    def _draw(self, kinds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points on and beside trajectories of `kinds` (rows, a): times (rows,), states, values and
        their units (rows, a ·)."""
        which = torch.randint(self._states.shape[1], kinds.shape, generator=self._generator)
        when = torch.randint(len(self._times), (len(kinds), 1), generator=self._generator)
        which, when, kinds = (index.to(self._times.device) for index in (which, when, kinds))
        z, wanted = self._states[kinds, which, when], self._values[kinds, which, when]
        d = self._beside[kinds] * draw(torch.randn, z.shape, self._generator).to(z)
        wanted = wanted + (self._slopes[kinds, which, when] @ d.unsqueeze(3)).squeeze(3)
        rows = z + d, wanted, self._size[kinds, when]
        z, wanted, size = (part.flatten(1) for part in rows)
        return self._times[when[:, 0]], z, wanted, size


def _fitted(policy: Policy) -> tuple[Any, Callable[..., Tensor], Callable[..., Tensor] | None]:
    """The network that is fitted, what it says at times and states, and where agents share it what
    it says of single ones."""
    if isinstance(policy, DirectPolicy):
        of_agents = policy.agents_output if policy.shared else None
        return policy, lambda t, z: policy(t, z).control, of_agents
    assert isinstance(policy, HamiltonianPolicy)
    network = policy.value_network
    if isinstance(network, SharedValueNetwork):
        return network, network.costate, network.agents_costate
    return network, network.costate, None


def tolerances(policy: Policy, supervision: Supervision) -> Tensor:
    """How much dearer, relative, a second kind of flight may be for each agent to learn it,
    (n_agents,).

    `supervision.parting` for every other agent and unit of an agent's first index, which may be
    negative: where few are, their own costs decide, among many the index. Without a gate there is
    no choosing, and no agent learns the second kind.
    """
    network, _, of_agents = _fitted(policy)
    n_agents = policy.problem.n_agents
    if of_agents is None or network.gate is None:
        return torch.full((n_agents,), -torch.inf)
    first: Tensor = network.indices[:, 0]
    return supervision.parting * (n_agents - 1) * first
