"""What a method has to satisfy to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baselines import DenseLU, Implicit, Method
from bench.check.points import BATCH, generator
from bench.check.requirement import (
    Unmet,
    declared,
    require,
    require_finite,
    require_tensor,
    requirement,
)
from bench.memory import SavedTensorCounter
from jfbcore.maps import ScaledMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems import PROBLEMS, Problem
from jfbcore.rollout import rollout
from jfbcore.solvers import SOLVERS, Newton, Picard, Solver

#: inner iterations at which saved bytes are compared, and those of a method that needs exactly K
COUNTS = (5, 50)
_EXACT = 300
#: inner residual asked for, in units of the problem's gradient scale, and how near the control
#: then is to the maximiser's, relative: the curvature lies between
_TOLERANCE, _NEAR = 1e-9, 1e-5
#: spread of the noise on a layer's output per unit of its input: controls of order 0.1
_NOISE = 0.3


@dataclass(frozen=True)
class MethodSubject:
    """A method, and what makes the problems it is checked on: those that it serves of these."""

    method: Method
    problems: Sequence[Callable[..., Problem]] = field(
        default_factory=lambda: tuple(PROBLEMS.values())
    )

    def problem(self, n_steps: int = 3) -> Problem:
        """The first problem that the method serves, for two agents in float64."""
        reasons = []
        for make in self.problems:
            problem = make(n_agents=2, n_steps=n_steps, dtype=torch.float64)
            if (reason := self.method.supports(problem)) is None:
                return problem
            reasons.append(f"{problem.name}: {reason}")
        raise Unmet(f"it serves none of the problems ({'; '.join(reasons)})")

    def solver(self, problem: Problem) -> Solver:
        """The first solver that the method works with: to a tolerance, else exactly K times."""
        tolerance = _TOLERANCE * problem.gradient_scale
        for limits in ({"tolerance": tolerance}, {"tolerance": None, "max_iterations": _EXACT}):
            for make in SOLVERS.values():
                solver = make(**limits)
                if solver.supports(problem) is None and self._works_with(solver):
                    return solver
        raise Unmet("it works with none of the solvers")

    def policy(self, problem: Problem, solver: Solver | None = None) -> Policy:
        """A small policy on `problem`, always the same."""
        return self.method.build(
            problem,
            fixed_point_map=ScaledMap(),
            solver=self.solver(problem) if solver is None else solver,
            width=8,
            depth=3,
            generator=generator(),
        )

    def generic_policy(self, problem: Problem) -> Policy:
        """The same with noise on its parameters: a new policy's controls are near the start's."""
        policy, random = self.policy(problem), generator(7)
        with torch.no_grad():
            for parameter in policy.parameters():
                noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
                width = parameter.shape[-1] if parameter.dim() else 1
                parameter.add_(_NOISE * noise.to(parameter) / width**0.5)
        return policy

    def decision(self) -> tuple[Policy, Tensor, Decision]:
        """A policy, states (batch, n), and what it decides there."""
        problem = self.problem()
        policy, z = self.generic_policy(problem), problem.sample_initial_states(BATCH, generator(1))
        return policy, z, policy(0.0, z)

    def _works_with(self, solver: Solver) -> bool:
        return not self.method.inner_problem or self.method.supports_solver(solver) is None


@requirement(
    "says with a reason what it cannot serve",
    "let supports(problem) and supports_solver(solver) return None or a sentence; give "
    "--problem if it serves none of the suite's own",
    essential=True,
)
def gives_reasons(subject: MethodSubject) -> str:
    served = []
    for make in subject.problems:
        problem = make(n_agents=1)
        reason = subject.method.supports(problem)
        _require_reason(reason, f"supports({problem.name})")
        served += [problem.name] if reason is None else []
    for name, solver in SOLVERS.items():
        _require_reason(subject.method.supports_solver(solver()), f"supports_solver({name})")
    problem = subject.problem()
    if subject.method.inner_problem:
        subject.solver(problem)
    return f"serves {', '.join(served)}"


@requirement(
    "builds a policy whose parameters its generator decides",
    "return a jfbcore.policy.Policy with `problem` set; draw parameters with the generator",
    essential=True,
)
def builds_a_policy(subject: MethodSubject) -> str:
    problem = subject.problem()
    one, two = subject.policy(problem), subject.policy(problem)
    require(isinstance(one, Policy), f"build returned {type(one).__name__}, which is no Policy")
    require(getattr(one, "problem", None) is problem, "the policy's `problem` is not the one given")
    require(any(p.requires_grad for p in one.parameters()), "the policy has nothing to train")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        require(torch.equal(a, b), "two policies of one seed have different parameters")
    return f"{sum(p.numel() for p in one.parameters()):,} parameters at width 8"


@requirement(
    "decides a finite control with a graph",
    "return Decision(control), control of shape (batch, m), from forward(t, z, warm_start)",
    essential=True,
)
def decides(subject: MethodSubject) -> None:
    policy, z, decision = subject.decision()
    require(
        isinstance(decision, Decision),
        f"forward returned {type(decision).__name__}, expected jfbcore.policy.Decision",
    )
    require_tensor(
        decision.control, (len(z), policy.problem.control_dim), torch.float64, "the control"
    )
    require_finite(decision.control, "the control")
    require(decision.control.requires_grad, "the control has no graph to the parameters")


@requirement(
    "decides the same without grad mode, and detached",
    "return the solver's own solution where torch.is_grad_enabled() is False",
)
def without_grad_mode(subject: MethodSubject) -> None:
    policy, z, decision = subject.decision()
    with torch.no_grad():
        control = policy(0.0, z).control
    require(not control.requires_grad, "the control carries a graph under torch.no_grad()")
    difference = (control - decision.control).abs().max().item()
    require(
        difference <= _NEAR * max(1.0, control.abs().max().item()),
        f"the control differs by {difference:.2g} from the one with a graph",
    )


@requirement(
    "finds the maximiser of H, where it has an inner problem",
    "start from solver.solve(fixed_point_map, initial) and leave the control where it is; set "
    "inner_problem = False where no Hamiltonian is maximised",
)
def maximises_the_hamiltonian(subject: MethodSubject) -> str | None:
    if not subject.method.inner_problem:
        return "no inner problem"
    _, _, decision = subject.decision()
    hamiltonian = decision.hamiltonian
    if hamiltonian is None or decision.solution is None:
        raise Unmet("the decision has no Hamiltonian or no solution")
    with torch.no_grad():
        u = hamiltonian.closed_form()
        name = "the closed form"
        if u is None:
            newton = Newton(tolerance=1e-11 * hamiltonian.problem.gradient_scale)
            t, z, _ = hamiltonian.inputs
            start = hamiltonian.problem.initial_control(t, z)
            u = newton.solve(ScaledMap().bind(hamiltonian), start).control
            name = "Newton's method"
        error = ((decision.control - u).abs().max() / u.abs().max().clamp_min(1.0)).item()
    require(error <= _NEAR, f"the control is {error:.2g} from that of {name}, relative")
    return f"{error:.1e} from {name}"


@requirement(
    "has a finite gradient that is not zero",
    "re-attach the control to the Hamiltonian's z and p, by fixed_point_map(control) or a "
    "backward of your own",
)
def has_a_gradient(subject: MethodSubject) -> str | None:
    problem = subject.problem()
    policy = subject.generic_policy(problem)
    x = problem.sample_initial_states(BATCH, generator(1))
    gradient = _gradient(policy, x)
    require_finite(gradient, "the gradient")
    require(gradient.ne(0).any(), "the gradient is zero")
    if not isinstance(policy, HamiltonianPolicy):
        return None
    exact = _gradient(policy.with_gradient(Implicit(DenseLU())), x)
    cosine = torch.nn.functional.cosine_similarity(gradient, exact, dim=0).item()
    return f"cosine with the implicit gradient {cosine:.6f}"


@requirement(
    "saves for backward (a figure to know)",
    "build the policy with Picard(tolerance=None), or refuse that solver with a reason",
)
def memory_in_iterations(subject: MethodSubject) -> str:
    problem = subject.problem()
    found = []
    for count in COUNTS:
        solver = Picard(tolerance=None, max_iterations=count)
        if not subject._works_with(solver):
            return "not with exactly K iterations of Picard"
        policy = subject.policy(problem, solver)
        x = problem.sample_initial_states(BATCH, generator(1))
        with SavedTensorCounter(exclude=[x, *policy.parameters()]) as saved:
            rollout(policy, x)
        found.append(saved.bytes)
    few, many = found
    growth = "the same" if few == many else f"{many / few:.1f} times as much"
    return f"{few:,} bytes saved at K = {COUNTS[0]}, {growth} at K = {COUNTS[1]}"


def _require_reason(reason: object, call: str) -> None:
    sentence = reason is None or (isinstance(reason, str) and reason)
    require(sentence, f"{call} returned {reason!r}")


def _gradient(policy: Policy, x: Tensor) -> Tensor:
    parameters = list(policy.parameters())
    cost = rollout(policy, x).cost.mean()
    parts = torch.autograd.grad(cost, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


METHOD_REQUIREMENTS = declared(globals())
