"""Trained policies afterwards: scored, drawn, animated."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import jfbcore as jfb
from bench.flights import animate, draw, fly, views
from bench.reference.solution import in_double, open_loop_cost
from jfbcore.problems import Bicycle, Consumption, Quadrotor
from tests.bench.helpers import run_cli
from tests.bench.outside import DOUBLE_INTEGRATOR

SHORT = ("--batch", "2", "--horizon-steps", "4", "--steps", "2")


def trained(capsys, tmp_path, problem, agents=1, gradient="jfb"):
    """A checkpoint of two steps and what training said last."""
    file = tmp_path / "run.pt"
    arguments = ("--problem", problem, "--agents", str(agents), "--gradient", gradient)
    code, out, err = run_cli(capsys, "train", *arguments, *SHORT, "--checkpoint", file)
    assert code == 0, err
    plugin = f" --plugin {problem}" if ":" in problem else ""
    assert f"look at it: python -m bench plot {file}{plugin}\n" in err
    return file, json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("problem", "agents"), [("quadrotor", 3), ("consumption", 2), ("bicycle", 3)]
)
@pytest.mark.parametrize("gradient", ["jfb", "direct"])
def test_evaluate_repeats_what_training_says(problem, agents, gradient, capsys, tmp_path):
    file, said = trained(capsys, tmp_path, problem, agents, gradient)
    code, out, err = run_cli(capsys, "evaluate", file, "--out", tmp_path / "flown.npz")
    answer = json.loads(out)
    assert code == 0
    assert answer["evaluation_cost"] == said["final"]["evaluation_cost"]
    assert f"{answer['evaluation_cost']:.5g}" in err
    content = np.load(tmp_path / "flown.npz")
    width = content["states"].shape[2]
    assert content["times"].shape == (5,)
    assert content["states"].shape == (64, 5, width)
    assert content["costs"].mean() == pytest.approx(answer["evaluation_cost"], rel=1e-6)
    # The Euler steps of the file are the problem's own.
    policy = jfb.load(file)
    z, u = (torch.from_numpy(content[name]) for name in ("states", "controls"))
    step = z[:, 0] + policy.problem.time_step * policy.problem.dynamics(0.0, z[:, 0], u[:, 0])
    torch.testing.assert_close(z[:, 1], step)


def test_states_of_ones_own_and_their_optimum(capsys, tmp_path):
    pytest.importorskip("casadi")
    file, _ = trained(capsys, tmp_path, "bicycle")
    np.save(tmp_path / "own.npy", np.array([[0.1, 0.0, 0.1, 0.1]]))
    own = ("evaluate", file, "--states", tmp_path / "own.npy")
    code, out, _ = run_cli(capsys, *own)
    assert (code, json.loads(out)["optimality_gap"]) == (0, None)
    code, out, _ = run_cli(capsys, *own, "--optimum", "--out", tmp_path / "flown.npz")
    answer, content = json.loads(out), np.load(tmp_path / "flown.npz")
    best = content["optimal_costs"][0]
    # Two training steps leave a policy above the optimum of the same steps from the same state.
    assert answer["optimality_gap"] == pytest.approx(
        (answer["evaluation_cost"] - best) / abs(best), rel=1e-6
    )
    assert answer["optimality_gap"] > 0


def test_an_optimum_has_its_agents_numbered_as_the_policy_has(capsys, tmp_path):
    pytest.importorskip("casadi")
    file, _ = trained(capsys, tmp_path, "bicycle", 2, "direct")
    problem = jfb.load(file).problem
    states = problem.sample_initial_states(4, torch.Generator().manual_seed(3))
    np.save(tmp_path / "own.npy", states.numpy())
    own = ("--states", tmp_path / "own.npy", "--optimum", "--out", tmp_path / "flown.npz")
    assert run_cli(capsys, "evaluate", file, *own)[0] == 0
    content = np.load(tmp_path / "flown.npz")
    start, controls = (torch.from_numpy(content[x]) for x in ("states", "optimal_controls"))
    start = start[:, 0].double()
    assert not torch.equal(start, states.double())
    costs = open_loop_cost(in_double(problem), start, controls)
    assert costs.tolist() == pytest.approx(content["optimal_costs"].tolist())


def test_inner_solves_start_as_in_the_run(capsys, tmp_path):
    pytest.importorskip("casadi")
    file, said = trained(capsys, tmp_path, "bicycle", 2, "pretrained-jfb")
    assert not fly.starts_warm(file)
    code, out, err = run_cli(capsys, "evaluate", file)
    assert code == 0, err
    assert json.loads(out)["evaluation_cost"] == said["final"]["evaluation_cost"]
    jfb.save(jfb.load(file), tmp_path / "policy.pt")
    assert fly.starts_warm(tmp_path / "policy.pt")


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 4)])
def test_states_of_another_shape_are_refused(shape, capsys, tmp_path):
    file, _ = trained(capsys, tmp_path, "bicycle")
    np.save(tmp_path / "own.npy", np.zeros(shape))
    code, out, err = run_cli(capsys, "evaluate", file, "--states", tmp_path / "own.npy")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "(batch, 4)" in err
    assert str(shape) in err


@pytest.mark.parametrize("verb", ["evaluate", "plot"])
def test_what_is_no_checkpoint_is_refused_in_one_line(verb, capsys, tmp_path):
    (tmp_path / "letter.pt").write_text("a letter")
    for name in ("letter.pt", "nothing.pt"):
        code, out, err = run_cli(capsys, verb, tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert name in err


def test_plot_writes_pictures_of_a_swarm_and_its_animation(capsys, tmp_path):
    trained(capsys, tmp_path, "bicycle", 3)
    code, out, err = run_cli(capsys, "plot", tmp_path, "--no-optimum", "--animate")
    assert code == 0, err
    names = [f"run-{name}.svg" for name in ("paths", "controls", "distances", "animation")]
    assert [line.rpartition("/")[2] for line in out.splitlines()] == names
    for name in names:
        ElementTree.parse(tmp_path / name)
    assert set(json.loads((tmp_path / "run-figures.json").read_text())) == set(names)
    # One moving body a bicycle, and the clock.
    moving = (tmp_path / names[-1]).read_text().count("<animate ")
    assert moving == 3 + 1


def test_a_problem_from_outside_is_drawn(capsys, tmp_path):
    """Without paths its states are; the checkpoint needs the file that defines it."""
    source = tmp_path / "mine.py"
    source.write_text(DOUBLE_INTEGRATOR)
    name = f"{source}:DoubleIntegrator"
    file, _ = trained(capsys, tmp_path, name, 2)
    code, out, err = run_cli(capsys, "plot", file, "--plugin", name)
    assert code == 0, err
    assert "no optimum drawn: IPOPT has no formulas of double-integrator" in err
    assert [line.rpartition("-")[2] for line in out.splitlines()] == ["states.svg", "controls.svg"]


def test_the_untrained_policy_is_what_training_starts_from(capsys, tmp_path):
    for problem, agents in (("quadrotor", 2), ("consumption", 1)):
        file, said = trained(capsys, tmp_path, problem, agents)
        before = fly.untrained(jfb.load(file))
        cost = fly.fly(before, jfb.held_out_states(before.problem)).cost.double().mean().item()
        assert cost == said["first"]["evaluation_cost"]
        file.unlink()


def test_the_optimal_flight_costs_what_ipopt_says():
    pytest.importorskip("casadi")
    problem = Quadrotor(n_steps=8)
    state = jfb.held_out_states(problem, 1)
    (solution,) = fly.optima(problem, state)
    flown = fly.optimal_flight(problem, state[0], solution)
    final = torch.from_numpy(flown.states[-1:])
    running = sum(
        problem.time_step * problem.running_cost(0.0, torch.from_numpy(z), torch.from_numpy(u))
        for z, u in zip(flown.states[:-1, None], flown.controls[:, None], strict=True)
    )
    assert (running + problem.terminal_cost(final)).item() == pytest.approx(flown.cost, rel=1e-10)


def test_distances_by_hand():
    path = np.array([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]])
    nearest = [1.0, np.hypot(3, 3), 1.0]
    smallest, each = views.distance_lines(path).values()
    np.testing.assert_allclose(smallest, [[1.0]])
    np.testing.assert_allclose(each, [nearest])


def test_views_name_what_they_show():
    quadrotor, goods = Quadrotor(2), Consumption(3)
    assert views.positions(quadrotor, np.zeros((5, 24))).shape == (5, 2, 3)
    assert views.positions(goods, np.zeros((5, 4))) is None
    lines = views.state_lines(goods, np.zeros((5, 4))).values()
    assert [values.shape for values in lines] == [(5, 1), (5, 3)]
    controls = views.control_lines(quadrotor, np.arange(8.0)[None])
    np.testing.assert_array_equal(controls["thrust [N]"], [[0.0, 4.0]])
    assert len(controls) == 4


def test_an_animation_ends_where_the_flight_does():
    """The target lies where the two bicycles end: at the cross."""
    problem = Bicycle(2, n_steps=3)
    states = np.linspace(0, 1, 4)[:, None] * np.array([[1.0, 1, 0, 0, 1, 1, 0, 0]])
    flown = fly.Flight(fly.TRAINED, np.linspace(0, 4, 4), states, np.zeros((3, 4)), 1.0)
    text = animate.animation(problem, flown, "two")
    last = text.split("<animate ")[1].partition('values="')[2].partition('"')[0].split(";")[-1]
    ends = [tuple(map(float, point.split(","))) for point in last[1:].split("L")]
    (cross,) = re.findall(r'<path d="M([\d.,]+)L[^"]*" stroke="#222222"', text)
    x, y = (float(part) + 6 for part in cross.split(","))
    assert np.mean(ends, axis=0) == pytest.approx((x, y), abs=0.2)
    with pytest.raises(ValueError, match="consumption has none"):
        animate.animation(
            Consumption(), fly.Flight("", flown.times, np.zeros((4, 2)), states, 1.0), ""
        )


def test_an_untrained_policy_does_not_set_the_scale():
    flights = [
        fly.Flight(name, np.arange(3.0), scale * np.ones((3, 4)), scale * np.ones((2, 2)), 1.0)
        for name, scale in ((fly.TRAINED, 1.0), (fly.UNTRAINED, 1e6))
    ]
    paths, controls = draw.flight_figures(Bicycle(n_steps=2), flights)
    assert paths.figure.axes[0].get_xlim()[1] < 10
    assert [len(ax.lines) for ax in controls.figure.axes] == [2, 2]
    assert controls._repr_png_().startswith(b"\x89PNG")
