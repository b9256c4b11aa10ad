"""What a problem's formulas have to satisfy, checked once, when a policy is built for it.

A formula that is wrong in shape, dtype or derivative often trains without a complaint, on another
problem than the one that was meant. `check_problem` evaluates every formula on a small batch in
float64, holds whatever a problem overrides against what is derived from `dynamics` and
`running_cost`, and raises one line that names formula, size of the error and place.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from jfbcore._derivatives import gradient
from jfbcore.hamiltonian import DerivedHamiltonian, Hamiltonian
from jfbcore.problems.base import Problem

_BATCH = 3
#: largest relative difference between two ways to compute one number in float64, and between a
#: derivative and a central difference
_TOLERANCE, _DIFFERENCE_TOLERANCE = 1e-7, 1e-4
#: shapes of what formulas return, by the names of their sizes
_STATE, _CONTROL, _COST = ("batch", "state_dim"), ("batch", "control_dim"), ("batch",)
#: how an error names H where no problem overrides it
_H, _FORMULAS = "H derived from `dynamics` and `running_cost`", "dynamics` or `running_cost"

#: a time, states and costates (batch, n), and admissible controls (batch, m)
_Point = tuple[float, Tensor, Tensor, Tensor]

#: parameters of the problems that passed, by type; a problem with other attributes by itself
_passed: weakref.WeakKeyDictionary[object, set[Hashable]] = weakref.WeakKeyDictionary()


def check_problem(problem: Problem) -> None:
    """Raise ValueError with one line unless the formulas of `problem` fit each other.

    Takes milliseconds, on the CPU, and nothing for a problem whose equal has passed before.
    """
    parameters = _parameters(problem)
    passed = _passed.setdefault(problem if parameters is None else type(problem), set())
    if parameters in passed:
        return
    # Neither the caller's modes nor a sampler that uses the global generator may interfere.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        _Check(problem).run()
    passed.add(parameters)


def _parameters(problem: Problem) -> Hashable | None:
    """All attributes of `problem`, or None where their values do not identify them."""

    def plain(value: object) -> bool:
        if isinstance(value, tuple):
            return all(plain(x) for x in value)
        return value is None or isinstance(
            value, bool | int | float | str | bytes | torch.dtype | torch.device
        )

    attributes = vars(problem)
    if not all(plain(value) for value in attributes.values()):
        return None
    return tuple(sorted((name, repr(value)) for name, value in attributes.items()))


class _Check:
    """The checks of one problem. Values are compared on a copy on the CPU, in float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.name, self.where = problem, type(problem).__name__, ""
        n, m = problem.state_dim, problem.control_dim
        self.sizes = {"batch": _BATCH, "state_dim": n, "control_dim": m}
        self.batch = f"a batch of {_BATCH}, state_dim = {n}, control_dim = {m}"
        self.random = torch.Generator().manual_seed(0)

    def run(self) -> None:
        for size in ("n_agents", "state_dim", "control_dim"):
            value = getattr(self.problem, size)
            if type(value) is not int or value < 1:
                self._fail(size, f"must be an integer >= 1, got {value!r}")
        self._sampler()
        # In the problem's own precision first: a constant of another one would end there.
        self._formulas(_moved(self.problem, self.problem.dtype))
        exact = _moved(self.problem, torch.float64)
        self._formulas(exact)
        idle = torch.ones(exact.control_dim, dtype=torch.bool)
        for point in self._points(exact):
            idle &= ~self._derivatives(exact, point)
        if idle.any():
            raise ValueError(
                f"control {int(idle.nonzero()[0])} of `{self.name}` changes neither `dynamics` nor "
                f"`running_cost`; is `control_dim` = {exact.control_dim} right?"
            )

    def _sampler(self) -> None:
        name, problem = "sample_initial_states", self.problem
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
        first, again, other = (
            self._value(name, _STATE, problem.sample_initial_states, _BATCH, generator)
            for generator in generators
        )
        if first.dtype != problem.dtype or first.device.type != problem.device.type:
            self._fail(
                name,
                f"returned {first.dtype} on {first.device}, expected the problem's {problem.dtype} "
                f"on {problem.device}; end it with `.to(dtype=self.dtype, device=self.device)`",
            )
        if first.is_meta:
            return
        self._finite(name, first, "")
        # One state for every sample needs no random numbers.
        fixed = bool((first == first[:1]).all())
        if not torch.equal(first, again) or (torch.equal(first, other) and not fixed):
            what = "are the same for another seed" if torch.equal(first, again) else "differ"
            way = "pass `generator=generator` to every random function, or draw with `self._normal`"
            self._fail(name, f"ignores its generator: states drawn with one seed {what}; {way}")

    def _formulas(self, problem: Problem) -> None:
        """Shapes, dtypes and finite values at the problem's own initial states and control."""
        z = problem.sample_initial_states(_BATCH, torch.Generator().manual_seed(0))
        for t in (0.0, 0.5 * problem.t_final):
            u = self._value("initial_control", _CONTROL, problem.initial_control, t, z)
            for name, shape, arguments in (
                ("initial_control", _CONTROL, (t, z)),
                ("dynamics", _STATE, (t, z, u)),
                ("running_cost", _COST, (t, z, u)),
                ("terminal_cost", _COST, (z,)),
            ):
                value = self._value(name, shape, getattr(problem, name), *arguments)
                if value.dtype != z.dtype:
                    what = "make its constants with `z.new_tensor(...)`, or keep them numbers"
                    self._fail(name, f"returned {value.dtype} for states of {z.dtype}; {what}")
                self._finite(name, value, f" at t={t:.3g}, initial states and initial control")

    def _points(self, problem: Problem) -> Iterator[_Point]:
        """Points on a trajectory under noisy controls, with noisy costates."""
        z = problem.sample_initial_states(_BATCH, self.random)
        base = self._value("initial_costate", ("state_dim",), problem.initial_costate)
        spread = 0.2 * base.abs().amax() if base.any() else 0.5
        for t in (0.0, 0.37 * problem.t_final):
            self.where = f"at t={t:.3g}"
            p = base + spread * self._noise(z)
            h: Hamiltonian = self._call("hamiltonian", problem.hamiltonian, t, z, p)
            start = problem.initial_control(t, z)
            noise = self._noise(start)
            # Less noise where the formulas are defined for some controls only.
            for size in (0.3, 0.03, 0.003, 0.0):
                u = self._call("hamiltonian().project", h.project, start + size * noise)
                cost, rate = problem.running_cost(t, z, u), problem.dynamics(t, z, u)
                if cost.isfinite().all() and rate.isfinite().all():
                    break
            yield t, z, p, u
            moved = z + problem.time_step * rate
            z = moved if moved.isfinite().all() else z

    def _derivatives(self, problem: Problem, point: _Point) -> Tensor:
        """Hold what is overridden against the derived; which controls H depends on, (m,)."""
        t, z, p, u = point
        for name, formula, arguments in (
            ("dynamics", functools.partial(problem.dynamics, t), (z, u)),
            ("running_cost", functools.partial(problem.running_cost, t), (z, u)),
            ("terminal_cost", problem.terminal_cost, (z,)),
        ):
            alone = self._call(name, formula, *(x[:1] for x in arguments))
            what = "its value for one sample alone; samples must not mix"
            self._same(name, formula(*arguments)[:1], alone, what)
        derived = DerivedHamiltonian(problem, t, z, p)
        slopes = self._gradient(_FORMULAS, "u", derived.control_part, u)
        own = problem.hamiltonian(t, z, p)
        if type(own) is not DerivedHamiltonian:
            self._override(problem, point, own, derived)
        self._gradient("terminal_cost", "z", problem.terminal_cost, z)
        if problem.steered is not None:
            left_out = p.view(len(p), problem.n_agents, -1).clone()
            left_out[..., problem.steered] = 0.0
            left_out = DerivedHamiltonian(problem, t, z, left_out.view_as(p)).grad(u)
            rest = DerivedHamiltonian(problem, t, z, torch.zeros_like(p)).grad(u)
            self._same("steered", left_out, rest, "grad H without the costates it leaves out")
        # Dynamics and cost may cancel in H for one costate, not for two.
        other = DerivedHamiltonian(problem, t, z, self._noise(z)).grad(u)
        return ((slopes != 0) | (other != 0)).any(0)

    def _gradient(
        self, name: str, by: str, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """The gradient of `function` at `x`, held against central differences: an operation that
        passes on no derivative, such as `.detach()`, or a wrong one by hand shows there."""
        slopes: Tensor = self._call(name, gradient, function, x)
        self._finite(name, slopes, f" in its derivative {self.where}")
        v = self._noise(x)
        far, near = ((function(x + s * v) - function(x - s * v)) / (2.0 * s) for s in (1e-5, 3e-6))
        size = max(slopes.norm(dim=1).max().item(), far.abs().max().item())
        error = ((slopes * v).sum(1) - far).abs().max().item()
        smooth = bool(((far - near).abs() <= 1e-5 * (1.0 + far.abs())).all())
        if smooth and error > _DIFFERENCE_TOLERANCE * size:
            what = f"differs from finite differences by {error / size:.1e} (relative) {self.where}"
            why = "is something detached, rounded or differentiated by hand?"
            self._fail(name, f"has a derivative by {by} that {what}; {why}")
        return slopes

    def _override(
        self, problem: Problem, point: _Point, own: Hamiltonian, derived: DerivedHamiltonian
    ) -> None:
        t, z, p, u = point
        v, r, value = self._noise(u), self._noise(u), derived.value(u)
        for name, shape, method, expected, what in (
            ("value", _COST, own.value, value, _H),
            ("grad", _CONTROL, own.grad, derived.grad(u), f"the gradient of {_H}"),
            ("hvp", _CONTROL, lambda u: own.hvp(u, v), derived.hvp(u, v),
             f"the Hessian product of {_H}"),
            ("dynamics", _STATE, own.dynamics, problem.dynamics(t, z, u), "`dynamics`"),
            ("control_part", _COST, lambda u: own.control_part(u) + own.constant_part(), value,
             f"{_H}, after adding constant_part"),
        ):  # fmt: skip
            label = f"hamiltonian().{name}"
            self._same(label, self._value(label, shape, method, u), expected, what)

        def pulled(h: Callable[..., Hamiltonian]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                inputs = [x.clone().requires_grad_() for x in (z, p)]
                along = (h(t, *inputs).grad(u) * v).sum()
                if not along.requires_grad:
                    return torch.zeros_like(z), torch.zeros_like(p)
                return torch.autograd.grad(along, inputs, materialize_grads=True, allow_unused=True)

        given = pulled(problem.hamiltonian)
        wanted = pulled(lambda *inputs: DerivedHamiltonian(problem, *inputs))
        for by, slope, expected in zip(("state", "costate"), given, wanted, strict=True):
            what = f"the gradient of {_H} in its derivative by the {by}"
            self._same("hamiltonian().grad", slope, expected, what)
        label = "hamiltonian().curvature_scaling"
        scaling: Tensor = self._call(label, own.curvature_scaling, u)
        if scaling.shape not in (u.shape, (_BATCH, 1)) or not bool((scaling > 0).all()):
            got = f"{tuple(scaling.shape)} with a least value of {scaling.min().item():.1e}"
            self._fail(label, f"must be positive, (batch, m) or (batch, 1), got {got} {self.where}")
        label = "hamiltonian().newton_direction"
        slope = (self._value(label, _CONTROL, own.newton_direction, u, r) * r).sum(1).min()
        if not slope > 0:
            why = "the Hessian of H is negative at a maximiser: solve with its negative"
            got = f"<r, direction> = {slope.item():.1e} {self.where}"
            self._fail(label, f"must be an ascent direction, got {got}; {why}")

    def _fail(self, name: str, what: str) -> NoReturn:
        raise ValueError(f"`{self.name}.{name}` {what}")

    def _call(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        """What `method` returns; raises ValueError, with the problem's name, where it raises."""
        try:
            return method(*arguments)
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"`{self.name}.{name}` failed for {self.batch}: {type(error).__name__}: {line}"
            ) from error

    def _value(
        self, name: str, shape: tuple[str, ...], method: Callable[..., Any], *arguments: Any
    ) -> Tensor:
        """The tensor of `shape` that `method` returns."""
        value = self._call(name, method, *arguments)
        meaning = f"({shape[0]},)" if len(shape) == 1 else f"({', '.join(shape)})"
        if not isinstance(value, Tensor):
            self._fail(name, f"must return a tensor {meaning}, got {value!r}")
        expected = tuple(self.sizes[size] for size in shape)
        if tuple(value.shape) != expected:
            shapes = f"{tuple(value.shape)}, expected {expected} = {meaning}"
            self._fail(name, f"returned shape {shapes} for {self.batch}")
        return value

    def _finite(self, name: str, value: Tensor, where: str) -> None:
        if not bool(value.isfinite().all()):
            wrong = value[~value.isfinite()][0].item()
            self._fail(name, f"is not finite{where}: got {wrong}")

    def _same(self, name: str, value: Tensor, expected: Tensor, what: str) -> None:
        size = max(expected.abs().max().item(), torch.finfo(expected.dtype).tiny)
        error = (value - expected).abs().max().item() / size
        if not error <= _TOLERANCE:
            self._fail(name, f"differs from {what} by {error:.1e} (relative) {self.where}")

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.random, dtype=torch.float64).to(like)


def _moved(problem: Problem, dtype: torch.dtype) -> Problem:
    """A copy of `problem` on the CPU in `dtype`."""
    moved = copy.copy(problem)
    moved.dtype, moved.device = dtype, torch.device("cpu")
    for name, value in vars(moved).items():
        if isinstance(value, nn.Module):
            setattr(moved, name, copy.deepcopy(value).to(device="cpu", dtype=dtype))
        elif isinstance(value, Tensor):
            floating = value.is_floating_point()
            setattr(moved, name, value.to(device="cpu", dtype=dtype if floating else value.dtype))
    return moved
