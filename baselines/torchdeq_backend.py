"""A third party's JFB, phantom and implicit gradients: the torchdeq library."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.problems import Problem
from jfbcore.solvers import Anderson, Picard, Solution, Solver
from jfbcore.solvers.stopping import within

_SOLVER_NAMES = {Picard: "fixed_point_iter", Anderson: "anderson"}
#: its Anderson applies the map twice before it has anything to return
_FEWEST = {Picard: 1, Anderson: 3}
#: how often the increment tolerance is tightened until the residual tolerance is met
_ROUNDS = 6


@dataclass(frozen=True)
class TorchDEQ(GradientEstimator):
    """torchdeq 0.1.0 as an independent implementation of the same gradients.

    `mode`: "phantom" (`tracked` applications of T; 1 is JFB) or "implicit" (its own fixed-point
    solve of the transposed system, to `backward_tolerance`). torchdeq stops on |T(u) - u|; this
    adapter tightens that tolerance until the suite's own residual is met, so that rows compare.
    Every option is passed explicitly: its defaults are loose and unknown names vanish.
    """

    mode: str = "phantom"
    tracked: int = 1
    backward_tolerance: float = 1e-6
    backward_iterations: int = 100

    def __post_init__(self) -> None:
        _validate.one_of("mode", self.mode, ("phantom", "implicit"))
        _validate.positive_int("tracked", self.tracked)
        _validate.positive("backward_tolerance", self.backward_tolerance)
        _validate.positive_int("backward_iterations", self.backward_iterations)

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why it cannot serve `problem`."""
        if importlib.util.find_spec("torchdeq") is None:
            return "torchdeq is not installed; pip install 'jfbbench[baselines]'"
        return None

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        name = type(solver).__name__
        if type(solver) not in _SOLVER_NAMES:
            return f"torchdeq has no {name} solver; use picard or anderson"
        if solver.max_iterations < (fewest := _FEWEST[type(solver)]):
            return (
                f"torchdeq's {name} returns its start before iteration {fewest}, got "
                f"max_iterations {solver.max_iterations}"
            )
        return None

    def supports_pull_back(self, solver: Solver) -> str | None:
        """The reason why no compiled rollout runs it."""
        return (
            "torchdeq stops its solver on the host and attaches its gradient to autograd's graph, "
            "which a compiled rollout does not have; use the eager rollout"
        )

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """torchdeq's own solution, its derivative attached in its train mode."""
        u, residual, iterations = self._solve(fixed_point_map, solver, initial)
        if not torch.is_grad_enabled():
            return solver.solution(u, residual, iterations)
        # Train mode attaches the gradient; one more iteration of its solver changes little.
        layer = self._layer(solver, tolerance=0.0, iterations=1).train()
        outputs, _ = layer(fixed_point_map, u)
        return solver.solution(outputs[-1], residual, iterations + 1)

    @torch.no_grad()
    def _solve(
        self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        u = initial.detach()
        if solver.tolerance is None:
            layer = self._layer(solver, tolerance=0.0, iterations=solver.max_iterations).eval()
            outputs, _ = layer(fixed_point_map, u, solver_kwargs={"return_final": True})
            u = outputs[-1]
            return u, fixed_point_map.residual(u), solver.max_iterations
        residual, iterations = fixed_point_map.residual(u), 0
        increment = torch.linalg.vector_norm(fixed_point_map(u) - u, dim=-1)
        for _ in range(_ROUNDS):
            left = solver.max_iterations - iterations
            if left < _FEWEST[type(solver)] or within(residual, solver.tolerance):
                break
            # |T(u) - u| is about (alpha D) |grad H|: the ratio seen at the last point, halved. Of
            # samples that are not there yet: one that is exact would ask for the impossible.
            ratios = (increment / residual)[residual > solver.tolerance]
            ratio = float(ratios.min()) if len(ratios) else 0.0
            layer = self._layer(solver, 0.5 * solver.tolerance * ratio, left).eval()
            # Counted here: torchdeq's own number is of the step with the least increment.
            counted = _Counted(fixed_point_map)
            outputs, _ = layer(counted, u)
            u = outputs[-1]
            iterations += counted.calls
            residual = fixed_point_map.residual(u)
            increment = torch.linalg.vector_norm(fixed_point_map(u) - u, dim=-1)
        return u, residual, iterations

    def _layer(self, solver: Solver, tolerance: float, iterations: int) -> torch.nn.Module:
        from torchdeq import get_deq

        layer: torch.nn.Module = get_deq(
            core="indexing",
            ift=self.mode == "implicit",
            hook_ift=False,
            grad=self.tracked,
            tau=1.0,
            n_states=1,
            indexing=[],
            sup_gap=-1,
            sup_loc=[],
            no_stat=False,
            f_solver=_SOLVER_NAMES[type(solver)],
            f_max_iter=iterations,
            f_tol=tolerance,
            f_stop_mode="abs",
            b_solver="fixed_point_iter",
            b_max_iter=self.backward_iterations,
            b_tol=self.backward_tolerance,
            b_stop_mode="rel",
            eval_factor=1.0,
            eval_f_max_iter=iterations,
        )
        return layer


class _Counted:
    """A map that counts its applications."""

    def __init__(self, fixed_point_map: BoundMap) -> None:
        self._map, self.calls = fixed_point_map, 0

    def __call__(self, u: Tensor) -> Tensor:
        self.calls += 1
        return self._map(u)
