"""What a person who writes `import jfbcore as jfb` would expect."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jfbcore as jfb
from baselines import METHODS, build_policy
from jfbcore.extras.checkpoints import POLICY_VERSION
from jfbcore.extras.compiled_rollout import CompiledRollout
from jfbcore.extras.description import describe, rebuild
from jfbcore.extras.shared_network import (
    AssignedValueNetwork,
    BranchedValueNetwork,
    IndexedValueNetwork,
    SharedValueNetwork,
)
from jfbcore.problems import PROBLEMS
from jfbcore.solvers import SOLVERS

ROOT = Path(jfb.__file__).parents[1]
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_policy(
    problem: jfb.Problem | None = None, gradient: str = "jfb", seed: int = 0, **settings
) -> jfb.Policy:
    problem = jfb.Quadrotor(2, n_steps=4) if problem is None else problem
    settings = {"solver": jfb.Picard(tolerance=1e-3), "fixed_point_map": jfb.ScaledMap(),
                "width": 6} | settings  # fmt: skip
    return build_policy(problem, METHODS[gradient], generator=generator(seed), **settings)


def states_of(policy: jfb.Policy, batch: int = 3) -> Tensor:
    return policy.problem.sample_initial_states(batch, generator(1))


# ---------------------------------------------------------------------------------------------
# names


def test_every_name_is_there_and_listed():
    names: dict = {}
    exec("from jfbcore import *", names)
    assert set(jfb.__all__) <= set(names)
    assert set(jfb.__all__) <= set(dir(jfb))
    with pytest.raises(AttributeError, match="module 'jfbcore' has no attribute 'Quadrotr'"):
        _ = jfb.Quadrotr


def test_type_checkers_see_the_same_names_in_the_same_places():
    tree = ast.parse((ROOT / "jfbcore" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        seen |= {alias.name: statement.module for alias in statement.names}
    assert set(seen) | {"__version__"} == set(jfb.__all__)
    assert {name: f"jfbcore.{home}" for name, home in jfb._HOME_OF.items()} == seen


def test_the_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jfb.__version__ == project["version"]


@pytest.mark.parametrize(
    "lines",
    [
        "import jfbcore as jfb; from jfbcore import _validate; jfb.__version__; jfb.__all__",
        "from bench.cli import main; main(['list', '--preset', 'smoke'])",
    ],
)
def test_importing_loads_no_torch(lines):
    code = f"import sys; {lines}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rollout_is_the_function_whoever_imported_the_module_first():
    code = (
        "import jfbcore.rollout, jfbcore as jfb, types; from jfbcore.rollout import rollout; "
        "assert jfb.rollout is rollout and isinstance(rollout, types.FunctionType)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---------------------------------------------------------------------------------------------
# trajectories


@every_problem
@pytest.mark.parametrize("gradient", ["jfb", "direct"])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_recorded_rollout_is_the_trajectory(name, gradient, tracked):
    """Every recorded state follows from the one before by an Euler step with the control."""
    problem = PROBLEMS[name](n_agents=2, n_steps=5, dtype=torch.float64)
    policy = make_policy(problem, gradient)
    x = states_of(policy)
    with torch.set_grad_enabled(tracked):
        flown = jfb.rollout(policy, x, n_steps=4, record=True, warm_start=True)
        plain = jfb.rollout(policy, x, n_steps=4, warm_start=True)
    assert torch.equal(flown.cost, plain.cost)
    assert plain.times is plain.states is plain.controls is None
    h = problem.t_final / 4
    assert flown.times.tolist() == pytest.approx([i * h for i in range(5)])
    assert flown.states.shape == (5, 3, problem.state_dim)
    assert flown.controls.shape == (4, 3, problem.control_dim)
    assert torch.equal(flown.states[0], x)
    assert torch.equal(flown.states[-1], flown.final_state)
    running = torch.zeros(3, dtype=torch.float64)
    for i in range(4):
        t, z, u = i * h, flown.states[i], flown.controls[i]
        running = running + h * problem.running_cost(t, z, u)
        torch.testing.assert_close(flown.states[i + 1], z + h * problem.dynamics(t, z, u))
    torch.testing.assert_close(running, flown.running_cost)
    assert flown.states.requires_grad == flown.controls.requires_grad == tracked


def test_what_cannot_be_recorded_is_refused():
    policy = make_policy()
    x = states_of(policy)
    with pytest.raises(ValueError, match="`record` keeps every time step; leave out `segment`"):
        jfb.rollout(policy, x, record=True, segment=2)
    compiled = CompiledRollout(policy, backend=None)
    with pytest.raises(ValueError, match="`record` must be left out of a compiled rollout"):
        compiled(policy, x, record=True)
    with torch.no_grad():
        assert compiled(policy, x, record=True).states.shape == (5, 3, 24)


# ---------------------------------------------------------------------------------------------
# files


def variants() -> list[jfb.Policy]:
    """Policies of every kind that differ in what their parameters do not tell."""
    bicycle = jfb.Bicycle(2, n_steps=4, wheelbase=0.06, dtype=torch.float64)
    goods = jfb.Consumption(2, n_steps=4, A=((1.0, 0.1), (0.0, 1.0)))
    fixed = jfb.Picard(tolerance=None, max_iterations=3)
    return [
        make_policy(fixed_point_map=jfb.ScaledMap(0.5), solver=jfb.Anderson(window=3)),
        make_policy(fixed_point_map=jfb.PlainMap(0.3), solver=fixed),
        make_policy(fixed_point_map=jfb.NewtonMap(), solver=jfb.Newton(), gradient="jfb-3"),
        make_policy(network=SharedValueNetwork, gradient="implicit-gmres"),
        make_policy(bicycle, network=IndexedValueNetwork, gradient="implicit-lu"),
        make_policy(goods),
        make_policy(jfb.Consumption.released(2, n_steps=4)),
        make_policy(gradient="unrolled-network", solver=fixed),
        make_policy(gradient="costate-network"),
        make_policy(gradient="direct"),
        make_policy(bicycle, gradient="direct", network=IndexedValueNetwork),
        make_policy(bicycle, network=AssignedValueNetwork),
        make_policy(bicycle, gradient="direct", network=AssignedValueNetwork),
        make_policy(network=BranchedValueNetwork),
        make_policy(gradient="direct", network=BranchedValueNetwork),
    ]


@pytest.mark.parametrize("index", range(15))
def test_a_saved_policy_comes_back(tmp_path, index):
    """With everything that decides its controls and gradients, to the last bit."""
    policy = variants()[index]
    file = tmp_path / "policy.pt"
    before = torch.get_rng_state()
    jfb.save(policy, file)
    again = jfb.load(str(file))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(policy)
    assert repr(again) == repr(policy)
    results = []
    for flown in (policy, again):
        cost = jfb.rollout(flown, states_of(policy)).cost
        results.append((cost, torch.autograd.grad(
            cost.mean(), list(flown.parameters()), materialize_grads=True)))  # fmt: skip
    (cost, gradients), (other_cost, others) = results
    assert torch.equal(cost, other_cost)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("gradient", METHODS)
def test_policies_of_every_method_come_back(tmp_path, gradient):
    fixed = jfb.Picard(tolerance=None, max_iterations=3)
    policy = make_policy(gradient=gradient, solver=fixed)
    jfb.save(policy, tmp_path / "policy.pt")
    assert repr(jfb.load(tmp_path / "policy.pt")) == repr(policy)


@pytest.mark.parametrize("solver", SOLVERS)
def test_policies_of_every_solver_come_back(tmp_path, solver):
    policy = make_policy(solver=SOLVERS[solver](max_iterations=7))
    jfb.save(policy, tmp_path / "policy.pt")
    assert jfb.load(tmp_path / "policy.pt").solver == policy.solver


def test_a_checkpoint_of_a_training_run_is_a_policy(tmp_path):
    policy, file = make_policy(), tmp_path / "checkpoint.pt"
    config = jfb.TrainingConfig(steps=3, batch_size=4, held_out=4)
    result = jfb.Training(policy, config, checkpoint=file).run()
    again = jfb.load(file)
    with torch.no_grad():
        cost = jfb.rollout(again, jfb.held_out_states(again.problem, 4)).cost
    assert tuple(cost.double().tolist()) == result.curve[-1].costs


@pytest.mark.parametrize(
    "content",
    [None, [1], {}, {"policy_version": POLICY_VERSION + 1}, {"policy_version": POLICY_VERSION}],
)
def test_a_wrong_file_is_named(tmp_path, content):
    file = tmp_path / "other.pt"
    if content is None:
        file.write_text("not a checkpoint")
    else:
        torch.save(content, file)
    for wrong in (file, tmp_path / "nowhere.pt"):
        with pytest.raises(ValueError, match=rf"`file` .*{wrong.name}") as error:
            jfb.load(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("class",), "os:system"),
        (("class",), "subprocess:Popen"),
        (("class",), "jfbcore.extras.checkpoints:Path"),
        (("class",), "nowhere:Policy"),
        (("arguments", "problem", "class"), "jfbcore.problems.quadrotor:Helicopter"),
        (("arguments", "problem", "arguments", "mass"), -1.0),
        (("arguments", "value_network", "arguments", "width"), 7),
        (("arguments", "gradient"), "jfb"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(tmp_path, path, value):
    """Nothing is run that is no class of the suite, or of a base that it knows."""
    file = tmp_path / "policy.pt"
    jfb.save(make_policy(), file)
    content = torch.load(file, weights_only=True)
    place = content["description"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"`file` .*policy\.pt cannot be rebuilt: "):
        jfb.load(file)


class Forgetful(jfb.Quadrotor):
    """A problem that does not keep what it was built with."""

    def __init__(self, n_agents: int, wind: float, **settings) -> None:
        super().__init__(n_agents, **settings)
        self._breeze = wind


class Windy(jfb.Quadrotor):
    """A problem from outside the suite that does."""

    def __init__(self, n_agents: int = 1, *, wind: float = 0.0, n_steps: int = 4) -> None:
        super().__init__(n_agents, n_steps=n_steps)
        self.wind = wind


def test_problems_from_outside(tmp_path):
    """They come back where they keep their arguments; others train, but cannot be loaded."""
    file = tmp_path / "checkpoint.pt"
    jfb.save(make_policy(Windy(wind=2.0)), file)
    assert jfb.load(file).problem.wind == 2.0
    policy = make_policy(Forgetful(1, wind=2.0, n_steps=4))
    with pytest.raises(ValueError, match="Forgetful does not keep its argument `wind`"):
        jfb.save(policy, file)
    config = jfb.TrainingConfig(steps=1, batch_size=4, held_out=4)
    assert jfb.Training(policy, config, checkpoint=file).run().status == "ok"
    with pytest.raises(ValueError, match="Forgetful does not keep its argument `wind`"):
        jfb.load(file)
    jfb.Training(policy, config).load(file)


# ---------------------------------------------------------------------------------------------
# reprs


@every_problem
def test_a_described_problem_comes_back(name):
    problem = PROBLEMS[name](n_agents=2, n_steps=7, dtype=torch.float64)
    again = rebuild(describe(problem), torch.device("cpu"))
    assert type(again) is type(problem)
    assert vars(again) == vars(problem)


def test_a_problem_reads_as_code():
    shown = repr(jfb.Quadrotor(n_agents=6))
    assert shown == "Quadrotor(n_agents=6, n_steps=160, t_final=4.5, dtype=float32)"
    shown = repr(jfb.Bicycle(2, wheelbase=0.06, dtype=torch.float64))
    assert shown == "Bicycle(n_agents=2, n_steps=60, t_final=4.0, dtype=float64, wheelbase=0.06)"
    assert (
        repr(jfb.Consumption(3))
        == "Consumption(n_agents=3, n_steps=100, t_final=2.0, dtype=float32)"
    )


@pytest.mark.parametrize("index", range(15))
def test_a_policy_reads_as_one_line(index):
    policy = variants()[index]
    shown = repr(policy)
    assert "\n" not in shown
    assert len(shown) < 600
    assert repr(policy.problem) in shown
    for part in ("value_network", "fixed_point_map", "solver", "gradient"):
        if hasattr(policy, part):
            assert f"{part}={type(getattr(policy, part)).__name__}(" in shown


# ---------------------------------------------------------------------------------------------
# wrong arguments


@pytest.mark.parametrize(
    ("argument", "wrong", "message"),
    [
        ("gradient", "jfb", r"`gradient` must be a GradientEstimator object, got 'jfb'; write gradient=JFB\(\)"),  # noqa: E501
        ("gradient", jfb.JFB, "`gradient` must be .* got the class JFB; write"),
        ("fixed_point_map", "scaled", r"`fixed_point_map` must be .* write fixed_point_map=ScaledMap\(\)"),  # noqa: E501
        ("solver", jfb.Picard, "`solver` must be a Solver object, got the class Picard; write"),
        ("problem", jfb.Quadrotor, r"`problem` must be .* write problem=Quadrotor\(n_agents=6\)"),
        ("value_network", jfb.ValueNetwork, "`value_network` must be .* got the class"),
    ],
)  # fmt: skip
def test_a_name_or_a_class_in_place_of_an_object(argument, wrong, message):
    problem = jfb.Quadrotor(1)
    arguments = {
        "problem": problem,
        "value_network": jfb.ValueNetwork.for_problem(problem, width=4),
        "fixed_point_map": jfb.ScaledMap(),
        "solver": jfb.Picard(),
        "gradient": jfb.JFB(),
    }
    jfb.HamiltonianPolicy(**arguments)
    with pytest.raises(TypeError, match=message):
        jfb.HamiltonianPolicy(**(arguments | {argument: wrong}))


def test_states_that_are_no_tensor_of_the_policys_kind():
    policy = make_policy()
    x = states_of(policy)
    with pytest.raises(TypeError, match=r"`initial_states` must be .* got ndarray; use torch.as_t"):
        jfb.rollout(policy, np.zeros((3, 24), dtype=np.float32))
    with pytest.raises(
        ValueError, match=r"`initial_states` .*float32.* got torch.float64 .*\.to\("
    ):
        jfb.rollout(policy, x.double())
    with pytest.raises(ValueError, match=r"`initial_states` .* on cpu .* on meta; use states\.to"):
        jfb.rollout(policy, x.to("meta"))
    with pytest.raises(ValueError, match=r"`initial_states` must have shape \(batch, 24\)"):
        jfb.rollout(policy, x[0])
    with pytest.raises(TypeError, match="`policy` must be a Policy object, got the class"):
        jfb.rollout(jfb.HamiltonianPolicy, x)


def test_training_asks_for_objects():
    with pytest.raises(TypeError, match=r"`config` must be .* write config=TrainingConfig\(steps"):
        jfb.Training(make_policy(), {"steps": 3})
    with pytest.raises(TypeError, match="`policy` must be a Policy object"):
        jfb.Training(nn.Linear(1, 1), jfb.TrainingConfig(steps=3))
    with pytest.raises(TypeError, match="`guard` must be a GuardSettings object"):
        jfb.TrainingConfig(steps=3, guard={"patience": 3})
