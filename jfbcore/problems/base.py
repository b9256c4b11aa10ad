"""The problem and Hamiltonian interfaces, with the sign convention of the whole suite.

Sign convention, stated here once. The problem is to *minimise*

    E_x [ integral_0^T L(t, z, u) dt + G(z(T)) ],    dz/dt = f(t, z, u),  z(0) = x,

and the Hamiltonian is the sup convention of optimal control,

    H(t, z, p, u) = -<p, f(t, z, u)> - L(t, z, u),

which the control *maximises*. The costate p is the gradient of the value function, so the HJB
equation reads  d/dt phi + min_u {L + <p, f>} = d/dt phi - max_u H = 0,  phi(T, .) = G.
Code that minimises L + <p, f> instead has the opposite sign throughout.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._random import draw

Time = float | Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkScaling:
    """Units for a value network: it sees z/state and returns multiples of `value`.

    `state` is one unit for all coordinates or one for each.
    """

    state: float | tuple[float, ...]
    value: float = 1.0


class Hamiltonian(abc.ABC):
    """H(t, z, p, .) as a function of the control alone, for one batch of (t, z, p).

    Whatever does not depend on the control is computed once in the constructor (or, where only
    `value` needs it, on first use), so that an inner iteration touches tensors of control size
    only. All methods are differentiable with respect to the (z, p) the object was built from
    unless they say otherwise.
    """

    #: the problem this Hamiltonian belongs to, the time, states and costates it was built from
    problem: Problem
    _t: Time
    _z: Tensor
    _p: Tensor
    #: whether the set of admissible controls is a proper subset of R^m
    constrained: bool = False
    #: step size of plain ascent that suits the curvature of H at moderate controls
    plain_step_size: float

    @property
    def inputs(self) -> tuple[Time, Tensor, Tensor]:
        """The (t, z, p) this Hamiltonian was built from, with the graph they came with."""
        return self._t, self._z, self._p

    def dynamics(self, u: Tensor) -> Tensor:
        """f(t, z, u) at this Hamiltonian's own t and z: (batch, m) -> (batch, n).

        The problem's own dynamics; cheaper where the two have something in common.
        """
        return self.problem.dynamics(self._t, self._z, u)

    @abc.abstractmethod
    def control_part(self, u: Tensor) -> Tensor:
        """The part of H that depends on the control: (batch, m) -> (batch,)."""

    @abc.abstractmethod
    def constant_part(self) -> Tensor:
        """The part of H that does not depend on the control, (batch,)."""

    def value(self, u: Tensor) -> Tensor:
        """H(t, z, p, u): (batch, m) -> (batch,)."""
        return self.control_part(u) + self.constant_part()

    @abc.abstractmethod
    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control: (batch, m) -> (batch, m)."""

    @abc.abstractmethod
    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`: (batch, m), (batch, m) -> (batch, m)."""

    @abc.abstractmethod
    def curvature_scaling(self, u: Tensor) -> Tensor:
        """Positive scaling D of the gradient, (batch, m) or (batch, 1), without a graph.

        Chosen so that u + D grad(u) is a contraction near the maximiser where H is concave.
        """

    @abc.abstractmethod
    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        """(-Hessian)^(-1) r, (batch, m), with the Hessian at `u` detached; linear in `r`.

        Where H is not concave the curvature is replaced by a positive one, so that the
        direction stays an ascent direction for r = grad(u).
        """

    def project(self, u: Tensor) -> Tensor:
        """Projection on the admissible controls, (batch, m) -> (batch, m)."""
        return u

    def interior(self, u: Tensor) -> Tensor | None:
        """Mask (batch, m), True where `project` leaves `u` alone; None when unconstrained."""
        return None

    def control_coefficient(self) -> Tensor | None:
        """c = (df/du)^T p, (batch, m), where the dynamics are affine in u; None elsewhere."""
        return None

    def closed_form(self) -> Tensor | None:
        """The maximiser where a formula exists, (batch, m), without a graph; None elsewhere."""
        return None


class Problem(abc.ABC):
    """An optimal-control problem, discretised by left-endpoint Euler on a uniform grid.

    States and controls are flat and agent-major. Tensors passed to the methods decide the dtype
    and device of the results; `dtype` and `device` say where sampled states live.
    """

    name: str
    state_dim: int
    control_dim: int
    n_agents: int
    t_final: float
    n_steps: int
    #: width and depth of the value network used for this problem in arXiv 2602.00921
    network_width: int
    network_depth: int = 3
    #: minibatch size used for this problem in arXiv 2602.00921
    batch_size: int
    #: share of one agent's own cost in the total, where the agents are identical; None elsewhere
    agent_share: float | None = None
    #: units of one agent's state for networks that tell agents apart; None where all are near one
    agent_units: tuple[float, ...] | None = None

    def __init__(
        self, *, t_final: float, n_steps: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        self.t_final = _validate.positive("t_final", t_final)
        self.n_steps = _validate.positive_int("n_steps", n_steps)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
        self._constants: dict[tuple, Tensor] = {}
        self.dtype = dtype
        self.device = torch.device(device)

    @property
    def time_step(self) -> float:
        """h = t_final / n_steps."""
        return self.t_final / self.n_steps

    @abc.abstractmethod
    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """dz/dt = f(t, z, u): (batch, n), (batch, m) -> (batch, n)."""

    @abc.abstractmethod
    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L(t, z, u): (batch, n), (batch, m) -> (batch,)."""

    @abc.abstractmethod
    def terminal_cost(self, z: Tensor) -> Tensor:
        """G(z), its weight included: (batch, n) -> (batch,)."""

    @abc.abstractmethod
    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) as a function of the control, for states and costates (batch, n)."""

    @abc.abstractmethod
    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw z(0), (batch, n). The same generator gives the same states in every dtype."""

    @abc.abstractmethod
    def initial_control(self, t: Time, z: Tensor) -> Tensor:
        """Where the inner iteration starts, (batch, m), without a graph."""

    def __repr__(self) -> str:
        from jfbcore.extras.description import one_line  # which imports this module

        return one_line(self)

    def check(self, **tensors: Tensor) -> None:
        """Raise ValueError unless controls `u` are (batch, m) and all other tensors (batch, n).

        A wrong width would otherwise broadcast, or be reshaped, into a wrong number.
        """
        for name, tensor in tensors.items():
            width = self.control_dim if name == "u" else self.state_dim
            if tensor.dim() != 2 or tensor.shape[1] != width:
                raise ValueError(
                    f"`{name}` must have shape (batch, {width}) for {self.name} with "
                    f"{self.n_agents} agents, got {tuple(tensor.shape)}"
                )

    def constant(self, value: float, like: Tensor) -> Tensor | float:
        """`value` as a 0-d tensor on `like`'s dtype and device, made once.

        Arithmetic between a tensor and a Python number converts the number at every call, which
        in an inner iteration over small tensors costs as much as the arithmetic. While
        torch.compile traces, the number itself: it ends up in the generated code.
        """
        if torch.compiler.is_compiling():
            return value
        key = (value, like.dtype, like.device)
        found = self._constants.get(key)
        if found is None:
            found = self._keep(key, torch.full, (), value)
        return found

    def _keep(self, key: tuple, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A constant `make(*arguments)` of the dtype and on the device that end its `key`."""
        _, dtype, device = key
        # One made in inference mode could not take part in a graph later.
        with torch.inference_mode(False):
            self._constants[key] = made = make(*arguments, dtype=dtype, device=device)
        return made

    @property
    def gradient_scale(self) -> float:
        """Typical size of the terms of grad H; tolerances of inner solves are multiples of it."""
        return 1.0

    def initial_costate(self) -> Tensor:
        """A constant costate (n,) that a value network may start from; zero unless H needs it."""
        return torch.zeros(self.state_dim, dtype=self.dtype, device=self.device)

    def network_scaling(self) -> NetworkScaling | None:
        """Units for a value network where states or values are far from order one."""
        return None

    def _uniform(self, batch: int, width: int, generator: torch.Generator) -> Tensor:
        return self._draw(torch.rand, batch, width, generator)

    def _normal(self, batch: int, width: int, generator: torch.Generator) -> Tensor:
        return self._draw(torch.randn, batch, width, generator)

    def _draw(self, sampler, batch: int, width: int, generator: torch.Generator) -> Tensor:
        _validate.positive_int("batch", batch)
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator, got {generator!r}")
        return draw(sampler, (batch, width), generator).to(device=self.device, dtype=self.dtype)


def time_tensor(t: Time, like: Tensor) -> Tensor:
    """`t` in the precision and on the device of `like`.

    A number is filled in there: copied from the host it would wait for the device.
    """
    if isinstance(t, Tensor):
        return t.to(like)
    return torch.full((), t, dtype=like.dtype, device=like.device)


def time_column(t: Time) -> Time:
    """A time that broadcasts against (batch, k): (batch,) becomes (batch, 1), scalars pass."""
    if isinstance(t, Tensor) and t.dim() == 1:
        return t.unsqueeze(-1)
    return t
