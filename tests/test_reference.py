"""Reference optima: two independent solvers, one discretisation, and a cache that cannot lie."""

from __future__ import annotations

import argparse
import inspect
import json
import math

import pytest
import torch

from bench.commands import reference as command
from bench.gap import gaps
from bench.reference.cache import (
    StaleReference,
    discretisation_hash,
    label_of,
    load_reference,
    make_reference,
    optimality_gap,
    reference_path,
    save_reference,
)
from bench.reference.solution import Solution, in_double, open_loop_cost
from bench.reference.transcription import Transcription, decisions_of, flown
from jfbcore.held_out import held_out_states
from jfbcore.problems import PROBLEMS, Bicycle, Consumption, Quadrotor

SMALL = [
    pytest.param(Quadrotor(n_steps=30), id="quadrotor-1"),
    pytest.param(Quadrotor(3, n_steps=20), id="quadrotor-3"),
    pytest.param(Bicycle(n_steps=30), id="bicycle-1"),
    pytest.param(Consumption(5, n_steps=40), id="consumption-5"),
    pytest.param(Consumption(2, n_steps=40, eta=1.0, theta=1.0), id="consumption-convex"),
    pytest.param(Consumption.released(2, n_steps=40), id="consumption-released"),
    pytest.param(
        Consumption(2, n_steps=40, A=[[0.8, 0.1], [0.3, 0.8]], B=[[1.0, -0.1], [0.0, 0.9]]),
        id="consumption-coupled",
    ),
]


def solve_ipopt(problem, count, **settings):
    ipopt = pytest.importorskip("bench.reference.ipopt", exc_type=ImportError)
    return ipopt.Ipopt(**settings).solve(problem, held_out_states(in_double(problem), count))


def solution(cost, *, solved=True):
    controls = torch.zeros(1, 1, dtype=torch.float64)
    return Solution(
        cost=cost, objective=cost, controls=controls, status="made up", solved=solved, seconds=0.0
    )


@pytest.mark.parametrize(
    "problem",
    [
        *SMALL,
        pytest.param(Quadrotor(), id="quadrotor-default"),
        pytest.param(Bicycle(), id="bicycle-default"),
        pytest.param(Consumption(), id="consumption-default"),
    ],
)
def test_rollout_pays_what_ipopt_says(problem):
    # Two implementations of the same discretisation: CasADi's expressions and torch's. What is
    # left is IPOPT's constraint violation, 1e-9, times its multipliers.
    for found in solve_ipopt(problem, 2, starts=1):
        assert found.solved, found.status
        assert found.cost == pytest.approx(found.objective, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(Quadrotor(n_steps=20), id="quadrotor-1"),
        pytest.param(Bicycle(n_steps=20), id="bicycle-1"),
        pytest.param(Consumption(5, n_steps=40), id="consumption-5"),
        pytest.param(Consumption(2, n_steps=40, eta=1.0, theta=1.0), id="consumption-convex"),
    ],
)
def test_transcription_finds_the_same_optimum(problem):
    states = held_out_states(in_double(problem), 1)
    exact = solve_ipopt(problem, 1)
    found = Transcription().solve(problem, states)
    # 0.1 % is the accuracy asked of a best known cost.
    assert [x.cost for x in found] == pytest.approx([x.cost for x in exact], rel=1e-3)


@pytest.mark.slow
def test_transcription_comes_back_to_a_coupled_optimum():
    # From afar the two may end in different local optima; from nearby they must agree.
    problem = Quadrotor(3, n_steps=15)
    states = held_out_states(in_double(problem), 2)
    exact = solve_ipopt(problem, 2)
    controls = torch.stack([found.controls for found in exact])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(controls.shape, generator=generator, dtype=torch.float64)
    nearby = controls + 0.02 * noise
    disturbed = open_loop_cost(problem, states, nearby)
    optima = torch.tensor([found.cost for found in exact], dtype=torch.float64)
    assert (disturbed > 1.01 * optima).all()
    found = Transcription().solve(problem, states, controls=nearby)
    assert [x.cost for x in found] == pytest.approx(optima.tolist(), rel=1e-3)


def test_no_perturbed_control_is_better():
    problem = in_double(Quadrotor(n_steps=40))
    state = held_out_states(problem, 1)
    (best,) = solve_ipopt(problem, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50, 40, 4, generator=generator, dtype=torch.float64)
    costs = open_loop_cost(problem, state.expand(50, -1), best.controls + 1e-2 * noise)
    assert costs.min() > best.cost


def test_default_quadrotor_optimum():
    # From hover alone, as independent figures were found, IPOPT stops at a mean of 14.4 (9.7 to
    # 19.8) over 16 states drawn otherwise, and at 14.6 over these; better starts end lower.
    costs = [found.cost for found in solve_ipopt(Quadrotor(), 4, starts=2)]
    assert 12.0 < sum(costs) / 4 < 14.4
    assert min(costs) > 9.0


def test_controls_are_admissible():
    bicycle = Bicycle(n_steps=30)
    for found in solve_ipopt(bicycle, 2):
        assert found.controls[:, 0].abs().max() <= bicycle.max_steering
    problem = Consumption(2, n_steps=30)
    states = held_out_states(in_double(problem), 1)
    (found,) = solve_ipopt(problem, 1)
    decisions = decisions_of(problem, states, found.controls[None])
    assert torch.isfinite(decisions).all()
    # the inverse of the parametrisation gives the controls back
    again = flown(problem, states, decisions)[0]
    torch.testing.assert_close(again[0], found.controls, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("problem", [Bicycle(n_steps=20), Quadrotor(n_steps=20)])
def test_more_starts_never_cost_more(problem):
    one, many = solve_ipopt(problem, 1, starts=1), solve_ipopt(problem, 1, starts=8)
    for single, multiple in zip(one, many, strict=True):
        assert multiple.cost <= single.cost * (1 + 1e-8)


def test_failure_is_a_status():
    (found,) = solve_ipopt(Quadrotor(n_steps=20), 1, max_iterations=1)
    assert not found.solved
    assert found.status == "Maximum_Iterations_Exceeded"
    cached = make_reference(Quadrotor(n_steps=20), "ipopt", [found])
    assert cached.costs == (None,)
    assert cached.statuses == ("Maximum_Iterations_Exceeded",)


def changed(value):
    if isinstance(value, tuple):
        return (*value[:-1], changed(value[-1]))
    return value + 1 if isinstance(value, int) else 1.01 * value


@pytest.mark.parametrize("problem", PROBLEMS.values())
def test_hash_sees_every_parameter(problem):
    base = discretisation_hash(problem(2))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(problem).parameters.items()
        if name not in ("n_agents", "n_goods", "n_assets", "dtype", "device")
    }
    others = [
        problem(2, **{name: [[0.9, 0.1], [0.0, 1.0]] if value is None else changed(value)})
        for name, value in defaults.items()
    ]
    assert len(others) >= 8
    found = {base, discretisation_hash(problem(3)), *map(discretisation_hash, others)}
    assert len(found) == len(others) + 2
    # precision and device are not part of the problem
    assert discretisation_hash(problem(2, dtype=torch.float64)) == base


def test_hash_tells_problems_apart():
    hashes = {discretisation_hash(problem(2)) for problem in PROBLEMS.values()}
    assert len(hashes) == len(PROBLEMS)


def test_cache_round_trip_and_staleness(tmp_path):
    problem = Quadrotor(2)
    assert load_reference(problem, tmp_path) is None
    saved = make_reference(problem, "transcription", [solution(2.0), solution(3.0, solved=False)])
    path = save_reference(saved, problem, tmp_path)
    assert path == reference_path(problem, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["quadrotor-2.json"]
    assert load_reference(problem, tmp_path) == saved
    with pytest.raises(StaleReference, match=r"quadrotor-2\.json is stale: its discretisation"):
        load_reference(Quadrotor(2, mass=0.6), tmp_path)
    content = json.loads(path.read_text()) | {"schema_version": 0}
    path.write_text(json.dumps(content))
    with pytest.raises(StaleReference, match="schema version is 0"):
        load_reference(problem, tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: "{", "is not a reference"),
        (lambda content: "[1]", "is not a reference"),
        (lambda content: json.dumps({**content, "costs": 3.0}), "is incomplete"),
        (lambda content: json.dumps({**content, "costs": ["much"]}), "is incomplete"),
        (lambda content: json.dumps({**content, "costs": [None]}), "no costs to compare with"),
        (lambda content: json.dumps({**content, "costs": [0.0]}), "no costs to compare with"),
        (lambda content: json.dumps({**content, "surprise": 1}), "is incomplete"),
    ],
)
def test_a_damaged_file_is_named_and_a_reason_for_no_gap(damage, words, tmp_path, monkeypatch):
    problem = Quadrotor(2)
    saved = make_reference(problem, "transcription", [solution(2.0)])
    folder = tmp_path / "references"
    path = save_reference(saved, problem, folder)
    monkeypatch.setattr("bench.places.references", lambda _: folder)
    assert gaps(problem).of([3.0]) == pytest.approx(0.5)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=words):
        load_reference(problem, folder)
    found = gaps(problem)
    assert found.of([3.0]) is found.states([3.0]) is None
    assert words in found.reason


def test_optimality_gap_uses_the_solved_prefix():
    solutions = [solution(2.0), solution(5.0, solved=False), solution(-4.0)]
    reference = make_reference(Quadrotor(), "transcription", solutions)
    # (3 - 2)/2 and (-3 + 4)/4; the second state has no reference, the fourth is not cached
    assert optimality_gap([3.0, 9.0, -3.0, 1.0], reference) == pytest.approx(0.375)
    assert optimality_gap(torch.tensor([3.0]), reference) == pytest.approx(0.5)
    assert math.isnan(optimality_gap([math.nan], reference))
    with pytest.raises(ValueError, match="none in common"):
        optimality_gap([], reference)


def test_labels():
    assert label_of(Consumption(2, eta=1.0, theta=1.0), "ipopt") == "optimal"
    assert label_of(Consumption(2), "ipopt") == "locally optimal"
    assert label_of(Quadrotor(), "transcription") == "best known"


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_command_prints_and_caches(tmp_path, capsys):
    pytest.importorskip("casadi")
    arguments = ("--problem", "consumption", "--agents", "2", "--out", str(tmp_path))
    assert run_command(*arguments, "--states", "2", "--method", "both") == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["states"] == 2
    assert line["min"] <= line["mean"] <= line["max"]
    assert abs(line["difference"]) < 1e-3
    cached = load_reference(Consumption(2), tmp_path)
    assert cached is not None
    assert len(cached.costs) == 2
    # fewer states do not replace more
    assert run_command(*arguments, "--states", "1") == 0
    assert "left as it is" in capsys.readouterr().out
    assert load_reference(Consumption(2), tmp_path) == cached


def test_states_that_failed_do_not_replace_solved_ones(tmp_path, capsys, monkeypatch):
    ipopt = pytest.importorskip("bench.reference.ipopt", exc_type=ImportError)
    problem = in_double(Consumption(2))
    saved = make_reference(problem, "ipopt", [solution(2.0), solution(3.0)])
    save_reference(saved, problem, tmp_path)
    found = [solution(2.0)] + [solution(3.0, solved=False)] * 3
    monkeypatch.setattr(ipopt.Ipopt, "solve_each", lambda *arguments: iter(found))
    arguments = ("--problem", "consumption", "--agents", "2", "--out", str(tmp_path))
    assert run_command(*arguments, "--states", "4") == 1
    assert "left as it is" in capsys.readouterr().out
    assert load_reference(problem, tmp_path) == saved


def test_a_damaged_cache_is_made_anew(tmp_path, capsys):
    pytest.importorskip("casadi")
    problem = Consumption(2)
    reference_path(problem, tmp_path).write_text("{")
    arguments = ("--problem", "consumption", "--agents", "2", "--out", str(tmp_path))
    assert run_command(*arguments, "--states", "1") == 0
    out = capsys.readouterr().out
    assert "is not a reference" in out
    assert json.loads(out.splitlines()[-1])["states"] == 1
    assert len(load_reference(problem, tmp_path).costs) == 1


def test_a_folder_that_cannot_be_written_is_found_before_solving(tmp_path, monkeypatch):
    ipopt = pytest.importorskip("bench.reference.ipopt", exc_type=ImportError)
    monkeypatch.setattr(ipopt.Ipopt, "solve_each", lambda *arguments: pytest.fail("solved"))
    (tmp_path / "file").write_text("")
    arguments = ("--problem", "consumption", "--agents", "2", "--out", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        run_command(*arguments)


def test_a_transcription_without_a_cost_is_null_in_the_json_line(tmp_path, capsys, monkeypatch):
    transcription = pytest.importorskip("bench.reference.transcription")
    pytest.importorskip("casadi")
    found = [solution(math.nan)]
    monkeypatch.setattr(transcription.Transcription, "solve_each", lambda *arguments: iter(found))
    arguments = ("--problem", "consumption", "--agents", "2", "--out", str(tmp_path))
    assert run_command(*arguments, "--states", "1", "--method", "both") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line, parse_constant=pytest.fail)["difference"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--problem", "car"), r"`--problem` must be one of quadrotor, bicycle, .* got 'car'"),
        (("--problem", "bicycle", "--agents", "0"), "`--agents` must be >= 1, got 0"),
        (("--problem", "bicycle", "--states", "65"), "`--states` must be between 1 and 64, got 65"),
        (("--problem", "bicycle", "--method", "snopt"), "`--method` must be one of ipopt"),
        (("--problem", "bicycle", "--starts", "0"), "`--starts` must be >= 1, got 0"),
        (("--problem", "bicycle", "--time-limit", "-1"), "`--time-limit` must be .* got -1"),
        (("--problem", "bicycle", "--time-limit", "nan"), "`--time-limit` must be .* got nan"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_command(*arguments)
    assert "\n" not in str(caught.value)


def test_best_response_is_an_equilibrium_near_the_joint_optimum():
    """What four bicycles answer to each other: they part (together they would pay 5 Q T = 15 for
    the interaction alone), and pay what the joint program's optimum does, which is local too."""
    solver = pytest.importorskip("bench.reference.best_response", exc_type=ImportError)
    problem = in_double(Bicycle(4, n_steps=20))
    states = held_out_states(problem, 1)
    (joint,) = solve_ipopt(problem, 1, starts=1)
    (found,) = solver.BestResponse(tolerance=1e-6, max_rounds=200).solve(problem, states)
    assert (found.solved, found.status) == (True, solver.CONVERGED)
    assert open_loop_cost(problem, states, found.controls[None]).item() == found.cost
    assert found.controls[:, ::2].abs().max() <= problem.max_steering
    assert found.cost < 10
    # Two local optima of one fan, 2.4 % apart on this coarse grid.
    assert found.cost <= 1.1 * joint.cost
    # An equilibrium: no bicycle gains by a change of its own controls alone. They are optimal to
    # IPOPT's tolerance, a thousandth of what the smallest of these changes costs at second order.
    random = torch.Generator().manual_seed(0)
    for agent in range(4):
        own = slice(2 * agent, 2 * agent + 2)
        tried = found.controls.repeat(20, 1, 1)
        size = torch.logspace(-3, -1, 20, dtype=torch.float64)[:, None, None]
        noise = torch.randn(tried[..., own].shape, generator=random, dtype=torch.float64)
        tried[..., own] += size * noise
        tried[..., ::2].clamp_(-problem.max_steering, problem.max_steering)
        costs = open_loop_cost(problem, states.repeat(20, 1), tried)
        assert costs.min() >= found.cost * (1 - 1e-6)


def test_best_response_starts_from_a_common_flight_as_well():
    """Numbered as the states are, and kept where it is the better; controls replace all starts."""
    solver = pytest.importorskip("bench.reference.best_response", exc_type=ImportError)
    problem = in_double(Bicycle(4, n_steps=20))
    states = held_out_states(problem, 3)
    both = solver.BestResponse().solve(problem, states)
    alone = solver.BestResponse(common=False).solve(problem, states)
    assert [(one.starts, two.starts) for one, two in zip(both, alone, strict=True)] == [(2, 1)] * 3
    costs = [[one.cost for one in found] for found in (both, alone)]
    assert all(one <= two for one, two in zip(*costs, strict=True))
    assert costs[0] != costs[1]
    controls = torch.stack([one.controls for one in both])
    paid = open_loop_cost(problem, states, controls).tolist()
    assert paid == pytest.approx(costs[0], rel=1e-12)
    again = solver.BestResponse().solve(problem, states, controls)
    assert [one.starts for one in again] == [1] * 3
    assert [one.cost for one in again] == pytest.approx(paid, rel=1e-3)


def test_best_response_names_what_it_is_not_for():
    pytest.importorskip("casadi")
    with pytest.raises(ValueError, match="`--method` best-response is for several bicycles, got"):
        run_command("--problem", "quadrotor", "--agents", "6", "--method", "best-response")
    with pytest.raises(ValueError, match="got bicycle with 1 agent; use ipopt"):
        run_command("--problem", "bicycle", "--agents", "1", "--method", "best-response")


def test_an_agent_without_a_path_is_a_status(tmp_path, capsys):
    arguments = ("--problem", "bicycle", "--agents", "3", "--states", "1", "--time-limit", "1e-6")
    assert run_command(*arguments, "--method", "best-response", "--out", str(tmp_path)) == 1
    assert "a longer --time-limit" in capsys.readouterr().out


def test_a_time_limit_that_is_too_short_is_named_as_the_reason(tmp_path, capsys):
    arguments = ("--problem", "bicycle", "--agents", "6", "--states", "1", "--time-limit", "0.01")
    assert run_command(*arguments, "--out", str(tmp_path)) == 1
    assert "a longer --time-limit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "name", "bad"),
    [
        ("transcription", "Transcription", {"max_iterations": 0}),
        ("transcription", "Transcription", {"perturbation": -0.1}),
        ("ipopt", "Ipopt", {"starts": 0}),
        ("ipopt", "Ipopt", {"time_limit": -1.0}),
        ("ipopt", "Ipopt", {"tolerance": math.nan}),
        ("best_response", "BestResponse", {"max_rounds": 0}),
    ],
)
def test_bad_settings_of_a_solver_are_named(module, name, bad):
    found = pytest.importorskip(f"bench.reference.{module}", exc_type=ImportError)
    (argument,) = bad
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        getattr(found, name)(**bad)
