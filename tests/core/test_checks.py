"""Each wrong problem is refused with one line when a policy is built for it."""

from __future__ import annotations

import re

import pytest
import torch

from baselines import METHODS, DirectPolicy, build_policy
from jfbcore import checks
from jfbcore.checks import check_problem
from jfbcore.hamiltonian import DerivedHamiltonian
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS, Consumption, Quadrotor
from jfbcore.solvers import Picard
from tests.problems.double_integrator import DoubleIntegrator


class WrongGradient(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def grad(self, u):
            return 1.3 * super().grad(u)

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class WrongSign(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def grad(self, u):
            return -super().grad(u)

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class WrongHessian(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def hvp(self, u, v):
            return -(0.5 * u.square().sum(1, keepdim=True)).exp() * v  # without u u^T

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class WrongValue(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def value(self, u):
            return super().value(u) + 1.0

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class Downhill(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def newton_direction(self, u, r):
            return -super().newton_direction(u, r)

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class NegativeScaling(DoubleIntegrator):
    class Own(DerivedHamiltonian):
        def curvature_scaling(self, u):
            return -super().curvature_scaling(u)

    def hamiltonian(self, t, z, p):
        return self.Own(self, t, z, p)


class DetachedCostate(DoubleIntegrator):
    def hamiltonian(self, t, z, p):
        return DetachedCostate.Own(self, t, z, p.detach())

    class Own(DerivedHamiltonian):
        pass


class CostColumn(DoubleIntegrator):
    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u).unsqueeze(1)


class TerminalColumn(DoubleIntegrator):
    def terminal_cost(self, z):
        return super().terminal_cost(z).unsqueeze(1)


class DetachedCost(DoubleIntegrator):
    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u.detach()) + u.square().sum(1)


class DetachedTerminalCost(DoubleIntegrator):
    def terminal_cost(self, z):
        return super().terminal_cost(z.detach()) + z.sum(1)


class MixedSamples(DoubleIntegrator):
    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u) + u.square().mean()


class IgnoresGenerator(DoubleIntegrator):
    def sample_initial_states(self, batch, generator):
        return torch.randn(batch, self.state_dim, dtype=self.dtype)


class SeedsItself(DoubleIntegrator):
    def sample_initial_states(self, batch, generator):
        own = torch.Generator().manual_seed(7)
        return super().sample_initial_states(batch, own)


class WrongDtype(DoubleIntegrator):
    def sample_initial_states(self, batch, generator):
        return super().sample_initial_states(batch, generator).double()


class WrongSteered(DoubleIntegrator):
    steered = slice(0, 2)  # the velocities are what the control moves


class WideStates(DoubleIntegrator):
    def sample_initial_states(self, batch, generator):
        return torch.cat([super().sample_initial_states(batch, generator)] * 2, 1)


class WrongStateDim(DoubleIntegrator):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.state_dim = 6

    def terminal_cost(self, z):
        return super().terminal_cost(z[:, :4])


class NarrowRate(DoubleIntegrator):
    def dynamics(self, t, z, u):
        return super().dynamics(t, z, u)[:, :3]


class IdleControl(DoubleIntegrator):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.control_dim = 3

    def dynamics(self, t, z, u):
        return super().dynamics(t, z, u[:, :2])

    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u[:, :2])


class TooFewControls(DoubleIntegrator):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.control_dim = 1


class SizeNotSet(DoubleIntegrator):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.control_dim = 2.0


class NotFinite(DoubleIntegrator):
    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u) - u.log().sum(1)  # infinite at zero control


class SinglePrecision(DoubleIntegrator):
    def running_cost(self, t, z, u):
        return super().running_cost(t, z, u).float()


WRONG = {
    WrongGradient: r"\.hamiltonian\(\)\.grad` differs from the gradient of H derived from "
    r"`dynamics` and `running_cost` by 3\.0e-01 \(relative\) at t=0",
    WrongSign: r"hamiltonian\(\)\.grad` differs .* by 2\.0e\+00",
    WrongHessian: r"hamiltonian\(\)\.hvp` differs from the Hessian product of H",
    WrongValue: r"hamiltonian\(\)\.value` differs from H derived",
    Downhill: r"newton_direction` must be an ascent direction",
    NegativeScaling: r"curvature_scaling` must be positive",
    DetachedCostate: r"hamiltonian\(\)\.grad` differs .* in its derivative by the costate by 1\.0",
    CostColumn: r"running_cost` returned shape \(3, 1\), expected \(3,\) = \(batch,\)",
    TerminalColumn: r"terminal_cost` returned shape \(3, 1\), expected \(3,\) = \(batch,\)",
    DetachedCost: r"running_cost` has a derivative by u that differs from finite differences",
    DetachedTerminalCost: r"terminal_cost` has a derivative by z that differs",
    MixedSamples: r"running_cost` differs from its value for one sample alone",
    IgnoresGenerator: r"sample_initial_states` ignores its generator: .* with one seed differ",
    SeedsItself: r"sample_initial_states` ignores its generator: .* the same for another seed",
    WrongDtype: r"sample_initial_states` returned torch\.float64 on cpu, expected .*float32",
    WideStates: r"sample_initial_states` returned shape \(3, 8\), expected \(3, 4\)",
    WrongStateDim: r"dynamics` failed .*state_dim = 6|dynamics` returned shape",
    WrongSteered: r"steered` differs from grad H without the costates it leaves out by",
    NarrowRate: r"dynamics` returned shape \(3, 3\), expected \(3, 4\) = \(batch, state_dim\)",
    IdleControl: r"control 2 of `IdleControl` changes neither .*`control_dim` = 3 right",
    TooFewControls: r"dynamics` failed for a batch of 3, state_dim = 4, control_dim = 1",
    SizeNotSet: r"`SizeNotSet\.control_dim` must be an integer >= 1, got 2\.0",
    NotFinite: r"running_cost` is not finite at t=0, initial states and initial control: got inf",
    SinglePrecision: r"running_cost` returned torch\.float32 for states of torch\.float64",
}


def policy_of(problem, gradient="jfb"):
    return build_policy(
        problem, METHODS[gradient], fixed_point_map=MAPS["scaled"], solver=Picard(), width=4
    )


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_wrong_problems_are_refused_with_one_line(wrong):
    for build in (policy_of, DirectPolicy):
        with pytest.raises(ValueError, match=WRONG[wrong]) as caught:
            build(wrong())
        message = str(caught.value)
        assert wrong.__name__ in message
        assert "\n" not in message


def test_what_was_refused_is_refused_again():
    for _ in range(2):
        with pytest.raises(ValueError, match="grad"):
            policy_of(WrongGradient())


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n_agents", [1, 2, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_suites_own_problems_pass(name, n_agents, dtype):
    check_problem(PROBLEMS[name](n_agents=n_agents, dtype=dtype))


def test_variants_pass():
    for problem in (
        Consumption.released(5),
        Consumption(5, eta=1.0),
        Consumption(2, A=[[1.0, 0.3], [0.0, 1.0]]),
        Quadrotor(2, initial_scale=0.0),  # one initial state for every sample
        Quadrotor(2, device="meta"),
        DoubleIntegrator(20),
    ):
        check_problem(problem)


def test_an_equal_problem_is_checked_once(monkeypatch):
    runs = []
    run = checks._Check.run
    monkeypatch.setattr(checks._Check, "run", lambda self: (runs.append(self.name), run(self)))

    class Fresh(DoubleIntegrator):
        pass

    for n_agents in (1, 1, 2, 1):
        check_problem(Fresh(n_agents))
    assert len(runs) == 2
    # A tensor's value does not name a problem: such a one is checked for each object.
    first, second = Fresh(), Fresh()
    first.weight = second.weight = torch.ones(2)
    for problem in (first, first, second):
        check_problem(problem)
    assert len(runs) == 4


def test_the_callers_random_numbers_and_modes_are_left_alone():
    class Fresh(DoubleIntegrator):
        pass

    class Global(IgnoresGenerator):
        pass

    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.inference_mode():
        check_problem(Fresh())
    with pytest.raises(ValueError, match="generator"):
        check_problem(Global())
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_kept_as_single_precision_tensors_are_converted():
    class Weighted(DoubleIntegrator):
        def __init__(self, **keywords):
            super().__init__(**keywords)
            self.weights = torch.tensor([1.0, 2.0])

        def running_cost(self, t, z, u):
            return super().running_cost(t, z, u) + u.square() @ self.weights

    check_problem(Weighted())
    assert re.search("float32", str(Weighted().weights.dtype))
