"""A problem's derivatives, held against differences and against what it overrides.

The part of `jfbcore.checks` that compares numbers, and how it words what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jfbcore._derivatives import gradient
from jfbcore.hamiltonian import DerivedHamiltonian, Hamiltonian
from jfbcore.problems.base import Problem

BATCH = 3
#: largest relative difference between two ways to compute one number, in float64 and float32
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-2}
#: largest relative difference between a derivative and a central difference in float64
_DIFFERENCE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Point:
    """A time, states and costates (batch, n), and admissible controls (batch, m)."""

    t: float
    z: Tensor
    p: Tensor
    u: Tensor

    def __str__(self) -> str:
        return f"at t={self.t:.3g}"


@dataclass(frozen=True)
class Report:
    """Words what is wrong with a problem called `name` with n states and m controls.

    Every method but `noise` and `call` raises ValueError with one line, or returns.
    """

    name: str
    n: int
    m: int
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def compare(
        self, name: str, value: Tensor, expected: Tensor, where: str, what: str, how: str = ""
    ) -> None:
        """Raise ValueError unless `value` is `expected` up to rounding of its dtype."""
        size = max(expected.abs().max().item(), torch.finfo(expected.dtype).tiny)
        error = (value - expected).abs().max().item() / size
        if not error <= TOLERANCE[expected.dtype]:
            how = f" {how}" if how else ""
            raise ValueError(
                f"`{self.name}.{name}` differs from {what}{how} by {error:.1e} (relative) {where}"
            )

    def shape(self, name: str, value: object, shape: tuple[int, ...], meaning: str) -> None:
        """Raise ValueError unless `value` is a tensor of `shape`."""
        if not isinstance(value, Tensor):
            raise ValueError(f"`{self.name}.{name}` must return a tensor {meaning}, got {value!r}")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"`{self.name}.{name}` returned shape {tuple(value.shape)}, expected {shape} = "
                f"{meaning} for a batch of {BATCH}, state_dim = {self.n}, control_dim = {self.m}"
            )

    def finite(self, name: str, value: Tensor, where: str) -> None:
        """Raise ValueError where an entry of `value` is not finite."""
        if not bool(value.isfinite().all()):
            wrong = value[~value.isfinite()][0].item()
            raise ValueError(f"`{self.name}.{name}` is not finite{where}: got {wrong}")

    def call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """What `method` returns; raises ValueError, with the problem's name, where it raises."""
        try:
            return method(*arguments)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"`{self.name}.{name}` failed for a batch of {BATCH}, state_dim = {self.n}, "
                f"control_dim = {self.m}: {type(error).__name__}: {lines[0]}"
            ) from error

    def noise(self, like: Tensor) -> Tensor:
        """Normal numbers in the shape of `like`, from the report's own generator."""
        return torch.randn(like.shape, generator=self.random, dtype=torch.float64).to(like)


def check_derivatives(report: Report, problem: Problem, point: Point) -> Tensor:
    """Hold what is overridden against the derived; which controls H depends on, (m,)."""
    t, z, p, u = point.t, point.z, point.p, point.u
    own, derived = problem.hamiltonian(t, z, p), DerivedHamiltonian(problem, t, z, p)
    for name, formula in (
        ("dynamics", lambda z, u: problem.dynamics(t, z, u)),
        ("running_cost", lambda z, u: problem.running_cost(t, z, u)),
        ("terminal_cost", lambda z, u: problem.terminal_cost(z)),
    ):
        alone = report.call(name, formula, z[:1], u[:1])
        together = report.call(name, formula, z, u)
        what = "its value for one sample alone; samples must not mix"
        report.compare(name, together[:1], alone, str(point), what)
    slopes = report.call("dynamics` or `running_cost", derived.grad, u)
    report.finite("dynamics` or `running_cost", slopes, f" in its derivative {point}")
    _differences(report, point, derived, slopes)
    if type(own) is not DerivedHamiltonian:
        _override(report, problem, point, own, derived, slopes)
    _terminal_differences(report, problem, point)
    # Either formula may depend on a control, and both may cancel in H.
    weights = report.noise(z)

    def both(u: Tensor) -> Tensor:
        along = (weights * problem.dynamics(t, z, u)).sum()
        return along + problem.running_cost(t, z, u).sum()

    used: Tensor = (gradient(both, u) != 0).any(0) | (slopes != 0).any(0)
    return used


def _override(
    report: Report,
    problem: Problem,
    point: Point,
    own: Hamiltonian,
    derived: DerivedHamiltonian,
    slopes: Tensor,
) -> None:
    u, v, r = point.u, report.noise(point.u), report.noise(point.u)
    source = "H derived from `dynamics` and `running_cost`"
    cases: tuple[tuple[str, Callable[[], Tensor], Tensor, str], ...] = (
        ("value", lambda: own.value(u), derived.value(u), source),
        ("grad", lambda: own.grad(u), slopes, f"the gradient of {source}"),
        ("hvp", lambda: own.hvp(u, v), derived.hvp(u, v), f"the Hessian product of {source}"),
        ("dynamics", lambda: own.dynamics(u), problem.dynamics(point.t, point.z, u),
         "`dynamics`"),
        ("control_part", lambda: own.control_part(u) + own.constant_part(), derived.value(u),
         f"{source}, after adding constant_part"),
    )  # fmt: skip
    for name, method, expected, what in cases:
        label = f"hamiltonian().{name}"
        value = report.call(label, method)
        report.shape(label, value, tuple(expected.shape), "that of its default")
        report.compare(label, value, expected, str(point), what)

    def pulled(h: Callable[[Tensor, Tensor], Hamiltonian]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z, p = (x.clone().requires_grad_() for x in (point.z, point.p))
            along = (h(z, p).grad(u) * v).sum()
            if not along.requires_grad:
                return torch.zeros_like(z), torch.zeros_like(p)
            return torch.autograd.grad(along, (z, p), allow_unused=True, materialize_grads=True)  # type: ignore[return-value]

    wanted = pulled(lambda z, p: DerivedHamiltonian(problem, point.t, z, p))
    given = pulled(lambda z, p: problem.hamiltonian(point.t, z, p))
    for name, value, expected in zip(("state", "costate"), given, wanted, strict=True):
        report.compare(
            "hamiltonian().grad",
            value,
            expected,
            str(point),
            f"the gradient of {source}",
            f"in its derivative by the {name}",
        )
    scaling = report.call("hamiltonian().curvature_scaling", own.curvature_scaling, u)
    if scaling.shape not in (u.shape, (BATCH, 1)) or not bool((scaling > 0).all()):
        raise ValueError(
            f"`{report.name}.hamiltonian().curvature_scaling` must be positive, (batch, m) or "
            f"(batch, 1), got {tuple(scaling.shape)} and a least value of "
            f"{scaling.min().item():.1e} {point}"
        )
    label = "hamiltonian().newton_direction"
    direction = report.call(label, own.newton_direction, u, r)
    report.shape(label, direction, (BATCH, report.m), "(batch, control_dim)")
    slope = (direction * r).sum(1).min().item()
    if not slope > 0:
        raise ValueError(
            f"`{report.name}.{label}` must be an ascent direction, <r, direction> > 0, got "
            f"{slope:.1e} {point}; the Hessian of H is negative at a maximiser: solve with "
            "its negative"
        )


def _differences(report: Report, point: Point, derived: DerivedHamiltonian, slopes: Tensor) -> None:
    """The derived gradient against central differences: an operation that passes on no
    derivative, such as `.detach()` or a hand-written one that is wrong, shows there."""
    v = report.noise(point.u)
    slope = _central(lambda s: derived.control_part(point.u + s * v))
    along = (slopes * v).sum(1)
    _difference(report, "dynamics` or `running_cost", along, slope, slopes, "u", point)


def _terminal_differences(report: Report, problem: Problem, point: Point) -> None:
    v = report.noise(point.z)
    slope = _central(lambda s: problem.terminal_cost(point.z + s * v))
    slopes = report.call("terminal_cost", gradient, problem.terminal_cost, point.z)
    report.finite("terminal_cost", slopes, f" in its derivative {point}")
    _difference(report, "terminal_cost", (slopes * v).sum(1), slope, slopes, "z", point)


def _difference(
    report: Report,
    name: str,
    along: Tensor,
    slope: Tensor | None,
    slopes: Tensor,
    by: str,
    point: Point,
) -> None:
    if slope is None:
        return
    size = max(slopes.norm(dim=1).max().item(), slope.abs().max().item())
    error = (along - slope).abs().max().item()
    if error > _DIFFERENCE_TOLERANCE * size:
        raise ValueError(
            f"`{report.name}.{name}` has a derivative by {by} that differs from finite "
            f"differences by {error / size:.1e} (relative) {point}; is something detached, "
            "rounded or differentiated by hand?"
        )


def _central(along: Callable[[float], Tensor]) -> Tensor | None:
    """The derivative at 0 of `along`, (batch,), by differences; None where there is a kink."""
    slopes = [(along(s) - along(-s)) / (2.0 * s) for s in (1e-5, 3e-6)]
    agree = (slopes[0] - slopes[1]).abs() <= 1e-5 * (1.0 + slopes[0].abs())
    return slopes[0] if bool(agree.all()) else None
