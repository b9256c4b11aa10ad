"""From a case to the objects that run it; `bench.registry` resolves the names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from baselines import ConjugateGradient, DenseLU, Implicit, build_policy
from bench import registry
from bench.case import Case
from bench.recipes import RELEASED_TOLERANCE
from jfbcore.extras.compiled_rollout import CompiledRollout
from jfbcore.extras.shared_network import (
    AssignedValueNetwork,
    BranchedValueNetwork,
    IndexedValueNetwork,
    SharedValueNetwork,
)
from jfbcore.kernels import native
from jfbcore.maps import FixedPointMap, PlainMap
from jfbcore.policy import Policy
from jfbcore.problems import Problem
from jfbcore.problems.consumption import Consumption
from jfbcore.rollout import Rollout, rollout
from jfbcore.solvers import Solver
from jfbcore.train import TrainingConfig
from jfbcore.value_network import ValueNetwork

NETWORKS: dict[str, type[ValueNetwork] | type[SharedValueNetwork]] = {
    "dense": ValueNetwork,
    "shared": SharedValueNetwork,
    "indexed": IndexedValueNetwork,
    "assigned": AssignedValueNetwork,
    "branched": BranchedValueNetwork,
}
#: problems whose Hamiltonian is concave in the control
_CONCAVE = ("quadrotor", "consumption", "liquidation")
#: lengths of a training run from which on it earns back compiling
_STEPS_THAT_PAY, _SECONDS_THAT_PAY = 1000, 60.0
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(eq=False)
class Unsupported(Exception):  # noqa: N818 - a result, not an error
    """A case that cannot be built; `reason` says why, `field` which of its fields is to blame."""

    reason: str
    field: str = "gradient"


def check_device(device: str) -> None:
    """ValueError when `device` is cuda and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` must be cpu on this machine, got 'cuda': no CUDA device found")


def build_problem(case: Case) -> Problem:
    """The problem of `case`, on its device and in its dtype."""
    check_device(case.device)
    settings: dict[str, Any] = {
        "n_steps": case.n_steps,
        "dtype": DTYPES[case.dtype],
        "device": case.device,
    }
    if case.variant == "released":
        return Consumption.released(case.n_agents, **settings)
    if case.variant == "concave":
        return Consumption(case.n_agents, eta=1.0, **settings)
    return registry.problem(case.problem)(n_agents=case.n_agents, **settings)


def build_map(case: Case) -> FixedPointMap:
    if case.step_size is not None:
        return PlainMap(case.step_size)
    return registry.fixed_point_map(case.map)


def released_tolerance(case: Case) -> float:
    """The released code's absolute tolerance in the unit of a case: the gradient scale."""
    return RELEASED_TOLERANCE / build_problem(case).gradient_scale


def build_solver(case: Case, problem: Problem) -> Solver:
    tolerance = None if case.tolerance is None else case.tolerance * problem.gradient_scale
    make = registry.solver(case.solver)
    return make(tolerance=tolerance, max_iterations=case.max_iterations)


def build_rollout(case: Case, policy: Policy) -> Callable[..., Rollout]:
    """What rolls out `policy` as `case` asks, eager or compiled; raises Unsupported.

    For a method that does nothing but fit reference trajectories, the misfit in its place.
    """
    supervision = registry.method(case.gradient).supervision
    if supervision is not None and supervision.share == 1.0:
        # Here, so that no other method needs what solves references.
        from bench.pretraining import reference_misfit

        return reference_misfit(case, policy)[0]
    if not case.compile and case.segment is None:
        return rollout
    if not case.compile:
        return functools.partial(rollout, segment=case.segment)
    if (reason := policy.supports_compiled_rollout()) is not None:
        raise Unsupported(reason, "compile")
    if case.segment is not None:
        raise Unsupported("a compiled rollout has no graph to keep in segments", "segment")
    return CompiledRollout(policy, capture=case.capture)


def compiling_pays(case: Case, config: TrainingConfig) -> bool:
    """Whether a training run of `case` on a processor is long enough to earn back compiling.

    Compiling takes ten to twenty seconds, once for all grids; a time step then takes a third to a
    fifth as long. False where the case cannot be compiled or there is no compiler.
    """
    long = (config.steps or 0) >= _STEPS_THAT_PAY or (config.time_limit or 0) >= _SECONDS_THAT_PAY
    penalties = config.hjb_running > 0 or config.hjb_final > 0
    if not long or case.device != "cpu" or case.segment is not None or penalties:
        return False
    supervision = registry.method(case.gradient).supervision
    if supervision is not None and supervision.share == 1.0:
        return False  # it never rolls out
    try:
        native.compiler()
        return build(case, 0).supports_compiled_rollout() is None
    except (Unsupported, FileNotFoundError):
        return False


def exact_estimator(case: Case, tolerance: float = 1e-6) -> Implicit:
    """What counts as the true gradient: implicit differentiation.

    By conjugate gradients to `tolerance` where H is known to be concave, dense elsewhere.
    """
    concave = case.problem in _CONCAVE
    return Implicit(ConjugateGradient(tolerance=tolerance) if concave else DenseLU())


def build(case: Case, seed: int) -> Policy:
    """The policy of `case`, its parameters drawn with `seed`; raises Unsupported."""
    problem = build_problem(case)
    solver = build_solver(case, problem)
    method = registry.method(case.gradient)
    reasons = [("gradient", method.supports(problem))]
    if method.inner_problem:
        reasons.append(("solver", method.supports_solver(solver)))
        reasons.append(("solver", solver.supports(problem)))
    if method.supervision is not None:
        from bench.reference.trajectories import reason_against

        reasons.append(("gradient", reason_against(problem)))
    for field, reason in reasons:
        if reason is not None:
            raise Unsupported(reason, field)
    network = NETWORKS[case.network]
    if issubclass(network, SharedValueNetwork) and (reason := network.supports(problem)):
        raise Unsupported(reason, "network")
    return build_policy(
        problem,
        method,
        fixed_point_map=build_map(case),
        solver=solver,
        generator=torch.Generator().manual_seed(seed),
        network=network,
    )
