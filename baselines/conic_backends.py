"""What solves and differentiates a convex program inside CVXPYLayers."""

from __future__ import annotations

import abc
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jfbcore import _validate

#: solvers that DIFFCP can call here
DIFFCP_SOLVERS = ("Clarabel", "SCS")


class ConicBackend(abc.ABC):
    """Turns a program into a layer and runs it."""

    def missing(self) -> str | None:
        """None, or the reason why this backend cannot run here."""
        for module in self.modules():
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; pip install 'jfbbench[baselines]'"
        return None

    @abc.abstractmethod
    def modules(self) -> tuple[str, ...]:
        """The packages it needs."""

    def device(self, wanted: torch.device) -> torch.device:
        """Where it solves a problem that lives on `wanted`."""
        return torch.device("cpu")

    @abc.abstractmethod
    def layer(self, program: Any, parameters: list[Any], variable: Any) -> Any:
        """The CVXPYLayers module that maps values of `parameters` to the optimal `variable`."""

    @abc.abstractmethod
    def solve(self, layer: Any, parameters: list[Tensor]) -> Tensor:
        """The optimum of each sample, (batch, m) in float64, attached to the parameters.

        `parameters`: (batch, …) in float64, finite, on this backend's device.
        """


@dataclass(frozen=True)
class Diffcp(ConicBackend):
    """DIFFCP, one sample at a time on the CPU.

    `solver`: "Clarabel", an interior-point method, or "SCS", operator splitting. `gap`: the
    tolerances of either on gap and feasibility. `jobs`: threads that share a batch. `iterations`:
    the most that SCS takes.
    """

    solver: str = "Clarabel"
    gap: float = 1e-10
    jobs: int = 1
    iterations: int = 100_000

    def __post_init__(self) -> None:
        _validate.one_of("solver", self.solver, DIFFCP_SOLVERS)
        _validate.positive("gap", self.gap)
        _validate.positive_int("jobs", self.jobs)
        _validate.positive_int("iterations", self.iterations)

    def modules(self) -> tuple[str, ...]:
        """The packages it needs."""
        return ("cvxpy", "cvxpylayers", "diffcp", self.solver.lower())

    def layer(self, program: Any, parameters: list[Any], variable: Any) -> Any:
        """A CVXPYLayers module on DIFFCP from values of `parameters` to the optimal `variable`."""
        from cvxpylayers.torch.cvxpylayer import CvxpyLayer as Layer

        arguments: dict[str, Any] = {"solve_method": self.solver}
        if self.solver == "SCS":
            arguments |= {"eps": self.gap, "max_iters": self.iterations}
        else:
            arguments |= {"tol_gap_abs": self.gap, "tol_gap_rel": self.gap, "tol_feas": self.gap}
        return Layer(program, parameters, [variable], solver_args=arguments)

    def solve(self, layer: Any, parameters: list[Tensor]) -> Tensor:
        """The optimum of each sample, (batch, m) in float64, on the CPU."""
        arguments: dict[str, Any] = {"n_jobs_forward": self.jobs}
        if _tracked(parameters):
            # solve_only_batch would hand this on to the conic solver, which does not know it.
            arguments["n_jobs_backward"] = self.jobs
        # Clarabel's last iterate comes back whatever its status; the residual tells its worth.
        answer: Tensor = layer(*parameters, solver_args=arguments)[0]
        return answer


@dataclass(frozen=True)
class Moreau(ConicBackend):
    """Moreau, an interior-point method that takes the batch at once, on the CPU or with CUDA.

    It solves on the problem's device if it has support for it, otherwise on the CPU; CUDA needs
    the package moreau-cuda13 or moreau-cuda12 beside moreau. `gap`: its tolerances on gap and
    feasibility. `warm_start`: start from the solution of the last batch of the same size, which
    saves a tenth to a fifth of the time in a rollout. It is off by default because a control then
    depends on what was solved before it, and after an unrelated batch it may be much less accurate.
    """

    gap: float = 1e-10
    warm_start: bool = False

    def __post_init__(self) -> None:
        _validate.positive("gap", self.gap)
        if not isinstance(self.warm_start, bool):
            raise TypeError(f"`warm_start` must be True or False, got {self.warm_start!r}")

    def modules(self) -> tuple[str, ...]:
        """The packages it needs."""
        return ("cvxpy", "cvxpylayers", "moreau")

    def device(self, wanted: torch.device) -> torch.device:
        """`wanted` where Moreau was built for it, else the CPU."""
        import moreau

        supported = wanted.type == "cuda" and moreau.device_available("cuda")
        return wanted if supported else torch.device("cpu")

    def layer(self, program: Any, parameters: list[Any], variable: Any) -> Any:
        """A CVXPYLayers module on Moreau from values of `parameters` to the optimal `variable`."""
        from cvxpylayers.torch.cvxpylayer import CvxpyLayer as Layer

        # The settings of the interior-point method go in a dictionary of their own: CVXPYLayers
        # drops the names of others without a word.
        settings = {
            "tol_gap_abs": self.gap,
            "tol_gap_rel": self.gap,
            "tol_feas": self.gap,
            # The greatest errors are half as large as at the default of 0.99, in as much time.
            "max_step_fraction": 0.95,
        }
        arguments = {"solver": "ipm", "ipm_settings": settings}
        return Layer(program, parameters, [variable], solver="MOREAU", solver_args=arguments)

    def solve(self, layer: Any, parameters: list[Tensor]) -> Tensor:
        """The optimum of each sample, (batch, m) in float64, the batch solved at once."""
        layer.to(parameters[0].device)
        # It asks for gradients of its own inputs, whether or not those given want any.
        with torch.set_grad_enabled(_tracked(parameters)):
            answer: Tensor = layer(*parameters, warm_start=self.warm_start)[0]
        return answer


def _tracked(parameters: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in parameters)
