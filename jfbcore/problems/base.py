"""The interface of a problem, with the sign convention of the whole suite.

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
from dataclasses import InitVar, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._random import draw
from jfbcore._time import Time as Time
from jfbcore.hamiltonian import DerivedHamiltonian
from jfbcore.hamiltonian import Hamiltonian as Hamiltonian


class _Declared(abc.ABC):
    """Attributes of a problem that its constructor sets, whatever it was given for them."""

    n_agents: int
    state_dim: int
    control_dim: int
    device: torch.device


@dataclass(kw_only=True, eq=False, repr=False)
class Problem(_Declared):
    """An optimal-control problem, discretised by left-endpoint Euler on a uniform grid.

    A subclass takes `n_agents` first, passes the other arguments below on, sets `name`, `n_agents`,
    `state_dim` (n) and `control_dim` (m), and writes the four formulas that are abstract here. All
    else has a default; what it overrides for speed is held against the default once, when a policy
    is built (`jfbcore.checks`).

    States and controls are flat and agent-major. Tensors passed to the methods decide the dtype
    and device of the results; `dtype` and `device` say where sampled states live. Rows of a batch
    are independent of each other, and the formulas are differentiable torch operations.
    """

    name: ClassVar[str]
    #: makes H of the problem, t, z and p
    hamiltonian_class: ClassVar[Callable[..., Hamiltonian]] = DerivedHamiltonian

    t_final: float
    n_steps: int
    dtype: torch.dtype = torch.float32
    device: InitVar[str | torch.device] = "cpu"

    def __post_init__(self, device: str | torch.device) -> None:
        self.t_final = _validate.positive("t_final", self.t_final)
        self.n_steps = _validate.positive_int("n_steps", self.n_steps)
        _validate.parameters(self)
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {self.dtype}")
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
    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw z(0), (batch, n), of the problem's dtype and device, from `generator` alone.

        `self._normal` and `self._uniform` draw so that a seed means the same states in every dtype.
        """

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) as a function of the control, for states and costates (batch, n).

        Derived from `dynamics` and `running_cost` unless overridden.
        """
        self.check(z=z, p=p)
        return type(self).hamiltonian_class(self, t, z, p)

    #: of the states of one agent, those whose rates depend on the control; None: all. The costates
    #: of the others reach no control, and compiled rollouts leave them out.
    steered: ClassVar[slice | None] = None

    def initial_control(self, t: Time, z: Tensor) -> Tensor:
        """Where the inner iteration starts, (batch, m), without a graph: zero unless overridden."""
        return z.new_zeros(z.shape[0], self.control_dim)

    def optimal_controls(self, z: Tensor) -> Tensor | None:
        """The exact optimum of this discretised problem from z(0) = `z` (batch, n), open loop:
        (batch, n_steps, m). None unless a problem knows it."""
        return None

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

    def __repr__(self) -> str:
        from jfbcore.extras.description import one_line  # which imports this module

        return one_line(self)

    @property
    def gradient_scale(self) -> float:
        """Typical size of the terms of grad H; tolerances of inner solves are multiples of it."""
        return 1.0

    def initial_costate(self) -> Tensor:
        """A constant costate (n,) that a value network may start from; zero unless H needs it."""
        return torch.zeros(self.state_dim, dtype=self.dtype, device=self.device)

    def _uniform(self, batch: int, width: int, generator: torch.Generator) -> Tensor:
        return self._draw(torch.rand, batch, width, generator)

    def _normal(self, batch: int, width: int, generator: torch.Generator) -> Tensor:
        return self._draw(torch.randn, batch, width, generator)

    def _draw(
        self, sampler: Callable[..., Tensor], batch: int, width: int, generator: torch.Generator
    ) -> Tensor:
        _validate.positive_int("batch", batch)
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator, got {generator!r}")
        return draw(sampler, (batch, width), generator).to(device=self.device, dtype=self.dtype)
