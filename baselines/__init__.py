"""The methods JFB is compared with, and JFB as one of them.

A new one is one file here and one line in `METHODS`, or a file anywhere else.
"""

from __future__ import annotations

import torch

from baselines.conic_backends import Diffcp, Moreau
from baselines.costate_network import CostateNetworkMethod
from baselines.cvxpy_layers import CvxpyLayer
from baselines.direct import DirectPolicy
from baselines.extremals import Extremals, extremals
from baselines.implicit import Implicit
from baselines.kinds import Choice
from baselines.krylov import GMRES, ConjugateGradient
from baselines.linear_solvers import DenseLU, LinearSolver, Neumann
from baselines.methods import (
    EstimatorMethod,
    Method,
    Network,
    PolicyMethod,
    UnrolledNetworkMethod,
    as_method,
)
from baselines.reversible import Reversible
from baselines.steering import SteeringMisfit
from baselines.supervision import ReferenceMisfit, Supervision, tolerances
from baselines.torchdeq_backend import TorchDEQ
from baselines.unrolled import Unrolled, UnrolledCheckpoint
from baselines.unrolled_network import UnrolledNetworkPolicy
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import FixedPointMap, ScaledMap
from jfbcore.policy import Policy
from jfbcore.problems import Problem
from jfbcore.solvers import Picard, Solver
from jfbcore.value_network import ValueNetwork

#: a tenth of a run: longer fits were no safer (docs/recipes.md)
_PRETRAINING = Supervision(share=0.1, trajectories=48)
#: methods by the name used on the command line
METHODS: dict[str, Method] = {
    "jfb": EstimatorMethod(JFB()),
    "jfb-3": EstimatorMethod(JFB(3)),
    "jfb-5": EstimatorMethod(JFB(5)),
    "jfb-recompute": EstimatorMethod(JFB(recompute=True)),
    "unrolled": EstimatorMethod(Unrolled()),
    "unrolled-checkpoint": EstimatorMethod(UnrolledCheckpoint()),
    "unrolled-network": UnrolledNetworkMethod(),
    "reversible": EstimatorMethod(Reversible()),
    "implicit": EstimatorMethod(Implicit()),
    "implicit-gmres": EstimatorMethod(Implicit(GMRES())),
    "implicit-lu": EstimatorMethod(Implicit(DenseLU())),
    "implicit-neumann": EstimatorMethod(Implicit(Neumann())),
    "implicit-recompute": EstimatorMethod(Implicit(recompute=True)),
    "cvxpylayers": EstimatorMethod(CvxpyLayer()),
    "cvxpylayers-scs": EstimatorMethod(CvxpyLayer(Diffcp("SCS"))),
    "cvxpylayers-moreau": EstimatorMethod(CvxpyLayer(Moreau())),
    "torchdeq": EstimatorMethod(TorchDEQ()),
    "torchdeq-phantom": EstimatorMethod(TorchDEQ(tracked=3)),
    "torchdeq-implicit": EstimatorMethod(TorchDEQ(mode="implicit")),
    "direct": PolicyMethod(DirectPolicy),
    "costate-network": CostateNetworkMethod(),
    "supervised": EstimatorMethod(JFB(), Supervision()),
    "pretrained-jfb": EstimatorMethod(JFB(), _PRETRAINING),
    "pretrained-direct": PolicyMethod(DirectPolicy, _PRETRAINING),
}
#: the gradient estimators among them, by the same names
GRADIENTS: dict[str, GradientEstimator] = {
    name: method.estimator
    for name, method in METHODS.items()
    if method.estimator is not None and method.supervision is None
}


def build_policy(
    problem: Problem,
    method: Method | GradientEstimator | type[Policy],
    *,
    fixed_point_map: FixedPointMap | None = None,
    solver: Solver | None = None,
    width: int | None = None,
    depth: int | None = None,
    generator: torch.Generator | None = None,
    network: Network = ValueNetwork,
) -> Policy:
    """The policy that `method` builds on `problem`; see `Method.build`.

    A gradient estimator stands for the method that uses it, a class of policies for the method
    that builds it. `fixed_point_map` None takes the scaled map, `solver` None Picard. Raises
    ValueError with the reason where the method or the solver cannot serve the problem, TypeError
    where `method` is none.
    """
    return as_method(method).build(
        problem,
        fixed_point_map=ScaledMap() if fixed_point_map is None else fixed_point_map,
        solver=Picard() if solver is None else solver,
        width=width,
        depth=depth,
        generator=generator,
        network=network,
    )


__all__ = [
    "GMRES",
    "GRADIENTS",
    "METHODS",
    "Choice",
    "ConjugateGradient",
    "CvxpyLayer",
    "DenseLU",
    "Diffcp",
    "DirectPolicy",
    "EstimatorMethod",
    "Extremals",
    "Implicit",
    "LinearSolver",
    "Method",
    "Moreau",
    "Neumann",
    "PolicyMethod",
    "ReferenceMisfit",
    "Reversible",
    "SteeringMisfit",
    "Supervision",
    "TorchDEQ",
    "Unrolled",
    "UnrolledCheckpoint",
    "UnrolledNetworkMethod",
    "UnrolledNetworkPolicy",
    "as_method",
    "build_policy",
    "extremals",
    "tolerances",
]
