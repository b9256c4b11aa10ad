"""The closed-form maximiser, where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jfbcore.solvers.base import Solution, Solver

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap
    from jfbcore.problems.base import Problem


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Solver):
    """An oracle (Lambert's W for the quadrotor): for tests and as a row of its own.

    Not an iterative solver: no measurement of one may use it.
    """

    @torch.no_grad()
    def solve(self, fixed_point_map: BoundMap, initial: Tensor) -> Solution:
        """The formula's maximiser; raises ValueError where there is none."""
        control = fixed_point_map.hamiltonian.closed_form()
        if control is None:
            raise ValueError(
                "`solver` ClosedForm needs a Hamiltonian with a closed-form maximiser, "
                "got one without; use Newton() for an accurate solve"
            )
        return self.solution(control, fixed_point_map.residual(control), 0)

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why `problem` has no formula for its maximiser."""
        z = problem.sample_initial_states(1, torch.Generator().manual_seed(0))
        try:
            h = problem.hamiltonian(0.0, z, problem.initial_costate().expand_as(z))
            if h.closed_form() is not None:
                return None
        except ModuleNotFoundError as error:
            return f"the closed form needs {error.name}, which is not installed"
        return f"the maximiser of the {problem.name} Hamiltonian has no closed form"
