"""The value network and its hand-written sweep against autograd and a numpy re-derivation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jfbcore.extras.network_defaults import NetworkScaling, network_defaults
from jfbcore.problems import PROBLEMS
from jfbcore.value_network import ValueNetwork

F64 = torch.float64
BATCH, N, WIDTH = 5, 4, 7

every_depth = pytest.mark.parametrize("depth", [1, 2, 3, 4])
every_time = pytest.mark.parametrize("kind", ["float", "0-d", "batch"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(depth: int = 3, *, n: int = N, normalised: bool = False, seed: int = 0) -> ValueNetwork:
    """A network none of whose parameters is zero or special."""
    random = generator(seed + 100)
    scaling = NetworkScaling(state=1.7, value=0.6) if normalised else None
    network = ValueNetwork(n, WIDTH, depth, dtype=F64, generator=generator(seed), scaling=scaling)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random, dtype=F64))
    return network


def states(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(BATCH, n, generator=generator(seed), dtype=F64)


def times(kind: str) -> float | Tensor:
    if kind == "float":
        return 0.7
    if kind == "0-d":
        return torch.tensor(0.7, dtype=F64)
    return torch.linspace(0.1, 1.3, BATCH, dtype=F64)


def value_in_numpy(network: ValueNetwork, t: float, z: np.ndarray) -> float:
    """w.N(y) + |A y|^2/2 + b.y for one sample, with y = (z, t), written from the formula."""

    def array(x: Tensor) -> np.ndarray:
        return x.detach().numpy()

    unit = 1.0
    if network.scaling is not None:
        z, unit = z / network.scaling.state, network.scaling.value
    y = np.append(z, t)

    def with_time(a: Tensor, b: Tensor) -> np.ndarray:
        return np.concatenate([array(a), array(b)[..., None]], axis=-1)

    def activation(x: np.ndarray) -> np.ndarray:
        return np.log(2.0 * np.cosh(x))

    x = activation(
        with_time(network.opening, network.opening_time) @ y + array(network.opening_bias)
    )
    layers = list(zip(network.weights, network.biases, strict=True))
    for weight, bias in layers:
        x = x + activation(array(weight) @ x + array(bias)) / len(layers)
    projected = with_time(network.quadratic, network.quadratic_time) @ y
    linear = np.append(array(network.linear), array(network.linear_time))
    return float(unit * (array(network.readout) @ x + 0.5 * projected @ projected + linear @ y))


@every_depth
@every_time
@pytest.mark.parametrize("normalised", [False, True])
def test_value_against_the_formula(depth, kind, normalised):
    network, z, t = make(depth, normalised=normalised), states(), times(kind)
    expected = [
        value_in_numpy(network, float(torch.as_tensor(t, dtype=F64).expand(BATCH)[i]), z[i].numpy())
        for i in range(BATCH)
    ]
    found = network(t, z)
    assert found.shape == (BATCH,)
    # The same formula in other operations: rounding.
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)


@every_depth
@every_time
@pytest.mark.parametrize("normalised", [False, True])
def test_gradients_against_autograd_of_the_value(depth, kind, normalised):
    network, z = make(depth, normalised=normalised), states().requires_grad_()
    t = torch.as_tensor(times(kind), dtype=F64).expand(BATCH).clone().requires_grad_()
    p, phi_t = torch.autograd.grad(network(t, z).sum(), (z, t))
    for time in (times(kind), t.detach()):
        phi, found, found_t = network.value_and_gradient(time, z)
        torch.testing.assert_close(found, p, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found_t, phi_t, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(network.costate(time, z), p, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(phi, network(time, z))


@every_depth
def test_costate_against_differences_of_numpy(depth):
    network, z = make(depth), states()
    found, step = network.costate(0.7, z), 1e-5
    for i, k in itertools.product(range(BATCH), range(N)):
        unit = np.zeros(N)
        unit[k] = step
        up, down = (value_in_numpy(network, 0.7, z[i].numpy() + s * unit) for s in (1, -1))
        # Truncation step^2 = 1e-10; rounding 1e-15 * |phi| (up to 1e2) / 1e-5 = 1e-8.
        assert found[i, k].item() == pytest.approx((up - down) / (2 * step), rel=1e-7, abs=1e-7)


@every_depth
@every_time
@pytest.mark.parametrize("normalised", [False, True])
def test_vector_jacobian_products_against_autograd(depth, kind, normalised):
    """Every parameter's and the state's derivative of <v, p>: the sweep's backward by hand."""
    network, z, t = make(depth, normalised=normalised), states().requires_grad_(), times(kind)
    v = torch.randn(BATCH, N, generator=generator(2), dtype=F64)
    inputs = [z, *network.parameters()]
    keywords = {"allow_unused": True, "materialize_grads": True}
    (p,) = torch.autograd.grad(network(t, z).sum(), z, create_graph=True)
    expected = torch.autograd.grad(p, inputs, v, **keywords)
    found = torch.autograd.grad(network.costate(t, z), inputs, v, **keywords)
    names = ["z", *(name for name, _ in network.named_parameters())]
    for name, a, b in zip(names, found, expected, strict=True):
        assert a.shape == b.shape, name
        # Sums of up to WIDTH^2 terms of order one to ten, in another order.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    # Not a vacuous comparison: everything the costate depends on gets a derivative.
    independent = {"linear_time"}  # the constant's slope in time: not in grad_z phi
    for name, a in zip(names, found, strict=True):
        assert (name in independent) == (not a.any()), name


@every_depth
def test_gradcheck_of_the_costate(depth):
    network, z = make(depth, n=2), states(2)[:2].requires_grad_()
    # gradcheck's own defaults in float64.
    assert torch.autograd.gradcheck(lambda x: network.costate(0.3, x), (z,))


@every_depth
def test_second_derivatives_fall_back_on_the_plain_formula(depth):
    network, z = make(depth, n=2), states(2)[:2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: network.costate(0.3, x), (z,))


@every_depth
def test_double_backward_into_parameters(depth):
    """d/dtheta of |d<v, p>/dz|^2, by the sweep and by three passes of autograd."""
    network, z = make(depth), states().requires_grad_()
    v = torch.randn(BATCH, N, generator=generator(2), dtype=F64)
    parameters = list(network.parameters())

    def through(p: Tensor) -> list[Tensor]:
        (slope,) = torch.autograd.grad(p, z, v, create_graph=True)
        return list(
            torch.autograd.grad(
                slope.square().sum(), parameters, allow_unused=True, materialize_grads=True
            )
        )

    found = through(network.costate(0.7, z))
    (p,) = torch.autograd.grad(network(0.7, z).sum(), z, create_graph=True)
    for a, b in zip(found, through(p), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_depth
def test_function_transforms(depth):
    """vmap and jacrev take the plain formula: the Hessian is symmetric and autograd's."""
    network, z = make(depth), states()
    hessian = torch.func.vmap(
        torch.func.jacrev(lambda x: network.costate(0.7, x.unsqueeze(0)).squeeze(0))
    )(z)
    torch.testing.assert_close(hessian, hessian.transpose(1, 2), rtol=1e-10, atol=1e-11)
    z.requires_grad_()
    columns = [torch.autograd.grad(network.costate(0.7, z)[:, k].sum(), z)[0] for k in range(N)]
    torch.testing.assert_close(hessian, torch.stack(columns, 1), rtol=1e-10, atol=1e-11)


def test_value_and_costate_agree_at_large_activations():
    network, z = make(1), states().requires_grad_()
    with torch.no_grad():
        network.opening_bias.fill_(10.5)
        network.opening.mul_(0.1)
    (p,) = torch.autograd.grad(network(0.7, z).sum(), z)
    # The accuracy of every other comparison in this file.
    torch.testing.assert_close(network.costate(0.7, z), p, rtol=1e-11, atol=1e-12)


def test_only_what_is_asked_for_is_differentiated():
    network, z = make(), states()
    network.costate(0.7, z).sum().backward()
    assert z.grad is None
    with torch.no_grad():
        assert not network.costate(0.7, z).requires_grad


@pytest.mark.parametrize(("n", "rank"), [(1, 2), (2, 3), (8, 9), (9, 10), (10, 10), (40, 10)])
def test_rank_of_the_quadratic_part(n, rank):
    network = ValueNetwork(n, 3, generator=generator(), dtype=F64)
    assert network.quadratic.shape == (rank, n)
    a = torch.cat((network.quadratic, network.quadratic_time.unsqueeze(1)), 1)
    assert torch.linalg.matrix_rank(a).item() == min(rank, n + 1)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_depth_counts_layers(depth):
    network = ValueNetwork(3, 4, depth, generator=generator())
    assert len(network.weights) == len(network.biases) == depth - 1
    assert network.residual_step == (1.0 if depth == 1 else 1.0 / (depth - 1))


def test_large_inputs_do_not_overflow():
    network = make()
    with torch.no_grad():
        network.opening.mul_(1e4)
    phi, p, phi_t = network.value_and_gradient(0.5, 1e3 * states())
    for x in (phi, p, phi_t):
        assert x.isfinite().all()


def test_a_seed_means_the_same_network_in_every_dtype():
    single = ValueNetwork(N, WIDTH, generator=generator(3))
    double = ValueNetwork(N, WIDTH, generator=generator(3), dtype=F64)
    other = ValueNetwork(N, WIDTH, generator=generator(4), dtype=F64)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())
    assert not torch.equal(double.opening, other.opening)


def test_the_global_generator_has_no_say():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = ValueNetwork(N, WIDTH, generator=generator(3))
        torch.manual_seed(1)
        second = ValueNetwork(N, WIDTH, generator=generator(3))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


#: of arXiv 2602.00921
WIDTHS = {
    "quadrotor": 96,
    "bicycle": 100,
    "consumption": 50,
    "rotor-quadrotor": 96,
    "liquidation": 96,
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n_agents", [1, 3])
def test_for_problem(name, n_agents):
    problem = PROBLEMS[name](n_agents=n_agents, dtype=F64)
    network = ValueNetwork.for_problem(problem, generator=generator())
    defaults = network_defaults(problem)
    assert (defaults.width, defaults.depth) == (WIDTHS[name], 3)
    assert (network.width, network.depth) == (defaults.width, defaults.depth)
    assert network.opening.shape == (defaults.width, problem.state_dim)
    assert all(p.dtype == F64 for p in network.parameters())
    scaling = defaults.scaling
    unit: Tensor | float = 1.0
    if scaling is not None:
        unit = scaling.value / torch.tensor(scaling.state, dtype=F64)
    torch.testing.assert_close(unit * network.linear.detach(), problem.initial_costate())
    small = ValueNetwork.for_problem(problem, width=3, depth=2, generator=generator())
    assert (small.width, small.depth) == (3, 2)


def test_initial_costate_survives_scaling():
    wanted = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=F64)
    network = ValueNetwork(
        N,
        WIDTH,
        initial_costate=wanted,
        scaling=NetworkScaling(state=25.0, value=0.1),
        dtype=F64,
        generator=generator(),
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name != "linear":
                parameter.zero_()
    torch.testing.assert_close(network.costate(0.0, states()), wanted.expand(BATCH, N))


@pytest.mark.parametrize("name", ["state_dim", "width", "depth"])
@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3", math.nan])
def test_bad_sizes(name, bad):
    sizes = {"state_dim": 2, "width": 3, "depth": 2} | {name: bad}
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        ValueNetwork(**sizes)
