"""Selling a portfolio without moving the market too much: an optimum known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.liquidation import LiquidationHamiltonian
from jfbcore.problems.base import Hamiltonian, Problem, Time


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
    defaults are the source's example for every asset: a million shares, five days.

    The optimum is linear in x: `optimal_controls` and `optimal_cost` are exact for this very
    problem in Euler's steps, `continuous_holdings` and `continuous_cost` the limit of small steps.
    """

    name = "liquidation"

    def __init__(
        self,
        n_assets: int | None = None,
        *,
        n_agents: int | None = None,
        impact: float = 2.5,
        cross_impact: float = 0.05,
        volatility: float = 0.95,
        correlation: float = 0.3,
        covariance: Tensor | Sequence[Sequence[float]] | None = None,
        risk_aversion: float = 1.0,
        final_rate: float = 20.0,
        initial_holdings: float = 1.0,
        initial_scale: float = 0.1,
        t_final: float = 5.0,
        n_steps: int = 50,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(t_final=t_final, n_steps=n_steps, dtype=dtype, device=device)
        if n_assets is not None and n_agents is not None:
            raise TypeError("`n_agents` is another name for `n_assets`; give one of them")
        name, given = ("n_agents", n_agents) if n_assets is None else ("n_assets", n_assets)
        self.n_assets = _validate.positive_int(name, 1 if given is None else given)
        self.n_agents = self.state_dim = self.control_dim = self.n_assets
        self.impact = _validate.positive("impact", impact)
        self.cross_impact = _share("cross_impact", cross_impact)
        self.volatility = _validate.non_negative("volatility", volatility)
        self.correlation = _share("correlation", correlation)
        self.covariance = None
        if covariance is not None:
            self.covariance = _validate.matrix("covariance", covariance, self.n_assets)
            smallest = torch.linalg.eigvalsh(self._covariance()).min().item()
            if smallest < -1e-9 * self._covariance().abs().max().item():
                raise ValueError(
                    f"`covariance` must have no negative eigenvalue, got one of {smallest:.3g}"
                )
        self.risk_aversion = _validate.non_negative("risk_aversion", risk_aversion)
        self.final_rate = _validate.positive("final_rate", final_rate)
        self.initial_holdings = _validate.positive("initial_holdings", initial_holdings)
        self.initial_scale = _validate.non_negative("initial_scale", initial_scale)

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

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) with all that does not depend on the control computed: see the class."""
        self.check(z=z, p=p)
        return LiquidationHamiltonian(self, t, z, p)

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
            matrix = torch.tensor(self.covariance, dtype=z.dtype, device=z.device)
            risk: Tensor = self.risk_aversion * torch.linalg.vecdot(z, z @ matrix)
            return risk
        own: Tensor = (1.0 - self.correlation) * torch.linalg.vecdot(z, z)
        shared = self.correlation * z.sum(1).square()
        return self.risk_aversion * self.volatility**2 * (own + shared)

    def optimal_controls(self, z: Tensor) -> Tensor:
        """The optimal selling rates from z(0) = `z` (batch, m) in Euler's steps:
        (batch, n_steps, m).

        In the modes y = U' E^(1/2) x that diagonalise E^(-1/2) S E^(-1/2), costs are
        h v^2 + h kappa^2 y^2 a step and P_n y^2 = final_rate y^2 at the end: dynamic programming
        gives v_i = P_(i+1) y_i / (1 + h P_(i+1)), P_i = h kappa^2 + P_(i+1) / (1 + h P_(i+1)).
        """
        self.check(z=z)
        _, to_modes, from_modes = self._modes()
        holdings, h, rates = z.double().cpu() @ to_modes, self.time_step, []
        for value in self._riccati()[1:]:
            rates.append(holdings * value / (1.0 + h * value))
            holdings = holdings - h * rates[-1]
        return (torch.stack(rates, 1) @ from_modes).to(z)

    def optimal_cost(self, z: Tensor) -> Tensor:
        """The least cost from z(0) = `z` (batch, m) in Euler's steps, (batch,), by the same."""
        self.check(z=z)
        holdings = z.double().cpu() @ self._modes()[1]
        return (holdings.square() @ self._riccati()[0]).to(z)

    def continuous_holdings(self, z: Tensor, times: Tensor) -> Tensor:
        """The optimal x(t) in continuous time, (batch, len(times), m), from z(0) = `z`.

        A mode is y(0) (kappa cosh(kappa s) + k sinh(kappa s)) / (kappa cosh(kappa T) + k
        sinh(kappa T)), s = T - t, k = final_rate: for k to infinity the source's
        sinh(kappa s) / sinh(kappa T).
        """
        self.check(z=z)
        kappa, to_modes, from_modes = self._modes()
        left = (self.t_final - times.double().cpu()).unsqueeze(1)

        def shape(s: Tensor | float) -> Tensor:  # over exp(kappa T), which may overflow
            rise, fall = (
                torch.exp(kappa * (s - self.t_final)),
                torch.exp(-kappa * (s + self.t_final)),
            )
            return kappa * (rise + fall) + self.final_rate * (rise - fall)

        share = shape(left) / shape(self.t_final)
        return ((z.double().cpu() @ to_modes).unsqueeze(1) * share @ from_modes).to(z)

    def continuous_cost(self, z: Tensor) -> Tensor:
        """The least cost in continuous time, (batch,): kappa (kappa tanh(kappa T) + k) /
        (kappa + k tanh(kappa T)) times y(0)^2, summed over the modes."""
        self.check(z=z)
        kappa, to_modes, _ = self._modes()
        bend, k = torch.tanh(kappa * self.t_final), self.final_rate
        weight = kappa * (kappa * bend + k) / (kappa + k * bend)
        return ((z.double().cpu() @ to_modes).square() @ weight).to(z)

    def _covariance(self) -> Tensor:
        """S, (m, m) in float64."""
        if self.covariance is not None:
            matrix = torch.tensor(self.covariance, dtype=torch.float64)
            return 0.5 * (matrix + matrix.T)
        return self.volatility**2 * _mixture(self.correlation, self.n_assets)

    def _modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """kappa (m,), and the matrices that turn rows of holdings into modes and back."""
        values, vectors = torch.linalg.eigh(
            self.impact * _mixture(self.cross_impact, self.n_assets)
        )
        root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
        squares, modes = torch.linalg.eigh(
            self.risk_aversion * inverse @ self._covariance() @ inverse
        )
        # Without risk kappa is zero, where the formulas have limits: one close by gives them.
        return squares.clamp_min(1e-14).sqrt(), root @ modes, modes.T @ inverse

    def _riccati(self) -> Tensor:
        """P of every time step and of the end, (n_steps + 1, m)."""
        kappa, h = self._modes()[0], self.time_step
        values = [torch.full_like(kappa, self.final_rate)]
        for _ in range(self.n_steps):
            values.append(h * kappa.square() + values[-1] / (1.0 + h * values[-1]))
        return torch.stack(values[::-1])


def _share(name: str, value: float) -> float:
    number = _validate.non_negative(name, value)
    if number >= 1.0:
        raise ValueError(f"`{name}` must be in [0, 1), got {value}")
    return number


def _mixture(share: float, size: int) -> Tensor:
    """(1 - share) I + share 1 1', (size, size) in float64."""
    return (1.0 - share) * torch.eye(size, dtype=torch.float64) + share
