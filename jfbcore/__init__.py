"""Jacobian-free backpropagation for optimal control with implicit Hamiltonians.

`import jfbcore as jfb` has everything that a training run needs; each name is imported when it is
first used, so that the import itself is light and does not load torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jfbcore.extras.checkpoints import load, save
    from jfbcore.extras.guard import GuardSettings
    from jfbcore.extras.results import Evaluation, TrainingResult
    from jfbcore.extras.shared_network import (
        AssignedValueNetwork,
        IndexedValueNetwork,
        SharedValueNetwork,
    )
    from jfbcore.extras.training_config import TrainingConfig
    from jfbcore.held_out import held_out_states
    from jfbcore.jfb import JFB, GradientEstimator
    from jfbcore.maps import FixedPointMap, NewtonMap, PlainMap, ScaledMap
    from jfbcore.policy import HamiltonianPolicy, Policy
    from jfbcore.problems import (
        Bicycle,
        Consumption,
        Hamiltonian,
        Liquidation,
        Problem,
        Quadrotor,
        RotorQuadrotor,
    )
    from jfbcore.rollout import Rollout, rollout
    from jfbcore.solvers import Anderson, ClosedForm, Newton, Picard, Solution, Solver, Status
    from jfbcore.train import Training
    from jfbcore.value_network import ValueNetwork

__version__ = "1.1.0.dev0"
#: where each public name is defined
_HOMES = {
    "extras.checkpoints": "load save",
    "extras.guard": "GuardSettings",
    "extras.results": "Evaluation TrainingResult",
    "extras.shared_network": "AssignedValueNetwork IndexedValueNetwork SharedValueNetwork",
    "extras.training_config": "TrainingConfig",
    "held_out": "held_out_states",
    "jfb": "JFB GradientEstimator",
    "maps": "FixedPointMap NewtonMap PlainMap ScaledMap",
    "policy": "HamiltonianPolicy Policy",
    "problems": "Bicycle Consumption Hamiltonian Liquidation Problem Quadrotor RotorQuadrotor",
    "rollout": "Rollout rollout",
    "solvers": "Anderson ClosedForm Newton Picard Solution Solver Status",
    "train": "Training",
    "value_network": "ValueNetwork",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [
    "JFB", "Anderson", "AssignedValueNetwork", "Bicycle", "ClosedForm", "Consumption",
    "Evaluation", "FixedPointMap", "GradientEstimator", "GuardSettings", "Hamiltonian",
    "HamiltonianPolicy", "IndexedValueNetwork", "Liquidation", "Newton", "NewtonMap", "Picard",
    "PlainMap", "Policy", "Problem", "Quadrotor", "Rollout", "RotorQuadrotor", "ScaledMap",
    "SharedValueNetwork", "Solution", "Solver", "Status", "Training", "TrainingConfig",
    "TrainingResult", "ValueNetwork", "__version__", "held_out_states", "load", "rollout", "save",
]  # fmt: skip


class _Package(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{self.__name__}.{_HOME_OF[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the module jfbcore.rollout would put it in the place of the function.
        if name not in _HOME_OF or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
