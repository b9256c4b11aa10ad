"""What a problem's formulas have to satisfy, checked once, when a policy is built for it.

A formula that is wrong in shape, dtype or derivative often trains without a complaint, on another
problem than the one that was meant. `check_problem` evaluates every formula on a small batch in
float64, holds whatever a problem overrides against what is derived from `dynamics` and
`running_cost`, and raises one line that names formula, size of the error and place.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn

from jfbcore._derivative_checks import BATCH, Point, Report, check_derivatives
from jfbcore.problems.base import Problem

#: types of attributes that tell by their value whether two problems are the same
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)

#: parameters of the problems that passed, by type; problems with other attributes by themselves
_passed: weakref.WeakKeyDictionary[type, set[Hashable]] = weakref.WeakKeyDictionary()
_passed_themselves: weakref.WeakSet[Problem] = weakref.WeakSet()


def check_problem(problem: Problem) -> None:
    """Raise ValueError with one line unless the formulas of `problem` fit each other.

    Takes milliseconds, on the CPU, and nothing for a problem whose equal has passed before.
    """
    parameters = _parameters(problem)
    if parameters is None:
        if problem in _passed_themselves:
            return
    elif parameters in _passed.setdefault(type(problem), set()):
        return
    # Neither the caller's modes nor a sampler that uses the global generator may interfere.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        _Check(problem).run()
    if parameters is None:
        _passed_themselves.add(problem)
    else:
        _passed[type(problem)].add(parameters)


def _parameters(problem: Problem) -> Hashable | None:
    """All attributes of `problem`, or None where their values do not identify them."""

    def plain(value: object) -> bool:
        if isinstance(value, tuple):
            return all(plain(x) for x in value)
        return isinstance(value, _PLAIN)

    attributes = vars(problem)
    if not all(plain(value) for value in attributes.values()):
        return None
    return tuple(sorted((name, repr(value)) for name, value in attributes.items()))


class _Check:
    """The checks of one problem. Values are compared on a copy on the CPU, in float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.name = problem, type(problem).__name__
        self.n, self.m = problem.state_dim, problem.control_dim
        self.report = Report(self.name, self.n, self.m)

    def run(self) -> None:
        for size in ("n_agents", "state_dim", "control_dim"):
            value = getattr(self.problem, size)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{self.name}.{size}` must be an integer >= 1, got {value!r}")
        self._sampler(self.problem, self.problem.device)
        # In the problem's own precision first: a constant of another one would end there.
        self._formulas(_moved(self.problem, self.problem.dtype))
        exact = _moved(self.problem, torch.float64)
        self._formulas(exact)
        seen = torch.zeros(self.m, dtype=torch.bool)
        for point in self._points(exact):
            seen |= check_derivatives(self.report, exact, point)
        if not seen.all():
            idle = int((~seen).nonzero()[0])
            raise ValueError(
                f"control {idle} of `{self.name}` changes neither `dynamics` nor `running_cost`; "
                f"is `control_dim` = {self.m} right?"
            )

    def _sampler(self, problem: Problem, device: torch.device) -> None:
        name = "sample_initial_states"

        def draw(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            states = self.report.call(name, problem.sample_initial_states, BATCH, generator)
            assert isinstance(states, Tensor)
            return states

        first, again, other = draw(0), draw(0), draw(1)
        self.report.shape(name, first, (BATCH, self.n), "(batch, state_dim)")
        if first.dtype != problem.dtype or first.device.type != device.type:
            raise ValueError(
                f"`{self.name}.{name}` returned {first.dtype} on {first.device}, expected the "
                f"problem's {problem.dtype} on {device}; end it with "
                f"`.to(dtype=self.dtype, device=self.device)`"
            )
        if first.is_meta:
            return
        self.report.finite(name, first, "")
        # One state for every sample needs no random numbers.
        fixed = bool((first == first[:1]).all())
        if not torch.equal(first, again) or (torch.equal(first, other) and not fixed):
            what = "differ" if not torch.equal(first, again) else "are the same for another seed"
            raise ValueError(
                f"`{self.name}.{name}` ignores its generator: states drawn with one seed "
                f"{what}; pass `generator=generator` to every random function, or draw with "
                f"`self._normal(batch, width, generator)`"
            )

    def _formulas(self, problem: Problem) -> None:
        """Shapes, dtypes and finite values at the problem's own initial states and control."""
        z = problem.sample_initial_states(BATCH, torch.Generator().manual_seed(0))
        for t in (0.0, 0.5 * problem.t_final):
            u = self.report.call("initial_control", problem.initial_control, t, z)
            self.report.shape("initial_control", u, (BATCH, self.m), "(batch, control_dim)")
            values = (
                ("initial_control", u, (BATCH, self.m), "(batch, control_dim)"),
                ("dynamics", self.report.call("dynamics", problem.dynamics, t, z, u),
                 (BATCH, self.n), "(batch, state_dim)"),
                ("running_cost", self.report.call("running_cost", problem.running_cost, t, z, u),
                 (BATCH,), "(batch,)"),
                ("terminal_cost", self.report.call("terminal_cost", problem.terminal_cost, z),
                 (BATCH,), "(batch,)"),
            )  # fmt: skip
            for name, value, shape, meaning in values:
                self.report.shape(name, value, shape, meaning)
                if value.dtype != z.dtype:
                    raise ValueError(
                        f"`{self.name}.{name}` returned {value.dtype} for states of {z.dtype}; "
                        "make its constants with `z.new_tensor(...)` or keep them Python numbers"
                    )
                self.report.finite(
                    name, value, f" at t={t:.3g}, initial states and initial control"
                )

    def _points(self, problem: Problem) -> Iterator[Point]:
        """Points on a trajectory under noisy controls, with noisy costates."""
        z = problem.sample_initial_states(BATCH, self.report.random)
        base = self.report.call("initial_costate", problem.initial_costate)
        self.report.shape("initial_costate", base, (self.n,), "(state_dim,)")
        spread = 0.2 * base.abs().amax() if base.any() else 0.5
        for t in (0.0, 0.37 * problem.t_final):
            p = base + spread * self.report.noise(z)
            h = self.report.call("hamiltonian", problem.hamiltonian, t, z, p)
            start = problem.initial_control(t, z)
            noise = self.report.noise(start)
            # Less noise where the formulas are defined for some controls only.
            for size in (0.3, 0.03, 0.003, 0.0):
                u = self.report.call("hamiltonian().project", h.project, start + size * noise)
                cost = problem.running_cost(t, z, u)
                rate = problem.dynamics(t, z, u)
                if cost.isfinite().all() and rate.isfinite().all():
                    break
            yield Point(t, z, p, u)
            moved = z + problem.time_step * rate
            z = moved if moved.isfinite().all() else z


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
