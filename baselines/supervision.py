"""Supervision: fitting a network to the costates or controls of known optimal trajectories."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.direct import DirectPolicy
from baselines.extremals import Extremals
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
    because every agent of one is an example. `second`: where a swarm learns from trajectories of
    one agent that have two kinds, the share of its agents that learn the second. `samples`: points
    on and beside trajectories in a minibatch. `spread`: how far beside them the points lie, as a
    share of how far the trajectories themselves lie apart: fitted to the trajectories alone, a
    policy that errs has no idea of the way back.
    """

    share: float = 1.0
    rate: float = 0.1
    trajectories: int = 64
    samples: int = 256
    spread: float = 0.5
    second: float = 0.4

    def __post_init__(self) -> None:
        _validate.positive("share", self.share)
        if self.share > 1:
            raise ValueError(f"`share` must be at most 1, got {self.share:g}")
        _validate.positive("rate", self.rate)
        _validate.positive_int("trajectories", self.trajectories)
        _validate.positive_int("samples", self.samples)
        _validate.non_negative("spread", self.spread)
        _validate.non_negative("second", self.second)
        if self.second > 1:
            raise ValueError(f"`second` must be at most 1, got {self.second:g}")

    def wanted(self, problem: Problem) -> int:
        """How many trajectories of `problem` there should be: at least 4."""
        return max(4, -(-self.trajectories // problem.n_agents))


class ReferenceMisfit:
    """Stands in for the rollout of a training run: the misfit to optimal trajectories is the cost.

    At random points z + d of the trajectories the costate grad phi(t, z + d) is compared with
    p + P d, its first-order expansion there: mean over components of the squared difference, each
    in units of its root mean square at that time. With `controls` it is the control of a direct
    policy, and the optimal one with its feedback. d is normal; in units of the trajectories'
    standard deviation over states and time, its own is `supervision.spread`. The same points are
    drawn from the same `seed`.

    `found`: see `extremals`; it may be of another dtype and device than the policy's. It is of the
    whole problem, or of one agent of a swarm. Then `kinds` (S,) numbers the kind of flight of each
    trajectory from 0, and `flown` (n_agents,) says which kind each agent learns. Points are those
    of single agents where they share a network; elsewhere every agent of a swarm is on a
    trajectory of its own, all at the same time.
    """

    def __init__(
        self,
        found: Extremals,
        supervision: Supervision,
        problem: Problem,
        *,
        seed: int,
        kinds: Tensor | None = None,
        flown: Tensor | None = None,
        controls: bool = False,
    ) -> None:
        self.samples = supervision.samples
        self._generator = torch.Generator().manual_seed(seed)
        self._device = problem.device
        #: what the costates of a trajectory count for in the problem's
        whole = flown is None or controls
        self._share = 1.0 if whole else network_defaults(problem).agent_share or 1.0
        self._flown = torch.zeros(1, dtype=torch.long) if flown is None else flown
        kinds = torch.zeros(len(found.states), dtype=torch.long) if kinds is None else kinds
        # Trajectories of a kind one after the other: how many there are, and where they begin.
        order = kinds.argsort(stable=True)
        self._counts = kinds.bincount()
        self._first = self._counts.cumsum(0) - self._counts
        besides, sizes = [], []
        self._controls = controls
        wanted = (found.controls, found.feedback) if controls else (found.costates, found.slopes)
        for kind in range(len(self._counts)):
            states, values, slopes = (part[kinds == kind] for part in (found.states, *wanted))
            besides.append(supervision.spread * states.std(0, correction=0).mean(0))
            expected = values.square() + (slopes * besides[-1]).square().sum(3)
            # A component that is zero throughout is compared as it is.
            size = expected.mean(0).sqrt()
            sizes.append(torch.where(size > 0, size, 1.0))
        trajectories = (part[order] for part in (found.states, *wanted))
        parts = found.times, *trajectories, torch.stack(besides), torch.stack(sizes)
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

        `initial_states` and the options of `jfbcore.rollout.rollout` play no part. Raises TypeError
        for a policy without what is fitted.
        """
        of_whole, of_agents = self._functions(policy)
        count = len(self._flown)
        if of_agents is not None and count > 1:
            agents = torch.randint(count, (self.samples, 1), generator=self._generator)
            of_these = functools.partial(of_agents, agents=agents[:, 0].to(self._device))
            z, misfit = self._misfit(of_these, self._flown[agents])
        else:
            # One point of a swarm that shares a network is as many of its agents'.
            agents_each = count if of_agents is None else policy.problem.n_agents
            kinds = self._flown.expand(max(1, self.samples // agents_each), -1)
            z, misfit = self._misfit(of_whole, kinds, self._share)
        return Rollout(misfit, torch.zeros_like(misfit), z, InnerStatistics())

    def _functions(
        self, policy: Policy
    ) -> tuple[Callable[..., Tensor], Callable[..., Tensor] | None]:
        """What is fitted, as a function of times and states, and where agents share a network the
        same of single `agents`."""
        if self._controls and isinstance(policy, DirectPolicy):
            of_agents = policy.agents_output if policy.shared else None
            return lambda t, z: policy(t, z).control, of_agents
        if not self._controls and isinstance(policy, HamiltonianPolicy):
            network = policy.value_network
            if isinstance(network, SharedValueNetwork):
                return network.costate, network.agents_costate
            return network.costate, None
        what = "be a direct policy" if self._controls else "have a value network"
        raise TypeError(f"`policy` must {what} to be fitted, got {policy!r}")

    def _misfit(
        self, function: Callable[..., Tensor], kinds: Tensor, share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """States (rows, a n) of a trajectories of `kinds` (rows, a) at a time, and the misfit of
        `function` to `share` times their values, (rows,)."""
        place = draw(torch.rand, kinds.shape, self._generator) * self._counts[kinds]
        when = torch.randint(len(self._times), (len(kinds), 1), generator=self._generator)
        indices = self._first[kinds] + place.long(), when, kinds
        which, when, kinds = (index.to(self._device) for index in indices)
        z, p = self._states[which, when], self._values[which, when]
        d = self._beside[kinds] * draw(torch.randn, z.shape, self._generator).to(z)
        p = p + (self._slopes[which, when] @ d.unsqueeze(3)).squeeze(3)
        z = (z + d).flatten(1)
        off = (function(self._times[when[:, 0]], z) / share - p.flatten(1)).view_as(p)
        return z, (off / self._size[kinds, when]).square().mean((1, 2))


def kinds_flown(policy: Policy, supervision: Supervision) -> Tensor:
    """Which of two kinds of flight each agent learns, (n_agents,): 0 or 1.

    `supervision.second` is the share of the second. It goes to the agents whose index has the
    largest first number, which a network learns at once; to the first agents of a dense network;
    and to none of a shared one without indices, which cannot tell its agents apart.
    """
    n_agents = policy.problem.n_agents
    flown, order = torch.zeros(n_agents, dtype=torch.long), torch.arange(n_agents)
    network = policy.value_network if isinstance(policy, HamiltonianPolicy) else policy
    if isinstance(network, SharedValueNetwork | DirectPolicy) and network.indices is not None:
        order = network.indices[:, 0].cpu().argsort(descending=True)
    elif isinstance(network, SharedValueNetwork) or (
        isinstance(network, DirectPolicy) and network.shared
    ):
        return flown
    flown[order[: round(supervision.second * n_agents)]] = 1
    return flown
