"""Rollouts without a graph against eager ones, whose gradients other tests hold to the truth."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from baselines import (
    GMRES,
    DirectPolicy,
    Implicit,
    Reversible,
    TorchDEQ,
    Unrolled,
    UnrolledCheckpoint,
)
from bench.environment import ROOT
from jfbcore.extras import build_digest, compiled_library
from jfbcore.extras.captured_rollout import CapturedRollout
from jfbcore.extras.compiled_rollout import CompiledRollout, Grid
from jfbcore.extras.scanned_rollout import ScannedRollout
from jfbcore.extras.shared_network import (
    AssignedValueNetwork,
    BranchedValueNetwork,
    IndexedValueNetwork,
    SharedValueNetwork,
)
from jfbcore.extras.stepped_rollout import SteppedRollout
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.kernels import native
from jfbcore.maps import FixedPointMap, NewtonMap, PlainMap, ScaledMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.problems import Bicycle, Consumption, Problem, Quadrotor, RotorQuadrotor
from jfbcore.rollout import rollout
from jfbcore.solvers import Anderson, Newton, Picard, Solver
from jfbcore.value_network import ValueNetwork

SETTINGS: dict[str, Any] = {"dtype": torch.float64, "n_steps": 7}
PROBLEMS = {
    "quadrotor": lambda **more: Quadrotor(1, **SETTINGS | more),
    "quadrotors": lambda **more: Quadrotor(3, **SETTINGS | more),
    "bicycles": lambda **more: Bicycle(2, **SETTINGS | more),
    "goods": lambda **more: Consumption(3, **SETTINGS | more),
}
EXACT = {"tolerance": None, "max_iterations": 5}
#: gradient, solver, map, and how closely the two gradients agree: to rounding where both take the
#: same steps; where the compiled one may take more, to what the tolerance leaves
METHODS: dict[str, tuple[GradientEstimator, Solver, FixedPointMap, float]] = {
    "jfb": (JFB(), Picard(tolerance=1e-9), ScaledMap(), 1e-8),
    "jfb-2-plain": (JFB(2), Picard(**EXACT), PlainMap(), 1e-13),
    "jfb-newton": (JFB(), Newton(tolerance=1e-9), NewtonMap(), 1e-8),
    "jfb-many": (JFB(), Picard(tolerance=None, max_iterations=37), ScaledMap(), 1e-13),
    "unrolled": (Unrolled(), Picard(**EXACT), ScaledMap(), 1e-13),
    "implicit": (Implicit(), Picard(tolerance=1e-9), ScaledMap(), 1e-8),
    # Ten inversions in a row amplify rounding, whatever rounds differently.
    "reversible": (Reversible(), Picard(tolerance=None, max_iterations=25), ScaledMap(), 1e-9),
    "reversible-tested": (Reversible(), Picard(tolerance=1e-9), NewtonMap(), 1e-7),
}
#: what a loop that takes the very steps of the eager solver agrees to, where rounding is amplified
AMPLIFIED = {"reversible": 1e-9, "reversible-tested": 1e-9}


def make_policy(problem: Problem, method: str, network: Any = ValueNetwork) -> Policy:
    if method == "direct":
        generator = torch.Generator().manual_seed(0)
        return DirectPolicy(problem, generator=generator, network=network)
    gradient, solver, fixed_point_map, _ = METHODS[method]
    value_network = network.for_problem(problem, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in value_network.named_parameters():
            if name.endswith("readout"):
                parameter.mul_(30.0)  # controls of order one, so that inner solves take steps
    return HamiltonianPolicy(
        problem, value_network, fixed_point_map=fixed_point_map, solver=solver, gradient=gradient
    )


def costs_and_gradient(
    policy: Policy, roll: Any, batch: int = 4, **options: Any
) -> tuple[Tensor, Tensor]:
    problem = policy.problem
    x = problem.sample_initial_states(batch, torch.Generator().manual_seed(1))
    policy.zero_grad()
    cost = roll(policy, x, **options).cost
    cost.mean().backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    return cost.detach(), torch.cat([part.flatten() for part in parts])


def error(found: Tensor, true: Tensor) -> float:
    true = true.cpu()
    return ((found.cpu().to(true) - true).norm() / true.norm()).item()


def agrees(policy: Policy, roll: Any, tolerance: float, **options: Any) -> None:
    cost, gradient = costs_and_gradient(policy, rollout, **options)
    own_cost, own_gradient = costs_and_gradient(policy, roll, **options)
    assert error(own_cost, cost) < tolerance
    assert error(own_gradient, gradient) < tolerance


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "direct"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_equals_the_eager_rollout(problem, method, warm_start):
    policy = make_policy(PROBLEMS[problem](), method)
    tolerance = METHODS[method][3] if method != "direct" else 1e-13
    agrees(policy, CompiledRollout(policy, backend=None), tolerance, warm_start=warm_start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "method", "warm_start", "network"),
    [
        ("quadrotors", "jfb", True, ValueNetwork),
        ("bicycles", "jfb-newton", False, IndexedValueNetwork),
        ("bicycles", "jfb-many", False, AssignedValueNetwork),
        ("quadrotors", "jfb-many", False, SharedValueNetwork),
        ("goods", "implicit", True, ValueNetwork),
        ("quadrotor", "unrolled", False, ValueNetwork),
        # More iterations than are inverted in a row, and a number that the test decides.
        ("quadrotors", "reversible", False, ValueNetwork),
        ("quadrotors", "reversible-tested", True, SharedValueNetwork),
        ("goods", "direct", False, ValueNetwork),
        ("quadrotors", "direct", True, SharedValueNetwork),
        ("quadrotors", "jfb-newton", True, BranchedValueNetwork),
        ("quadrotor", "jfb", False, BranchedValueNetwork),
        ("quadrotors", "direct", False, BranchedValueNetwork),
    ],
)
def test_the_loop_of_a_processor(problem, method, warm_start, network):
    """It tests as the eager solver does, so that the two take the same steps."""
    policy = make_policy(PROBLEMS[problem](), method, network)
    roll = CompiledRollout(policy)
    assert isinstance(roll.engine, ScannedRollout)
    agrees(policy, roll, AMPLIFIED.get(method, 1e-12), warm_start=warm_start)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_swarm_of_a_single_sample(dtype):
    policy = make_policy(Quadrotor(n_agents=2, n_steps=7, dtype=dtype), "jfb", SharedValueNetwork)
    agrees(policy, CompiledRollout(policy), 1e-12 if dtype == torch.float64 else 1e-5, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["jfb", "direct"])
def test_the_loop_of_a_processor_serves_every_number_of_time_steps(method, monkeypatch):
    policy = make_policy(PROBLEMS["quadrotors"](), method)
    # A residual near the tolerance may take one more step eager or compiled.
    tolerance = 1e-12 if method == "direct" else METHODS[method][3]
    roll = CompiledRollout(policy)
    agrees(policy, roll, tolerance)
    with monkeypatch.context() as patch:
        patch.setattr(compiled_library, "_build", unwanted)
        agrees(policy, roll, tolerance, n_steps=5)
        agrees(policy, roll, tolerance, n_steps=11)
        # Nor does another object, or another process, build them again.
        other = CompiledRollout(make_policy(PROBLEMS["quadrotors"](), method))
        agrees(other.policy, other, tolerance, n_steps=5)
    agrees(policy, roll, tolerance, n_steps=1)


def unwanted(*_: Any) -> None:
    raise AssertionError("built again")


@pytest.mark.slow
def test_what_decides_the_code_decides_which_library_serves():
    problem = PROBLEMS["quadrotors"]()
    policy = make_policy(problem, "jfb-many")
    like = torch.zeros(4, problem.state_dim, dtype=torch.float64)

    def digest(policy: Policy, x: Tensor = like, length: Tensor | None = None) -> str | None:
        return build_digest.digest(policy, "there", (x, 0.5), [] if length is None else [length])

    own = digest(policy)
    assert own is not None
    assert digest(make_policy(PROBLEMS["quadrotors"](), "jfb-many")) == own
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert digest(policy) == own
    others = [
        digest(make_policy(problem, "jfb-2-plain")),
        digest(make_policy(PROBLEMS["quadrotors"](mass=0.6), "jfb-many")),
        digest(policy, like[:3]),
        digest(policy, like.float()),
        digest(policy, like, like),
    ]
    assert None not in others
    assert len({own, *others}) == 6
    problem.unknown = lambda: None
    assert digest(policy) is None


def test_a_build_that_fails_says_why(monkeypatch):
    policy = make_policy(PROBLEMS["quadrotors"](), "jfb-many")
    monkeypatch.setattr(compiled_library, "_build", unwanted)
    monkeypatch.setattr(compiled_library, "digest", lambda *_: None)
    with pytest.raises(RuntimeError, match="built again"):
        costs_and_gradient(policy, CompiledRollout(policy))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "network"),
    [
        (Quadrotor(3, **SETTINGS), ValueNetwork),
        (Quadrotor(3, **SETTINGS), SharedValueNetwork),
        (Quadrotor(3, **SETTINGS), IndexedValueNetwork),
        (Quadrotor(1, **SETTINGS), BranchedValueNetwork),
        # The one whose dense network has units.
        (RotorQuadrotor(1, **SETTINGS), ValueNetwork),
        # Its scaling takes small differences of powers, which the code generator rounds anew.
        (Consumption(5, **SETTINGS), ValueNetwork),
    ],
)
@pytest.mark.parametrize("method", ["jfb", "jfb-many"])
def test_native_kernels_in_the_loop_of_a_processor(method, problem, network):
    """In float32, where they serve, through the translation that is really run."""
    exact = make_policy(problem, method, network)
    single = type(problem)(problem.n_agents, **SETTINGS | {"dtype": torch.float32})
    policy = make_policy(single, method, network)
    cost, gradient = costs_and_gradient(exact, rollout)
    own_cost, own_gradient = costs_and_gradient(policy, CompiledRollout(policy))
    assert native.serves(torch.zeros(1))
    # Rounding of float32 through seven time steps, which eager float32 is off by, too.
    eager_cost, eager_gradient = costs_and_gradient(policy, rollout)
    assert error(own_cost, cost) < 1e-6 + error(eager_cost, cost)
    assert error(own_gradient, gradient) < 1e-5 + error(eager_gradient, gradient)


@pytest.mark.parametrize("network", [SharedValueNetwork, IndexedValueNetwork, BranchedValueNetwork])
@pytest.mark.parametrize("problem", ["quadrotors", "bicycles"])
def test_networks_of_identical_agents(problem, network):
    policy = make_policy(PROBLEMS[problem](), "jfb-many", network)
    agrees(policy, CompiledRollout(policy, backend=None), 1e-13)


def test_another_grid_and_batch_need_no_other_object():
    policy = make_policy(PROBLEMS["quadrotors"](), "jfb-many")
    roll = CompiledRollout(policy, backend=None)
    agrees(policy, roll, 1e-13, n_steps=5)
    agrees(policy, roll, 1e-13)


def test_too_few_iterations_are_raised_until_the_tolerance_is_met():
    policy = make_policy(PROBLEMS["quadrotors"](), "jfb")
    roll = CompiledRollout(policy, backend=None)
    x = policy.problem.sample_initial_states(4, torch.Generator().manual_seed(1))
    engine = roll.engine
    assert isinstance(engine, CapturedRollout)
    engine._counts[Grid((4, x.shape[1]), 7, False)] = 1
    flown = roll(policy, x)
    summary = flown.inner.summary()
    assert summary is not None
    assert summary["residual"]["max"] <= 1e-9
    assert summary["iterations"]["max"] > 1


def test_any_number_of_steps_is_made_of_the_same_functions():
    policy = make_policy(PROBLEMS["quadrotors"](), "jfb")
    made = []

    def compiled(function):
        made.append(function)
        return function

    stepped = SteppedRollout(policy, compiled)
    x = policy.problem.sample_initial_states(4, torch.Generator().manual_seed(1))
    grid, unit = Grid((4, x.shape[1]), 7, False), stepped.unit()
    with torch.no_grad():
        once = stepped.run(grid, unit, x)
        functions = len(made)
        thrice = stepped.run(grid, 3 * unit, x)
    assert len(made) == functions
    assert thrice.residual.max() < once.residual.max()
    whole = SteppedRollout(policy, compiled)
    whole._body.body, whole._body._shared = 3 * unit, False
    with torch.no_grad():
        expected = whole.run(grid, 3 * unit, x)
    assert error(thrice.final_state, expected.final_state) < 1e-14
    assert error(torch.stack(thrice.kept), torch.stack(expected.kept)) < 1e-14


def test_without_grad_mode_it_is_the_eager_rollout():
    policy = make_policy(PROBLEMS["quadrotors"](), "jfb")
    x = policy.problem.sample_initial_states(4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(
            CompiledRollout(policy, backend=None)(policy, x).cost, rollout(policy, x).cost
        )


def test_what_cannot_be_compiled_says_why():
    problem = PROBLEMS["quadrotors"]()
    network = ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0))
    for gradient, solver, word in (
        (JFB(), Anderson(), "Anderson"),
        (Unrolled(), Picard(), "fixed number"),
        (Implicit(GMRES()), Picard(), "GMRES"),
        (UnrolledCheckpoint(), Picard(), "autograd's graph"),
        (TorchDEQ(), Picard(), "torchdeq stops its solver on the host"),
        (Reversible(drifts=[]), Picard(), "`drifts`"),
    ):
        policy = HamiltonianPolicy(
            problem, network, fixed_point_map=ScaledMap(), solver=solver, gradient=gradient
        )
        assert word in (policy.supports_compiled_rollout() or "")
        with pytest.raises(ValueError, match=word):
            CompiledRollout(policy)


def test_a_gpu_does_not_count_what_reversible_inverts():
    problem = Quadrotor(1, n_steps=3, device="meta")
    policy = make_policy(problem, "reversible")
    assert "wait" in (policy.supports_compiled_rollout() or "")


_ONE_TIME_STEP = """
import sys
import torch
from jfbcore import JFB, HamiltonianPolicy, Picard, ScaledMap, ValueNetwork
from jfbcore.extras.time_step import TimeStep
from jfbcore.problems import Quadrotor

problem, network = Quadrotor(3, dtype=torch.float64), ValueNetwork.for_problem
parts = {"fixed_point_map": ScaledMap(), "solver": Picard(), "gradient": JFB()}
time_step = TimeStep(HamiltonianPolicy(problem, network(problem), **parts))
z = problem.sample_initial_states(4, torch.Generator().manual_seed(0))
at = torch.tensor(0.0), torch.tensor(0.1), z, problem.initial_control(0.0, z) + 0.1
with torch.no_grad():
    found = time_step.cost_gradient(*at)
assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)
cost, pull = torch.func.vjp(lambda z, u: at[1] * problem.running_cost(at[0], z, u), *at[2:])
for one, other in zip(found, (cost, *pull(torch.ones_like(cost)))):
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-15)
"""


def test_a_process_that_compiles_nothing_imports_no_compiler():
    """Of a loop from the cache it runs one time step, to see what that keeps."""
    subprocess.run([sys.executable, "-c", _ONE_TIME_STEP], cwd=ROOT, check=True)


@pytest.mark.parametrize("option", [{"penalties": True}, {"segment": 3}])
def test_what_needs_the_eager_rollout_is_refused(option):
    policy = make_policy(PROBLEMS["quadrotor"](), "jfb")
    x = policy.problem.sample_initial_states(2, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=next(iter(option))):
        CompiledRollout(policy, backend=None)(policy, x, **option)


def test_capture_needs_a_gpu():
    with pytest.raises(ValueError, match="capture"):
        CompiledRollout(make_policy(PROBLEMS["quadrotor"](), "jfb"), capture=True)


@dataclass
class HostTraffic(TorchDispatchMode):
    """Operations that read a number on the host or take a tensor of the host's."""

    found: list[str] = field(default_factory=list)
    seen: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        if "local_scalar" in str(function) or any(x.device.type == "cpu" for x in tensors):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["jfb", "jfb-newton", "jfb-many", "implicit", "unrolled"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_nothing_travels_to_the_host_between_the_first_time_step_and_the_last(problem, method):
    """On the meta device, which like a GPU is not the host's and, unlike one, is everywhere."""
    here = make_policy(PROBLEMS[problem](), method)
    there = make_policy(PROBLEMS[problem](device="meta", n_steps=4), method)
    assert isinstance(here, HamiltonianPolicy)
    assert isinstance(there, HamiltonianPolicy)
    there.value_network = here.value_network.to("meta")
    engine = SteppedRollout(there, lambda function: function)
    x = torch.empty(3, there.problem.state_dim, dtype=torch.float64, device="meta")
    count = {"jfb": 3, "implicit": 3, "jfb-newton": 4, "jfb-many": 37, "unrolled": 5}[method]
    grid = Grid((3, x.shape[1]), 4, warm_start=True)
    with HostTraffic() as traffic, torch.no_grad():
        flight = engine.run(grid, count, x)
        engine.gradients(flight, (x[:, 0], x[:, 0], x))
    assert traffic.seen > 1000
    assert traffic.found == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["jfb", "jfb-newton", "jfb-many", "implicit", "unrolled"])
@pytest.mark.parametrize("capture", [False, True])
def test_on_a_gpu_as_on_the_cpu(method, capture):
    """In float64 to 1e-10: both run the same steps, in another order of summation."""
    here = make_policy(PROBLEMS["quadrotors"](), method)
    there = make_policy(PROBLEMS["quadrotors"](device="cuda"), method)
    roll = CompiledRollout(there, capture=capture, backend="inductor" if capture else None)
    for _ in range(2):
        cost, gradient = costs_and_gradient(there, roll)
    own = CompiledRollout(here, backend=None)
    true_cost, true_gradient = costs_and_gradient(here, own)
    assert error(cost, true_cost) < 1e-10
    assert error(gradient, true_gradient) < 1e-10
