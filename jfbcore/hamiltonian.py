"""The Hamiltonian of a problem as a function of the control, and the one derived from formulas.

H(t, z, p, u) = -<p, f(t, z, u)> - L(t, z, u) is maximised by the control (`jfbcore.problems.base`
states the convention). `DerivedHamiltonian` needs nothing but f and L: automatic differentiation
gives its gradient and Hessian products, and from these follow the Newton direction and the scaling
of the fixed-point map. A problem may return a faster `Hamiltonian` of its own; `jfbcore.checks`
holds it against the derived one.
"""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore._derivatives import gradient, hessian_product
from jfbcore._spectrum import extreme_eigenvalues, inverse_diagonal, usable, without_pattern

if TYPE_CHECKING:
    from jfbcore._time import Time
    from jfbcore.problems.base import Problem

#: numbers of controls up to which the derived Hamiltonian assembles its (batch, m, m) Hessian
MOST_DENSE = 32
#: shares of a step of which the longest that does not decrease H is taken
_SHARES = (1.0, 8.0**-1, 8.0**-2, 8.0**-3, 8.0**-4, 8.0**-5)


class Hamiltonian(abc.ABC):
    """H(t, z, p, .) as a function of the control alone, for one batch of (t, z, p).

    Whatever does not depend on the control is computed once, so that an inner iteration touches
    tensors of control size only. Methods are differentiable with respect to the (z, p) the object
    was built from unless they say otherwise. Controls and directions are (batch, m).
    """

    #: the problem this Hamiltonian belongs to, the time, states and costates it was built from
    problem: Problem
    _t: Time
    _z: Tensor
    _p: Tensor
    #: whether the set of admissible controls is a proper subset of R^m
    constrained: bool = False
    #: step size of plain ascent that suits the curvature of H at moderate controls: a number, or
    #: (batch, 1) without a graph
    plain_step_size: float | Tensor

    @property
    def inputs(self) -> tuple[Time, Tensor, Tensor]:
        """The (t, z, p) this Hamiltonian was built from, with the graph they came with."""
        return self._t, self._z, self._p

    def dynamics(self, u: Tensor) -> Tensor:
        """f(t, z, u), (batch, n), at this Hamiltonian's own t and z: the problem's dynamics, or
        the same cheaper where the two have something in common."""
        return self.problem.dynamics(self._t, self._z, u)

    @abc.abstractmethod
    def control_part(self, u: Tensor) -> Tensor:
        """The part of H that depends on the control, (batch,)."""

    @abc.abstractmethod
    def constant_part(self) -> Tensor:
        """The part of H that does not depend on the control, (batch,)."""

    def value(self, u: Tensor) -> Tensor:
        """H(t, z, p, u), (batch,)."""
        return self.control_part(u) + self.constant_part()

    @abc.abstractmethod
    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control, (batch, m)."""

    @abc.abstractmethod
    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`, (batch, m)."""

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
        """Projection on the admissible controls, (batch, m)."""
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


class DerivedHamiltonian(Hamiltonian):
    """H and its derivatives from a problem's `dynamics` and `running_cost`.

    Prefer it unless inner iterations dominate the time: every one evaluates both formulas several
    times. A subclass with the same constructor may add bounds on the control (`constrained`,
    `project`, `interior`).

    Up to `MOST_DENSE` controls the Hessian (batch, m, m) is assembled: `newton_direction` is then
    Newton's, with the absolute values of eigenvalues, and `curvature_scaling` weighs its extreme
    eigenvalues. Beyond, a few products with the Hessian estimate a curvature for each kind of
    control and the extreme eigenvalues, and both are the diagonal scaling made of these.
    """

    def __init__(self, problem: Problem, t: Time, z: Tensor, p: Tensor) -> None:
        self.problem, self._t, self._z, self._p = problem, t, z, p

    def control_part(self, u: Tensor) -> Tensor:
        """All of H, (batch,): a formula does not say what in it depends on the control."""
        return -self._p_dot_f(u).sum(1) - self.problem.running_cost(self._t, self._z, u)

    def _p_dot_f(self, u: Tensor) -> Tensor:
        """The terms of <p, f>, (batch, n)."""
        return self._p * self.problem.dynamics(self._t, self._z, u)

    def constant_part(self) -> Tensor:
        """Zero, (batch,)."""
        return self._z.new_zeros(self._z.shape[0])

    def grad(self, u: Tensor) -> Tensor:
        """Gradient of H in the control, (batch, m)."""
        if _in_inference_mode():
            with torch.inference_mode(False), torch.no_grad():
                return self._copy().grad(u.clone())
        return gradient(self.control_part, u)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """Hessian of H in the control, at `u`, times `v`, (batch, m)."""
        if _in_inference_mode():
            with torch.inference_mode(False), torch.no_grad():
                return self._copy().hvp(u.clone(), v.clone())
        return hessian_product(self.control_part, u, v)

    @functools.cached_property
    def plain_step_size(self) -> Tensor:  # type: ignore[override]
        """Half the inverse of the largest curvature at the initial control, (batch, 1)."""
        start = self.problem.initial_control(self._t, self._z)
        with torch.no_grad():
            h = self._frozen()
            if self.problem.control_dim <= MOST_DENSE:
                values = torch.linalg.eigvalsh(h._curvature(start))
            else:
                vector = without_pattern(start).expand_as(start)
                values = extreme_eigenvalues(lambda v: -h.hvp(start, v), vector)
            return 0.5 / usable(values.abs().amax(1, True))

    def curvature_scaling(self, u: Tensor) -> Tensor:
        """Positive scaling of the gradient, (batch, m), shortened until H does not fall."""
        u = u.detach()
        with torch.no_grad():
            h = self._frozen()
            scaling = h._inverse_curvature(u)
            return scaling * h._longest_share(u, scaling * h.grad(u))

    def newton_direction(self, u: Tensor, r: Tensor) -> Tensor:
        """(-Hessian)^(-1) r, (batch, m), with the eigenvalues' absolute values."""
        u = u.detach()
        if self.problem.control_dim > MOST_DENSE:
            return self._frozen()._inverse_curvature(u) * r
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(self._frozen()._curvature(u))
            # A direction of negative curvature is followed as one of positive curvature would be.
            floor = 1e-3 * usable(values.abs().amax(1, True))
            inverse = (vectors / values.abs().maximum(floor).unsqueeze(1)) @ vectors.mT
        direction: Tensor = (inverse @ r.unsqueeze(-1)).squeeze(-1)
        return direction

    def _frozen(self) -> DerivedHamiltonian:
        """The same function, without the graph that leads to z and p."""
        return type(self)(self.problem, self._t, self._z.detach(), self._p.detach())

    def _copy(self) -> DerivedHamiltonian:
        """The same function, of tensors that automatic differentiation may save."""
        t = self._t.clone() if isinstance(self._t, Tensor) else self._t
        return type(self)(self.problem, t, self._z.clone(), self._p.clone())

    @torch.no_grad()
    def _inverse_curvature(self, u: Tensor) -> Tensor:
        """Positive D (batch, m) for which the eigenvalues of -D Hessian, where H is concave, lie
        in (0, 2)."""
        if self.problem.control_dim <= MOST_DENSE:
            curvature = self._curvature(u)
            diagonal = inverse_diagonal(curvature.diagonal(dim1=1, dim2=2))
            root = diagonal.sqrt()
            values = torch.linalg.eigvalsh(root.unsqueeze(1) * curvature * root.unsqueeze(2))
        else:
            diagonal = inverse_diagonal(self._mean_curvatures(u))
            root = diagonal.sqrt()
            start = without_pattern(u).expand_as(u)
            values = extreme_eigenvalues(lambda v: -root * self.hvp(u, root * v), start)
        largest = usable(values.abs().amax(1, True))
        # The inverse mean of the extreme eigenvalues contracts fastest; the share of the largest
        # keeps the map a contraction where the smallest is close to zero or below.
        scaling: Tensor = diagonal * 2.0 / (largest + values[:, :1].maximum(0.1 * largest))
        return scaling

    def _curvature(self, u: Tensor) -> Tensor:
        """-Hessian, (batch, m, m). Rows that are not finite become the identity: the gradient
        there is not finite either, and says so."""
        batch, m = u.shape
        unit = torch.eye(m, dtype=u.dtype, device=u.device)
        rows = self._repeated(m).hvp(u.repeat_interleave(m, 0), unit.repeat(batch, 1))
        curvature = -0.5 * (rows.view(batch, m, m) + rows.view(batch, m, m).mT)
        return torch.where(curvature.isfinite().all(2, True).all(1, True), curvature, unit)

    def _mean_curvatures(self, u: Tensor) -> Tensor:
        """For each kind of control, such as every agent's first, the curvature along one vector of
        such controls: (batch, m), the same for all agents, positive where H is concave."""
        (batch, m), n_agents = u.shape, self.problem.n_agents
        kinds = m // n_agents if m % n_agents == 0 and m // n_agents <= MOST_DENSE else 1
        patterns = torch.eye(kinds, dtype=u.dtype, device=u.device).repeat(1, m // kinds)
        vectors = patterns * without_pattern(u)
        # One product for all kinds at once.
        h = self._repeated(kinds)
        rows = h.hvp(u.repeat_interleave(kinds, 0), vectors.repeat(batch, 1))
        along = -(rows.view(batch, kinds, m) * vectors).sum(2)
        return (along / vectors.square().sum(1)) @ patterns

    def _repeated(self, times: int) -> DerivedHamiltonian:
        """The Hamiltonian of every sample `times` times: products with as many vectors at once."""
        t = self._t
        if isinstance(t, Tensor) and t.dim() == 1:
            t = t.repeat_interleave(times)
        z, p = (x.repeat_interleave(times, 0) for x in (self._z, self._p))
        return type(self)(self.problem, t, z, p)

    def _longest_share(self, u: Tensor, step: Tensor) -> Tensor:
        """The largest of `_SHARES` of `step` that does not decrease H, (batch, 1).

        All of it near a maximiser. Far from one, where the curvature grows along the step, a whole
        step may land where H overflows.
        """
        n = len(_SHARES)
        shares = torch.tensor(_SHARES, dtype=u.dtype, device=u.device)
        trials = u.unsqueeze(1) + shares.view(1, n, 1) * step.unsqueeze(1)
        repeated = self._repeated(n)
        values = repeated.control_part(repeated.project(trials.flatten(0, 1))).view(-1, n)
        terms, cost = self._p_dot_f(u), self.problem.running_cost(self._t, self._z, u)
        # Close to the maximiser the gain drowns in rounding; a loss of that size is accepted.
        slack = 64 * torch.finfo(u.dtype).eps * (terms.abs().sum(1) + cost.abs())
        least = (-terms.sum(1) - cost - slack).unsqueeze(1)
        # The shortest share stands in where none serves.
        return torch.where(values >= least, shares, _SHARES[-1]).amax(1, True)


def _in_inference_mode() -> bool:
    # A compiler cannot ask, and does not trace there.
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
