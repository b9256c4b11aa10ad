"""A method builds a policy from a problem: the one noun for everything the suite compares."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from baselines.supervision import Supervision
from baselines.unrolled import Unrolled, needs_iterations
from baselines.unrolled_network import UnrolledNetworkPolicy
from jfbcore.extras.shared_network import SharedValueNetwork
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import FixedPointMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Problem
from jfbcore.solvers import Solver
from jfbcore.value_network import ValueNetwork

#: the kinds of network a policy may be built with
Network = type[ValueNetwork] | type[SharedValueNetwork]


class Method(abc.ABC):
    """Builds policies; says beforehand, with a reason, what it cannot serve.

    A subclass defines `build`. It overrides the two `supports` methods where it has limits, and
    sets `inner_problem` to False where its policies solve no inner problem: map, solver and
    number of inner iterations then play no part and are null in records.
    """

    inner_problem: ClassVar[bool] = True
    #: how its policies are fitted to optimal trajectories; None where they are not
    supervision: Supervision | None = None

    @property
    def estimator(self) -> GradientEstimator | None:
        """The gradient estimator of the policies that this method builds; None without one."""
        return None

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why this method cannot serve `problem`."""
        return None

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this method cannot work with `solver`."""
        return None

    @abc.abstractmethod
    def build(
        self,
        problem: Problem,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        network: Network = ValueNetwork,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Policy:
        """A new policy on `problem`, its parameters drawn with `generator`.

        `network` is the kind of value network, or of what stands in its place; `width` and
        `depth` are the problem's own where they are None. Raises ValueError with the reason where
        the method, the solver or the network cannot serve the problem.
        """

    def describe(self) -> str:
        """One line on what the method does: the first line of a docstring, and its settings."""
        return self._after_supervision(first_line(self))

    def _after_supervision(self, trains: str) -> str:
        """What is fitted, if anything, before the line that says how the method trains."""
        if self.supervision is None:
            return trains
        fits, share = first_line(self.supervision), self.supervision.share
        return fits if share == 1 else f"{fits} for {share:.0%} of a run, then: {trains}"


@dataclass(frozen=True)
class EstimatorMethod(Method):
    """The control maximises the Hamiltonian; `gradient` decides how it is differentiated.

    With `supervision` the value network is fitted to optimal trajectories first, or throughout.
    Whoever trains provides them, as a `ReferenceMisfit` in place of the rollout.
    """

    gradient: GradientEstimator
    supervision: Supervision | None = None

    @property
    def estimator(self) -> GradientEstimator:
        """The gradient estimator."""
        return self.gradient

    def supports(self, problem: Problem) -> str | None:
        """None, or the reason why it cannot serve `problem`."""
        return self.gradient.supports(problem)

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        return self.gradient.supports_solver(solver)

    def build(
        self,
        problem: Problem,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        network: Network = ValueNetwork,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> HamiltonianPolicy:
        """A policy of a value network that differentiates by this estimator."""
        return HamiltonianPolicy(
            problem,
            network.for_problem(problem, width=width, depth=depth, generator=generator),
            fixed_point_map=fixed_point_map,
            solver=solver,
            gradient=self.gradient,
        )

    def describe(self) -> str:
        """The estimator's first line and its settings, after what is learnt before."""
        return self._after_supervision(first_line(self.gradient) + settings_of(self.gradient))


class UnrolledNetworkMethod(Method):
    """Unrolling with the value network evaluated anew in every inner iteration."""

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        return needs_iterations("unrolled-network", solver)

    def build(
        self,
        problem: Problem,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        network: Network = ValueNetwork,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> UnrolledNetworkPolicy:
        """A policy that evaluates the network in every iteration; ValueError without iterations."""
        if (reason := self.supports_solver(solver)) is not None:
            raise ValueError(reason)
        policy = EstimatorMethod(Unrolled()).build(
            problem,
            fixed_point_map=fixed_point_map,
            solver=solver,
            network=network,
            width=width,
            depth=depth,
            generator=generator,
        )
        return UnrolledNetworkPolicy(policy)


@dataclass(frozen=True)
class PolicyMethod(Method):
    """A policy of its own kind: `policy` is a class that is built from a problem alone.

    Of `network`, `width`, `depth` and `generator` the class is given what its constructor names.
    One that names no generator draws its parameters from torch's global one, which is seeded for
    it and restored afterwards. With `supervision` the controls of a direct policy are fitted to
    optimal ones first.
    """

    policy: type[Policy]
    supervision: Supervision | None = None
    inner_problem: ClassVar[bool] = False

    def build(
        self,
        problem: Problem,
        *,
        fixed_point_map: FixedPointMap,
        solver: Solver,
        network: Network = ValueNetwork,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Policy:
        """The policy, built with those of the arguments that its constructor takes."""
        offered: dict[str, Any] = {
            "network": network,
            "width": width,
            "depth": depth,
            "generator": generator,
        }
        named = inspect.signature(self.policy).parameters
        given = {name: value for name, value in offered.items() if name in named}
        if generator is None or "generator" in given:
            return self.policy(problem, **given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            return self.policy(problem, **given)

    def describe(self) -> str:
        """The policy's first line, after what is learnt before."""
        return self._after_supervision(first_line(self.policy))


def as_method(given: object) -> Method:
    """`given` as a method.

    It may be a method, a gradient estimator, a class of either whose constructor needs no
    argument, or a class of policies that is built from a problem. Raises TypeError otherwise.
    """
    if inspect.isclass(given):
        if issubclass(given, Policy):
            return PolicyMethod(given)
        if issubclass(given, Method | GradientEstimator):
            given = given()
    if isinstance(given, GradientEstimator):
        return EstimatorMethod(given)
    if isinstance(given, Method):
        return given
    raise TypeError(
        "a method must be a baselines.Method, a jfbcore.jfb.GradientEstimator or a class of "
        f"jfbcore.policy.Policy, got {given!r}"
    )


def first_line(described: object) -> str:
    """The first sentence or line of an object's docstring, without its full stop."""
    text = inspect.getdoc(described) or "(no description)"
    return text.splitlines()[0].removesuffix(".")


def settings_of(configured: object) -> str:
    """The fields of a dataclass that differ from their defaults, in brackets; empty without."""
    if not dataclasses.is_dataclass(configured):
        return ""
    changed = []
    for field in dataclasses.fields(configured):
        value = getattr(configured, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if field.repr and value != default:
            changed.append(f"{field.name}={value!r}")
    return f" ({', '.join(changed)})" if changed else ""
