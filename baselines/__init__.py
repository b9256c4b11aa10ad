"""The gradients JFB is compared with. A new one is one file here and one line in `GRADIENTS`."""

from __future__ import annotations

import torch

from baselines.conic_backends import Diffcp, Moreau
from baselines.cvxpy_layers import CvxpyLayer
from baselines.direct import DirectPolicy
from baselines.implicit import Implicit
from baselines.krylov import GMRES, ConjugateGradient
from baselines.linear_solvers import DenseLU, LinearSolver, Neumann
from baselines.reversible import Reversible
from baselines.torchdeq_backend import TorchDEQ
from baselines.unrolled import Unrolled, UnrolledCheckpoint
from baselines.unrolled_network import UnrolledNetwork, UnrolledNetworkPolicy
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import FixedPointMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Problem
from jfbcore.solvers import Solver
from jfbcore.value_network import ValueNetwork

#: the name of the policy without an inner problem, to which no estimator belongs
DIRECT = "direct"

#: gradients by the name used on the command line; None is the direct policy
GRADIENTS: dict[str, GradientEstimator | None] = {
    "jfb": JFB(),
    "jfb-3": JFB(3),
    "jfb-5": JFB(5),
    "unrolled": Unrolled(),
    "unrolled-checkpoint": UnrolledCheckpoint(),
    "unrolled-network": UnrolledNetwork(),
    "reversible": Reversible(),
    "implicit": Implicit(),
    "implicit-gmres": Implicit(GMRES()),
    "implicit-lu": Implicit(DenseLU()),
    "implicit-neumann": Implicit(Neumann()),
    "cvxpylayers": CvxpyLayer(),
    "cvxpylayers-scs": CvxpyLayer(Diffcp("SCS")),
    "cvxpylayers-moreau": CvxpyLayer(Moreau()),
    "torchdeq": TorchDEQ(),
    "torchdeq-phantom": TorchDEQ(tracked=3),
    "torchdeq-implicit": TorchDEQ(mode="implicit"),
    DIRECT: None,
}


def build_policy(
    problem: Problem,
    gradient: GradientEstimator | None,
    *,
    fixed_point_map: FixedPointMap,
    solver: Solver,
    width: int | None = None,
    depth: int | None = None,
    generator: torch.Generator | None = None,
    network: type[ValueNetwork] | type[SharedValueNetwork] = ValueNetwork,
) -> Policy:
    """The policy that trains with `gradient` (None: the direct policy) on `problem`.

    `network`: the kind of value network, or of what stands in its place. Raises ValueError with
    the reason where the gradient or the solver cannot serve the problem.
    """
    if gradient is None:
        return DirectPolicy(problem, width=width, depth=depth, generator=generator, network=network)
    value_network = network.for_problem(problem, width=width, depth=depth, generator=generator)
    policy = HamiltonianPolicy(
        problem, value_network, fixed_point_map=fixed_point_map, solver=solver, gradient=gradient
    )
    return UnrolledNetworkPolicy(policy) if isinstance(gradient, UnrolledNetwork) else policy


__all__ = [
    "DIRECT",
    "GMRES",
    "GRADIENTS",
    "ConjugateGradient",
    "CvxpyLayer",
    "DenseLU",
    "Diffcp",
    "DirectPolicy",
    "Implicit",
    "LinearSolver",
    "Moreau",
    "Neumann",
    "Reversible",
    "TorchDEQ",
    "Unrolled",
    "UnrolledCheckpoint",
    "UnrolledNetwork",
    "UnrolledNetworkPolicy",
    "build_policy",
]
