"""Costates and their slopes along optimal trajectories, held against IPOPT.

IPOPT knows nothing of costates: its multipliers of the Euler steps and the optima of neighbouring
initial states are independent of the sweeps that are tested here.
"""

from __future__ import annotations

import pytest
import torch

from baselines import extremals
from baselines.extremals import flown_beside
from bench.reference.best_response import BestResponse
from bench.reference.ipopt import Ipopt, Program
from bench.reference.solution import open_loop_cost
from bench.reference.starts import starting_guesses
from jfbcore.problems import Bicycle, Consumption, Quadrotor

pytest.importorskip("casadi")
F64 = torch.float64
PROBLEMS = {
    "quadrotor": lambda: Quadrotor(1, n_steps=20, dtype=F64),
    # All agents stay closer than 2 m, where the interaction jumps and IPOPT's does not.
    "quadrotors": lambda: Quadrotor(2, n_steps=10, t_final=1.0, dtype=F64),
    "bicycle": lambda: Bicycle(1, n_steps=20, dtype=F64),
    "consumption": lambda: Consumption(2, n_steps=20, dtype=F64),
}


def optimum(problem, states):
    """IPOPT's controls (S, n_steps, m) and multipliers (S, n_steps, n), one start each."""
    program, controls, multipliers = Program.build(problem, Ipopt()), [], []
    for state in states:
        guess = starting_guesses(problem, state, 1, seed=0)[0]
        result = program.solve(state.numpy(), program.point(guess))
        assert result.solution.solved
        controls.append(result.solution.controls)
        size = problem.n_steps * problem.state_dim
        dual = torch.from_numpy(result.point.dual[:size])
        multipliers.append(dual.view(problem.n_steps, problem.state_dim))
    return torch.stack(controls), torch.stack(multipliers)


@pytest.fixture(params=PROBLEMS)
def solved(request):
    problem = PROBLEMS[request.param]()
    states = problem.sample_initial_states(2, torch.Generator().manual_seed(3))
    return problem, states, *optimum(problem, states)


def test_the_costates_are_the_multipliers_of_the_euler_steps(solved):
    """With the sign of p = grad phi: H = -<p, f> - L."""
    problem, states, controls, multipliers = solved
    found = extremals(problem, states, controls)
    # IPOPT's own tolerance is 1e-9, relative to its scaling of the program.
    torch.testing.assert_close(found.costates, multipliers, rtol=1e-5, atol=1e-6)


def test_the_controls_maximise_the_hamiltonian_with_them(solved):
    problem, states, controls, _ = solved
    found = extremals(problem, states, controls)
    for i, t in enumerate(found.times.tolist()):
        h = problem.hamiltonian(t, found.states[:, i], found.costates[:, i])
        u = controls[:, i]
        reached = h.project(u + h.grad(u) / problem.gradient_scale) - u
        assert reached.abs().max() < 1e-5
        if isinstance(problem, Quadrotor):  # Lambert's W
            torch.testing.assert_close(h.closed_form(), u, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("which", ["costates", "controls"])
def test_slopes_and_feedback_lead_to_a_neighbour(solved, which):
    """Central differences of costates and controls at the first time step, between optima."""
    problem, states, controls, _ = solved
    found = extremals(problem, states, controls)
    random = torch.randn(states.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    d = 1e-3 * random
    slope, part = (found.slopes, 1) if which == "costates" else (found.feedback, 0)
    there, back = (optimum(problem, x)[part][:, 0] for x in (states + d, states - d))
    expected = 0.5 * (there - back)
    change = (slope[:, 0] @ d.unsqueeze(2)).squeeze(2)
    # Third derivatives over differences of 1e-3; IPOPT's multipliers are good to 1e-8 or so.
    torch.testing.assert_close(change, expected, rtol=2e-3, atol=1e-3 * expected.abs().max().item())


def test_a_control_that_is_nearly_optimal_still_has_its_feedback(solved):
    """One that is inside its bounds is free, whatever the slope of the cost there."""
    problem, states, controls, _ = solved
    inside = 0.99999 * controls if problem.name != "consumption" else controls + 1e-5
    expected, found = (extremals(problem, states, u).feedback for u in (controls, inside))
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_what_is_no_minimum_has_a_feedback_that_leads_back():
    """Bicycles that answer each other end where none gains alone; together they are on no minimum,
    and the exact recursion grows beyond all bounds."""
    problem = Bicycle(6, dtype=F64)
    state = problem.sample_initial_states(1, torch.Generator().manual_seed(1))
    (solution,) = BestResponse(ipopt=Ipopt()).solve(problem, state)
    found = extremals(problem, state, solution.controls[None])
    assert found.slopes.abs().max() < 1e4
    shift = 0.05 * torch.randn(16, 6, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    beside = state + torch.cat((shift, torch.zeros_like(shift)), 2).flatten(1)
    kept = open_loop_cost(problem, beside, solution.controls.expand(16, -1, -1))
    _, _, cost = flown_beside(problem, found, beside)
    assert cost.mean() < 1.006 * solution.cost
    assert kept.mean() > 1.3 * solution.cost


def test_controls_of_another_shape_are_refused():
    problem = PROBLEMS["quadrotor"]()
    x = problem.sample_initial_states(2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"`controls` must be \(2, 20, 4\), got \(2, 19, 4\)"):
        extremals(problem, x, torch.zeros(2, 19, 4, dtype=F64))
