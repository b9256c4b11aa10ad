"""What a problem has to satisfy to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from baselines import build_policy
from bench.check.hamiltonian import HAMILTONIAN_REQUIREMENTS
from bench.check.points import BATCH, draw_point, generator
from bench.check.requirement import (
    Requirement,
    declared,
    require,
    require_finite,
    require_tensor,
    requirement,
)
from jfbcore.checks import check_problem
from jfbcore.jfb import JFB
from jfbcore.problems import Problem
from jfbcore.rollout import rollout

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class ProblemSubject:
    """What makes a problem, and the numbers of agents it is checked with."""

    make: Callable[..., Problem]
    agents: tuple[int, ...] = (1, 3)

    def problems(self) -> Iterator[Problem]:
        """The problem in every size and precision."""
        for n_agents in self.agents:
            for dtype in DTYPES:
                yield self.make(n_agents=n_agents, dtype=dtype)


@requirement(
    "is built from n_agents, n_steps, dtype and device, and says its sizes",
    "let __init__ take n_agents first and the keywords n_steps, dtype and device, hand them to "
    "super().__init__, set n_agents, state_dim and control_dim, and give the class a `name`",
    essential=True,
)
def is_built(subject: ProblemSubject) -> None:
    for n_agents in subject.agents:
        for dtype in DTYPES:
            problem = subject.make(n_agents=n_agents, n_steps=7, dtype=dtype, device="cpu")
            require(isinstance(problem, Problem), f"it makes {problem!r}, which is no Problem")
            for name, expected in (("n_agents", n_agents), ("n_steps", 7), ("dtype", dtype)):
                value = getattr(problem, name, None)
                require(value == expected, f"`{name}` is {value!r} where {expected!r} was given")
            for name in ("state_dim", "control_dim"):
                size = getattr(problem, name, None)
                require(
                    isinstance(size, int) and size > 0,
                    f"`{name}` is {size!r}, expected an integer above zero",
                )
            word = getattr(problem, "name", None)
            require(isinstance(word, str) and word, f"`name` is {word!r}, expected a word")


@requirement(
    "initial states follow their generator, and are the same in either precision",
    "draw with self._normal or self._uniform and the generator that is given, nothing else",
    essential=True,
)
def sampler_follows_its_generator(subject: ProblemSubject) -> None:
    for problem in subject.problems():
        random = generator(5)
        first, second = (problem.sample_initial_states(8, random) for _ in range(2))
        require_tensor(first, (8, problem.state_dim), problem.dtype, "sample_initial_states")
        require_finite(first, "sample_initial_states")
        require(not torch.equal(first, second), "two draws in a row are the same")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            again = problem.sample_initial_states(8, generator(5))
        require(torch.equal(first, again), "two generators of one seed give different states")
        other = subject.make(n_agents=problem.n_agents, dtype=torch.float64)
        double = other.sample_initial_states(8, generator(5))
        difference = (first.double() - double).abs().max().item()
        # The draw is the same; scaling and shifting it round once each.
        require(
            difference <= 1e-6 * max(1.0, double.abs().max().item()),
            f"float32 and float64 draw different states: they differ by {difference:.2g}",
        )


@requirement(
    "formulas have their shapes and dtypes, are finite, do not mix samples, and H is made of them",
    "correct the formula that is named; leave `hamiltonian` out and have it derived",
    essential=True,
)
def formulas_fit(subject: ProblemSubject) -> None:
    for problem in subject.problems():
        check_problem(problem)


@requirement(
    "three time steps and their backward pass are finite",
    "see what failed above; else try a smaller t_final or a smaller initial spread",
)
def a_rollout_has_a_gradient(subject: ProblemSubject) -> str:
    costs = []
    for problem in subject.problems():
        short = subject.make(n_agents=problem.n_agents, n_steps=3, dtype=problem.dtype)
        policy = build_policy(short, JFB(), generator=generator(), width=8)
        result = rollout(policy, short.sample_initial_states(BATCH, generator()))
        require_finite(result.cost, "the cost of three time steps")
        result.cost.mean().backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        for gradient in gradients:
            require_finite(gradient, "the gradient of three time steps")
        require(any(g.ne(0).any() for g in gradients), "the gradient of three time steps is zero")
        costs.append(result.cost.mean().item())
    return f"mean cost {', '.join(f'{cost:.4g}' for cost in costs[::2])}"


def _at_points(requirement: Requirement) -> Requirement:
    """A requirement on a point, of the points of a problem."""

    def holds(subject: ProblemSubject) -> None:
        for n_agents in subject.agents:
            requirement.holds(draw_point(subject.make, n_agents))

    return replace(requirement, holds=holds)


*_BEFORE, _LAST = declared(globals())
PROBLEM_REQUIREMENTS = (*_BEFORE, *map(_at_points, HAMILTONIAN_REQUIREMENTS), _LAST)
