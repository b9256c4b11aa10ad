"""A whole rollout of quadrotors and its way back, one GPU kernel each.

For what `supports` names: a value network, the scaled map, Picard iterations and JFB.
`jfbcore.extras.stepped_rollout` says the same in calls of one compiled time step each, which is
what the kernels are held against.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from jfbcore.jfb import JFB
from jfbcore.kernels.interaction import CUTOFF_SQUARED
from jfbcore.maps import ScaledMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems.quadrotor import Quadrotor
from jfbcore.solvers import Picard
from jfbcore.value_network import ValueNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

#: what a program keeps at a time: rows of the network's first matrix, agents, residual layers
MOST_ROWS, MOST_AGENTS, MOST_LAYERS = 128, 128, 2
#: where the states that a control acts on begin in an agent's twelve: velocities, angular rates
_STEERED = 6
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def supports(policy: Policy) -> str | None:
    """None, or the reason why the kernels cannot serve `policy`."""
    # Exact types: a subclass may say something else.
    problem = policy.problem
    if not isinstance(policy, HamiltonianPolicy) or type(problem) is not Quadrotor:
        return "the kernels are those of quadrotors with a value function"
    network, gradient, recipe = policy.value_network, policy.gradient, policy.fixed_point_map
    if type(network) is not ValueNetwork or network.scaling is not None:
        return "the kernels are those of `ValueNetwork` without scaling"
    if type(recipe) is not ScaledMap or recipe.damping != 1.0:
        return "the kernels are those of `ScaledMap()`"
    if type(policy.solver) is not Picard or type(gradient) is not JFB or gradient.tracked != 1:
        return "the kernels are those of `Picard` and `JFB()`"
    rows = network.opening.shape[0] + network.quadratic.shape[0]
    if rows > MOST_ROWS or problem.n_agents > MOST_AGENTS:
        return f"the kernels hold {MOST_ROWS} rows of a network and {MOST_AGENTS} agents"
    if not 1 <= network.depth - 1 <= MOST_LAYERS:
        return f"the kernels hold up to {MOST_LAYERS} residual layers, and not none"
    return None


def serves(policy: Policy) -> bool:
    """Whether the kernels serve `policy` on its device: float32 on a GPU, and Triton is there."""
    problem = policy.problem
    on_gpu = problem.device.type == "cuda" and problem.dtype == torch.float32
    return on_gpu and _TRITON_IS_INSTALLED and supports(policy) is None


@dataclass
class Flown:
    """What `fly` leaves, coordinates before agents. `coordinates`: of the states, (steps + 1,
    batch, 12, N). `costates`: (steps, batch, 6, N), of the states that controls act on. `kept`:
    (steps, batch, 4, N), the solver's controls. `opened`: what the network's first layer says,
    (steps, batch, rows). `residual`: (steps, batch). `running`: (batch,)."""

    coordinates: Tensor
    costates: Tensor
    kept: Tensor
    opened: Tensor
    residual: Tensor
    running: Tensor

    @property
    def final_state(self) -> Tensor:
        """(batch, n)."""
        return self.coordinates[-1].transpose(1, 2).flatten(1)

    @property
    def states(self) -> Tensor:
        """At the beginning of every time step, (steps, batch, n): a copy."""
        return self.coordinates[:-1].transpose(2, 3).flatten(2)


class FusedSwarm:
    """The two kernels for one policy; of its parameters each call takes what they are then."""

    def __init__(self, policy: HamiltonianPolicy) -> None:
        if (reason := supports(policy)) is not None:
            raise ValueError(reason)
        problem, network = policy.problem, policy.value_network
        assert isinstance(problem, Quadrotor)
        assert isinstance(network, ValueNetwork)
        self.problem, self.network = problem, network

    def fly(
        self, states: Tensor, times: Tensor, step_length: Tensor, count: int, warm_start: bool
    ) -> Flown:
        """Roll out from `states` (batch, n) over the grid `times` (steps,), with `count` steps of
        the solver at every time step."""
        from jfbcore.kernels import _swarm_triton

        problem, network = self.problem, self.network
        batch, steps, n_agents = len(states), len(times), problem.n_agents
        matrix, table = network.prepare(times)
        opened = matrix.shape[0]
        new = states.new_empty
        flown = Flown(
            new(steps + 1, batch, 12, n_agents),
            new(steps, batch, _STEERED, n_agents),
            new(steps, batch, 4, n_agents),
            new(steps, batch, opened),
            new(steps, batch),
            new(batch),
        )
        flown.coordinates[0] = states.view(batch, n_agents, 12).transpose(1, 2)
        closing = _aligned(_by_coordinate(matrix, _STEERED).T)
        linear = _by_coordinate(network.linear[None], _STEERED)
        _swarm_triton.there[(batch,)](
            *(flown.coordinates, flown.costates, flown.kept, flown.opened),
            *(flown.residual, flown.running),
            *(_by_coordinate(matrix), closing, table, linear, *self._layers(), step_length),
            *(batch, steps, count),
            **self._constants(opened, closing.shape[1]),
            ROW=table.shape[1],
            G=problem.g,
            WARM_START=warm_start,
        )
        return flown

    def pull_back(
        self, flown: Flown, step_length: Tensor, z_bar: Tensor, running_bar: Tensor
    ) -> Tensor:
        """Cotangents of the costates, (steps, batch, n), for those of the final state (batch, n)
        and of the running cost (batch,)."""
        from jfbcore.kernels import _swarm_triton

        matrix = torch.cat((self.network.opening, self.network.quadratic))
        turned = _aligned(_by_coordinate(matrix).T)
        bars = torch.empty_like(flown.costates)
        steps, batch, _, n_agents = bars.shape
        z_bar = z_bar.view(batch, n_agents, 12).transpose(1, 2).contiguous()
        _swarm_triton.back[(batch,)](
            *(flown.coordinates, flown.costates, flown.kept, flown.opened),
            *(z_bar, torch.empty_like(z_bar), running_bar.contiguous(), bars),
            *(_by_coordinate(matrix, _STEERED), turned, *self._layers(), step_length),
            *(batch, steps),
            **self._constants(matrix.shape[0], turned.shape[1]),
        )
        whole = bars.new_zeros(steps, batch, n_agents, 12)
        whole[..., _STEERED:] = bars.transpose(2, 3)
        return whole.flatten(2)

    def _layers(self) -> tuple[Any, ...]:
        network = self.network
        layers = range(network.depth - 1)
        weights = tuple(network.weights[i] for i in layers)
        return network.readout, weights, tuple(network.biases[i] for i in layers)

    def _constants(self, opened: int, stride: int) -> Mapping[str, Any]:
        """What the kernels are compiled for."""
        problem, network = self.problem, self.network
        agents = _power(problem.n_agents)
        # On an H100 more warps are no faster: they wait for each other.
        warps = 8 if problem.n_agents > 32 else 4
        return {
            "N": problem.n_agents,
            "AGENTS": agents,
            "WIDTH": network.width,
            "OPEN": opened,
            "PADDED": _power(opened),
            "STRIDE": stride,
            "N_LAYERS": network.depth - 1,
            "RESIDUAL_STEP": network.residual_step,
            "MASS": problem.mass,
            "INTERACTION": problem.interaction_weight,
            "CUTOFF": CUTOFF_SQUARED,
            "BLOCK": min(8 * warps, _power(_STEERED * problem.n_agents)),
            "OTHERS": min(32, agents),
            "num_warps": warps,
        }


def _power(number: int) -> int:
    """The power of two from `number` on."""
    return 1 << (number - 1).bit_length()


def _by_coordinate(matrix: Tensor, first: int = 0) -> Tensor:
    """The columns of `matrix` (rows, 12 N), of the coordinates from `first` on, with coordinates
    before agents: (rows, (12 - first) N)."""
    columns = matrix.view(len(matrix), -1, 12)[..., first:]
    return columns.transpose(1, 2).flatten(1).contiguous()


def _aligned(matrix: Tensor) -> Tensor:
    """`matrix` with columns of zeros, so that every row begins at a multiple of 16 bytes."""
    return functional.pad(matrix, (0, -matrix.shape[1] % 8)).contiguous()
