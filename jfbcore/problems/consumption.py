"""Consumption and saving with habit formation over many goods (sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from jfbcore._validate import finite, matrix, non_negative, one_size, parameter, positive
from jfbcore.kernels.consumption import ConsumptionHamiltonian
from jfbcore.problems.base import Problem, Time

_HABIT_FLOOR = 1e-12


@dataclass(eq=False, repr=False)
class Consumption(Problem):
    """Spread wealth over m goods and time when utility counts consumption above a habit.

    State, (batch, 1 + m): wealth x [money], habits h_1..h_m [money/time]. Control, (batch, m):
    consumption rates u_i > h_i [money/time]. Dynamics x' = r x - sum(u), h' = A u^eta - B h^theta
    with componentwise powers; `A` and `B`, (m, m), say which consumption forms which habit and
    which habit wears off which, and are the identity unless given. Minimises the negative of
    discounted CRRA utility of the excess u - h plus bequest utility of the final wealth. With
    eta < 1 the maximiser of H has no closed form and H is not concave everywhere; with eta = 1
    both change. `n_agents` is another name for `n_goods`.

    CRRA utility is -infinity (or undefined) at and below zero. Wealth below `wealth_floor` is
    given the tangent of the bequest there, so that debt stays ever more costly and finite; the
    excess is held within [`min_excess`, `max_excess`], a bound no optimum touches at the
    defaults. `Consumption.released(m)` gives the released code's parameters.
    """

    name = "consumption"
    hamiltonian_class = ConsumptionHamiltonian

    n_goods: int = None  # type: ignore[assignment]  # the constructor's None becomes a size
    _: KW_ONLY
    n_agents: InitVar[int | None] = None
    r: float = parameter(0.3, finite)
    delta: float = parameter(0.01, finite)
    gamma: float = parameter(2.0, positive)
    epsilon: float = parameter(5.0, positive)
    eta: float = parameter(0.9, positive)
    theta: float = parameter(0.9, positive)
    A: Tensor | Sequence[Sequence[float]] | None = None
    B: Tensor | Sequence[Sequence[float]] | None = None
    initial_wealth: float = parameter(25.0, positive)
    initial_habit: float = parameter(0.01, positive)
    initial_scale: float = parameter(0.1, non_negative)
    wealth_floor: float = parameter(0.05, positive)
    min_excess: float = parameter(1e-6, positive)
    max_excess: float = parameter(100.0, positive)
    t_final: float = 2.0
    n_steps: int = 100

    def __post_init__(self, device: str | torch.device, n_agents: int | None) -> None:
        super().__post_init__(device)
        self.n_goods = one_size(n_goods=self.n_goods, n_agents=n_agents)
        self.n_agents = self.control_dim = self.n_goods
        self.state_dim = 1 + self.n_goods
        for name in ("A", "B"):
            if (given := getattr(self, name)) is not None:
                setattr(self, name, matrix(name, given, self.n_goods))
        if self.gamma == 1.0:
            raise ValueError("`gamma` must differ from 1 (log utility is a limit), got 1.0")
        if self.eta > 1.0:
            raise ValueError(f"`eta` must be in (0, 1], got {self.eta}")
        if self.max_excess <= self.min_excess:
            raise ValueError(
                f"`max_excess` must be > `min_excess` = {self.min_excess}, got {self.max_excess}"
            )

    @classmethod
    def released(cls, n_goods: int = 5, **keywords: Any) -> Consumption:
        """The released code's parameters, whose consumption spans five decades."""
        settings = {"r": 3.0, "delta": 0.1, "gamma": 0.5, "epsilon": 0.1, "max_excess": 1e5}
        return cls(n_goods, **(settings | keywords))

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 1 + m), (batch, m) -> (batch, 1 + m); needs u > 0."""
        self.check(z=z, u=u)
        growth = self.r * z[:, :1] - u.sum(1, keepdim=True)
        formed = u.pow(self.eta)
        if self.A is not None:
            formed = formed @ _tensor(self.A, u).T
        return torch.cat((growth, formed - self.habit_decay(z[:, 1:])), 1)

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = -exp(-delta t) sum (u - h)^(1 - gamma) / (1 - gamma): -> (batch,); needs u > h."""
        self.check(z=z, u=u)
        return -self.discount(t) * self.utility(u - z[:, 1:]).sum(1)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = -epsilon x^(1 - gamma) / (1 - gamma), its tangent below the floor: -> (batch,)."""
        self.check(z=z)
        wealth, floor = z[:, 0], self.wealth_floor
        shortfall = (floor - wealth).clamp_min(0.0)
        bequest: Tensor = self.utility(wealth.clamp_min(floor)) - floor**-self.gamma * shortfall
        return -self.epsilon * bequest

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """x = 25 + 0.1 U(0, 1), h = 0.01 + 0.1 U(0, 1): (batch, 1 + m)."""
        states = self.initial_scale * self._uniform(batch, self.state_dim, generator)
        states[:, :1] += self.initial_wealth
        states[:, 1:] += self.initial_habit
        return states

    def initial_control(self, t: Time, z: Tensor) -> Tensor:
        """Habit plus the nominal excess, (batch, m)."""
        return z[:, 1:].detach() + self.nominal_excess

    def initial_costate(self) -> Tensor:
        """Marginal utility of wealth at the nominal excess; with zero, H has no maximiser."""
        costate = super().initial_costate()
        costate[0] = -(self.nominal_excess**-self.gamma)
        return costate

    @property
    def gradient_scale(self) -> float:
        """Euclidean norm of the marginal utilities at the nominal excess."""
        return float(self.nominal_excess**-self.gamma * math.sqrt(self.n_goods))

    @property
    def nominal_excess(self) -> float:
        """Excess consumption per good that would spend 40 % of the initial wealth evenly.

        The rest is for the habits that consumption builds up: at the defaults wealth stays
        positive from 1 to 100 goods.
        """
        even = 0.4 * self.initial_wealth / (self.t_final * self.n_goods)
        return min(max(even, self.min_excess), self.max_excess)

    def habit_decay(self, habits: Tensor) -> Tensor:
        """B h^theta, (batch, m)."""
        worn = habits.clamp_min(_HABIT_FLOOR).pow(self.theta)
        return worn if self.B is None else worn @ _tensor(self.B, worn).T

    def habit_costate(self, p_habits: Tensor) -> Tensor:
        """A^T p_h, (batch, m): what the habits' costates are to the goods that form them."""
        return p_habits if self.A is None else p_habits @ _tensor(self.A, p_habits)

    def utility(self, excess: Tensor) -> Tensor:
        """w^(1 - gamma) / (1 - gamma), in the shape of the excess w > 0."""
        return excess.pow(1.0 - self.gamma) / (1.0 - self.gamma)

    def discount(self, t: Time) -> Time:
        """exp(-delta t), a number or a tensor as `t` is."""
        return (-self.delta * t).exp() if isinstance(t, Tensor) else math.exp(-self.delta * t)


def _tensor(rows: object, like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
