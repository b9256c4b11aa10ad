"""Selling a portfolio without moving the market too much: an optimum known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass

import torch
from torch import Tensor

from jfbcore._validate import matrix, non_negative, one_size, parameter, positive
from jfbcore.kernels.liquidation import LiquidationHamiltonian
from jfbcore.problems.base import Problem, Time


@dataclass(eq=False, repr=False)
class Liquidation(Problem):
    """Sell m assets over a horizon at least impact and risk (Almgren, Chriss, J. Risk 3, 2000).

    State, (batch, m): holdings x [million shares]. Control, (batch, m): selling rates u [million
    shares a day], x' = -u. Costs are in million dollars: the market gives way by E u [dollars a
    share] while one sells (temporary impact), and the price moves at random with covariance S
    [(dollars a share)^2 a day], of which `risk_aversion` [1 / million dollars] makes a cost:
        L = u' E u + risk_aversion x' S x,    G = final_rate x' E x.
    G is what it costs to sell the rest at the constant rate final_rate x, which takes 1/final_rate
    days; for a large `final_rate` it becomes the source's boundary condition x(T) = 0. The part of
    the source's cost that no strategy changes (permanent impact) is left out.

    E = impact ((1 - cross_impact) I + cross_impact 1 1'), S = volatility^2 ((1 - correlation) I +
    correlation 1 1') unless `covariance`, (m, m), is given, of which the symmetric part counts. The
    defaults are the source's example for every asset: a million shares, five days. `n_agents` is
    another name for `n_assets`.
    """

    name = "liquidation"
    hamiltonian_class = LiquidationHamiltonian

    n_assets: int = None  # type: ignore[assignment]  # the constructor's None becomes a size
    _: KW_ONLY
    n_agents: InitVar[int | None] = None
    impact: float = parameter(2.5, positive)
    cross_impact: float = parameter(0.05, non_negative)
    volatility: float = parameter(0.95, non_negative)
    correlation: float = parameter(0.3, non_negative)
    covariance: Tensor | Sequence[Sequence[float]] | None = None
    risk_aversion: float = parameter(1.0, non_negative)
    final_rate: float = parameter(20.0, positive)
    initial_holdings: float = parameter(1.0, positive)
    initial_scale: float = parameter(0.1, non_negative)
    t_final: float = 5.0
    n_steps: int = 50

    def __post_init__(self, device: str | torch.device, n_agents: int | None) -> None:
        super().__post_init__(device)
        self.n_assets = one_size(n_assets=self.n_assets, n_agents=n_agents)
        self.n_agents = self.state_dim = self.control_dim = self.n_assets
        for name in ("cross_impact", "correlation"):
            if getattr(self, name) >= 1.0:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}")
        if self.covariance is not None:
            self.covariance = matrix("covariance", self.covariance, self.n_assets)
            values = torch.linalg.eigvalsh(self._covariance())
            if values[0] < -1e-9 * values.abs().max():
                raise ValueError(
                    f"`covariance` must have no negative eigenvalue, got one of {values[0]:.3g}"
                )

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """x' = -u: (batch, m), (batch, m) -> (batch, m)."""
        self.check(z=z, u=u)
        return -u

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L = u' E u + risk_aversion x' S x: -> (batch,) [million dollars a day]."""
        self.check(z=z, u=u)
        cost: Tensor = torch.linalg.vecdot(u, self.impact_of(u)) + self.risk(z)
        return cost

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G = final_rate x' E x: (batch, m) -> (batch,) [million dollars]."""
        self.check(z=z)
        cost: Tensor = self.final_rate * torch.linalg.vecdot(z, self.impact_of(z))
        return cost

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """Every holding `initial_holdings` times 1 + initial_scale N(0, 1): (batch, m)."""
        draw = self._normal(batch, self.n_assets, generator)
        return self.initial_holdings * (1.0 + self.initial_scale * draw)

    @property
    def gradient_scale(self) -> float:
        """Norm of the marginal impact where the holdings are sold evenly over the horizon."""
        even = self.initial_holdings / self.t_final
        return 2.0 * self.impact * even * math.sqrt(self.n_assets)

    def impact_of(self, u: Tensor) -> Tensor:
        """E u, (batch, m)."""
        own, shared = (1.0 - self.cross_impact) * self.impact, self.cross_impact * self.impact
        return torch.add(own * u, u.sum(1, keepdim=True), alpha=shared)

    def risk(self, z: Tensor) -> Tensor:
        """risk_aversion x' S x, (batch,) [million dollars a day]."""
        if self.covariance is not None:
            risk: Tensor = torch.linalg.vecdot(z, z @ self._covariance().to(z))
            return self.risk_aversion * risk
        own: Tensor = (1.0 - self.correlation) * torch.linalg.vecdot(z, z)
        shared = self.correlation * z.sum(1).square()
        return self.risk_aversion * self.volatility**2 * (own + shared)

    def optimal_controls(self, z: Tensor) -> Tensor:
        """The optimal selling rates from z(0) = `z` (batch, m) in Euler's steps:
        (batch, n_steps, m).

        The least cost from x is x' P_i x at time step i, with P_n = final_rate E, where the rate
        (E + h P_(i+1))^(-1) P_(i+1) x is optimal: dynamic programming, in float64.
        """
        self.check(z=z)
        E, h = self.impact_of(torch.eye(self.n_assets, dtype=torch.float64)), self.time_step
        risk = h * self.risk_aversion * self._covariance()
        value, gains = self.final_rate * E, list[Tensor]()
        for _ in range(self.n_steps):
            gains.append(torch.linalg.solve(E + h * value, value))
            value = risk + E @ gains[-1]
        holdings, rates = z.double().cpu(), list[Tensor]()
        for gain in reversed(gains):
            rates.append(holdings @ gain.T)
            holdings = holdings - h * rates[-1]
        return torch.stack(rates, 1).to(z)

    def _covariance(self) -> Tensor:
        """S, (m, m) in float64."""
        if self.covariance is not None:
            matrix = torch.tensor(self.covariance, dtype=torch.float64)
            return 0.5 * (matrix + matrix.T)
        identity = torch.eye(self.n_assets, dtype=torch.float64)
        return self.volatility**2 * ((1.0 - self.correlation) * identity + self.correlation)
