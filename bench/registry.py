"""From a name to what it names: problems, methods, maps and solvers, built in or from outside.

The only place that resolves names. A name of the suite's own is known here without importing
torch; anything else is loaded when it is checked.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import plugins
from bench.plugins import Plugin

if TYPE_CHECKING:
    from baselines import Method
    from jfbcore.maps import FixedPointMap
    from jfbcore.problems import Problem
    from jfbcore.solvers import Solver

#: time steps and minibatch size of each problem, kept here so that listing needs no torch
DEFAULT_STEPS = {
    "quadrotor": 160,
    "bicycle": 60,
    "consumption": 100,
    "rotor-quadrotor": 80,
    "liquidation": 50,
}
DEFAULT_BATCH = {
    "quadrotor": 50,
    "bicycle": 100,
    "consumption": 128,
    "rotor-quadrotor": 50,
    "liquidation": 64,
}
#: minibatch size of a problem from outside
OTHER_BATCH = 50
PROBLEM_NAMES = tuple(DEFAULT_STEPS)
MAP_NAMES = ("plain", "scaled", "newton")
SOLVER_NAMES = ("picard", "anderson", "newton", "closed-form")
GRADIENT_NAMES = (
    "jfb",
    "jfb-3",
    "jfb-5",
    "jfb-recompute",
    "unrolled",
    "unrolled-checkpoint",
    "unrolled-network",
    "reversible",
    "implicit",
    "implicit-gmres",
    "implicit-lu",
    "implicit-neumann",
    "implicit-recompute",
    "cvxpylayers",
    "cvxpylayers-scs",
    "cvxpylayers-moreau",
    "torchdeq",
    "torchdeq-phantom",
    "torchdeq-implicit",
    "direct",
    "costate-network",
    "supervised",
    "pretrained-jfb",
    "pretrained-direct",
)
#: the suite's methods without an inner problem, known here so that listing needs no torch
_WITHOUT_INNER_PROBLEM = frozenset({"direct", "pretrained-direct"})


@dataclass(frozen=True)
class Kind:
    """A kind of thing that has names: the field of a case that holds them and where they are.

    `names` are the suite's own, `home` is the mapping that holds their objects, `group` the entry
    point group, `accept` turns a loaded object into what is asked for or raises TypeError.
    """

    field: str
    plural: str
    names: tuple[str, ...]
    home: str
    group: str
    accept: Callable[[Any], Any]

    def built_in(self) -> Mapping[str, Any]:
        """The suite's own objects by name."""
        module, _, attribute = self.home.partition(":")
        return getattr(importlib.import_module(module), attribute)

    def check(self, name: object, field: str | None = None) -> str:
        """`name` in full: a file's path made absolute. Raises ValueError unless it names one.

        `field`: what the name was given for, in the error.
        """
        if not isinstance(name, str):
            raise TypeError(f"`{field or self.field}` must be a name, got {name!r}")
        if name in self.names:
            return name
        self._load(name, field or self.field)
        return plugins.absolute(name)

    def resolve(self, name: str) -> Any:
        """What `name` names. Raises ValueError in one line that says what is allowed."""
        if name in self.names:
            return self.built_in()[name]
        plugin = self._load(name, self.field)
        return self.accept(plugin.value)

    def plugin(self, name: str) -> Plugin | None:
        """The plug-in behind `name`; None for one of the suite's own."""
        return None if name in self.names else self._load(name, self.field)

    def _load(self, name: str, field: str) -> Plugin:
        if plugins.is_specification(name):
            plugin = plugins.load(field, name)
        else:
            points = plugins.entry_points(self.group)
            if name not in points:
                raise ValueError(self._unknown(name, field, points))
            plugin = plugins.load_entry_point(field, points[name])
        try:
            self.accept(plugin.value)
        except TypeError as error:
            raise ValueError(f"`{field}` {name}: {error}") from error
        return plugin

    def _unknown(self, name: str, field: str, points: Iterable[str]) -> str:
        allowed = [*self.names, *points]
        return (
            f"`{field}` must be one of {', '.join(allowed)}, or package.module:Attribute or "
            f"path/to/file.py:Attribute, got {name!r}{plugins.close_matches(name, allowed)}"
        )


def _accept_problem(value: Any) -> Any:
    from jfbcore.problems import Problem

    if inspect.isclass(value) and issubclass(value, Problem):
        return value
    if callable(value) and not inspect.isclass(value):
        return value  # a function that makes a problem
    raise TypeError(f"a problem must be a subclass of jfbcore.problems.Problem, got {value!r}")


def _accept_method(value: Any) -> Any:
    from baselines import as_method

    return as_method(value)


def _accept_map(value: Any) -> Any:
    from jfbcore.maps import FixedPointMap

    made = value() if inspect.isclass(value) and issubclass(value, FixedPointMap) else value
    if isinstance(made, FixedPointMap):
        return made
    raise TypeError(f"a map must be a jfbcore.maps.FixedPointMap, got {value!r}")


def _accept_solver(value: Any) -> Any:
    from jfbcore.solvers import Solver

    if inspect.isclass(value) and issubclass(value, Solver):
        return value
    raise TypeError(f"a solver must be a subclass of jfbcore.solvers.Solver, got {value!r}")


PROBLEMS = Kind(
    *("problem", "problems", PROBLEM_NAMES, "jfbcore.problems:PROBLEMS"),
    *("jfbbench.problems", _accept_problem),
)
METHODS = Kind(
    *("gradient", "gradients", GRADIENT_NAMES, "baselines:METHODS"),
    *("jfbbench.methods", _accept_method),
)
MAPS = Kind("map", "maps", MAP_NAMES, "jfbcore.maps:MAPS", "jfbbench.maps", _accept_map)
SOLVERS = Kind(
    *("solver", "solvers", SOLVER_NAMES, "jfbcore.solvers:SOLVERS"),
    *("jfbbench.solvers", _accept_solver),
)
KINDS = (PROBLEMS, METHODS, MAPS, SOLVERS)


def problem(name: str) -> Callable[..., Problem]:
    """The class, or the function, that makes the problem `name`."""
    return PROBLEMS.resolve(name)


def method(name: str) -> Method:
    """The method `name`."""
    return METHODS.resolve(name)


def fixed_point_map(name: str) -> FixedPointMap:
    """The map `name`, at its own settings."""
    return MAPS.resolve(name)


def solver(name: str) -> type[Solver]:
    """The class of the solver `name`."""
    return SOLVERS.resolve(name)


def has_inner_problem(gradient: str) -> bool:
    """Whether the policies of the method `gradient` solve an inner problem."""
    if gradient in GRADIENT_NAMES:
        return gradient not in _WITHOUT_INNER_PROBLEM
    return method(gradient).inner_problem


def default_steps(name: str) -> int:
    """The time steps of the problem `name` unless told otherwise: its own."""
    if name in DEFAULT_STEPS:
        return DEFAULT_STEPS[name]
    return problem(name)(n_agents=1).n_steps


def default_batch(name: str) -> int:
    """The minibatch size of the problem `name` unless told otherwise."""
    return DEFAULT_BATCH.get(name, OTHER_BATCH)
