"""What the theory of JFB assumes, measured: contraction, curvature, alignment, variance.

Each function stands alone; `bench.probes.trace` takes them along a training run, off the clock.
Everything large is a product: no (m, m) or (m, p) matrix unless the name says so.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore._random import draw
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap
from jfbcore.policy import Decision, HamiltonianPolicy, Policy
from jfbcore.problems.base import Hamiltonian, Time
from jfbcore.rollout import rollout

Product = Callable[[Tensor], Tensor]

#: a residual of more than this times the tolerance has missed it: below, rounding may have held it
MISSED = 1.1


def spectral_norm(
    product: Product,
    transposed: Product,
    like: Tensor,
    *,
    steps: int = 30,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Largest singular value of one matrix per sample, (batch,).

    `product` and `transposed` map (batch, m) to (batch, m). Lanczos on A^T A with full
    reorthogonalisation: unlike plain power iteration it does not stall where singular values
    cluster, as they do for a map near a multiple of the identity; exact once `steps` >= m.
    Raises torch.linalg.LinAlgError where a product is not finite.
    """
    _validate.positive_int("steps", steps)
    v = draw(torch.randn, like.shape, generator).to(like.device, like.dtype)
    v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    basis, diagonal, off_diagonal = [v], [], []
    for _ in range(min(steps, like.shape[-1])):
        w = transposed(product(basis[-1]))
        diagonal.append(torch.linalg.vecdot(w, basis[-1]))
        vectors = torch.stack(basis, 1)
        for _ in range(2):
            w = w - ((vectors @ w.unsqueeze(-1)).transpose(1, 2) @ vectors).squeeze(1)
        norm = torch.linalg.vector_norm(w, dim=-1)
        # An invariant subspace: nothing is left but rounding, and zeros add nothing. A map whose
        # derivative is zero leaves so little that a reciprocal of it may overflow.
        rounding = 100.0 * torch.finfo(like.dtype).eps * torch.stack(diagonal).amax(0)
        found = norm > rounding.clamp_min(torch.finfo(like.dtype).tiny ** 0.5)
        off_diagonal.append(torch.where(found, norm, 0.0))
        basis.append(torch.where(found, 1.0 / norm, 0.0).unsqueeze(-1) * w)
    tridiagonal = torch.diag_embed(torch.stack(diagonal, -1))
    if len(diagonal) > 1:
        beside = torch.diag_embed(torch.stack(off_diagonal[:-1], -1), offset=1)
        tridiagonal = tridiagonal + beside + beside.transpose(1, 2)
    return torch.linalg.eigvalsh(tridiagonal)[:, -1].clamp_min(0.0).sqrt()


@torch.no_grad()
def contraction_rate(
    fixed_point_map: BoundMap, u: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """|dT/du|_2 at `u` with D held fixed, (batch,); at a fixed point the derivative of T itself.

    (Away from one, the derivative of D enters with a factor grad H.)
    """
    hamiltonian = fixed_point_map.hamiltonian
    arrival = u + fixed_point_map.scale(u, hamiltonian.grad(u))
    interior = hamiltonian.interior(arrival)

    def inside(v: Tensor) -> Tensor:
        return v if interior is None else torch.where(interior, v, 0.0)

    return spectral_norm(
        lambda v: inside(v + fixed_point_map.scale(u, hamiltonian.hvp(u, v))),
        # D is symmetric for every map here, and so is the Hessian.
        lambda w: inside(w) + hamiltonian.hvp(u, fixed_point_map.scale(u, inside(w))),
        u,
        generator=generator,
    )


@torch.no_grad()
def curvature_bounds(
    hamiltonian: Hamiltonian, u: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest and largest eigenvalue of -d2H/du2 at `u`, (batch,) each.

    A negative smallest one means that H is not concave there.
    """

    def product(v: Tensor) -> Tensor:
        return -hamiltonian.hvp(u, v)

    radius = spectral_norm(product, product, u, generator=generator).unsqueeze(-1)

    def raised(v: Tensor) -> Tensor:
        return product(v) + radius * v

    def lowered(v: Tensor) -> Tensor:
        return radius * v - product(v)

    # Both shifted operators are positive semidefinite: their norms are their top eigenvalues.
    largest = spectral_norm(raised, raised, u, generator=generator) - radius.squeeze(-1)
    smallest = radius.squeeze(-1) - spectral_norm(lowered, lowered, u, generator=generator)
    return smallest, largest


def policy_gradient(
    policy: HamiltonianPolicy,
    states: Tensor,
    gradient: GradientEstimator | None = None,
    *,
    segment: int | None = None,
    warm_start: bool = False,
) -> Tensor:
    """d(mean cost)/d(theta) with `gradient` in place of the policy's own, (n_parameters,).

    `segment`, `warm_start`: as in `rollout`.
    """
    return minibatch_gradients(
        policy, states, len(states), gradient, segment=segment, warm_start=warm_start
    )[0]


def minibatch_gradients(
    policy: HamiltonianPolicy,
    states: Tensor,
    size: int,
    gradient: GradientEstimator | None = None,
    *,
    segment: int | None = None,
    warm_start: bool = False,
) -> list[Tensor]:
    """`policy_gradient` of every minibatch of `size` rows of `states`, from one rollout of all.

    The inner solves of all rows stop together, when the slowest has reached its tolerance. All rows
    share one graph: where one of them overflows, no minibatch has a finite gradient.
    """
    _validate.positive_int("size", size)
    measured = policy.with_gradient(gradient)
    flown = rollout(measured, states, segment=segment, warm_start=warm_start)
    costs = flown.cost.split(size)
    parameters = list(policy.parameters())
    gradients = []
    for index, chunk in enumerate(costs):
        keep = index < len(costs) - 1
        grads = torch.autograd.grad(chunk.mean(), parameters, allow_unused=True, retain_graph=keep)
        gradients.append(_flat(grads, parameters).double())
    return gradients


def _flat(grads: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """(n_parameters,), zeros for what has no gradient."""
    pairs = zip(parameters, grads, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def difference(own: Tensor, exact: Tensor) -> dict[str, float] | None:
    """{"relative", "cosine"} of two gradients; None where one is not finite or the exact is 0."""
    relative = (torch.linalg.vector_norm(own - exact) / torch.linalg.vector_norm(exact)).item()
    cosine = torch.nn.functional.cosine_similarity(own, exact, dim=0).item()
    found = {"relative": relative, "cosine": cosine}
    return found if all(map(math.isfinite, found.values())) else None


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two vectors [degrees]; NaN when one is zero.

    By the half-angle formula, which keeps its digits for nearly parallel vectors.
    """
    a, b = a / torch.linalg.vector_norm(a), b / torch.linalg.vector_norm(b)
    half = torch.atan2(torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b))
    return math.degrees(2.0 * half.item())


def relative_variance(gradients: Sequence[Tensor]) -> float:
    """E|g - E g|^2 / |E g|^2 over minibatch gradients, unbiased in the numerator."""
    stacked = torch.stack(list(gradients))
    mean = stacked.mean(0)
    spread = (stacked - mean).square().sum() / (len(stacked) - 1)
    return (spread / mean.square().sum()).item()


def map_parameter_singular_values(
    policy: HamiltonianPolicy, t: float, z: Tensor
) -> tuple[float, float]:
    """Smallest and largest singular value of dT/d(theta) for one state z (1, n) at its u*.

    Assembles the (m, n_parameters) Jacobian: for small m only.
    """
    decision = policy(t, z)
    assert decision.solution is not None
    p = policy.value_network.costate(t, z)
    bound = policy.fixed_point_map.bind(policy.problem.hamiltonian(t, z, p))
    image = bound(decision.control.detach()).squeeze(0)
    parameters = list(policy.parameters())
    rows = []
    for component in image:
        found = torch.autograd.grad(component, parameters, retain_graph=True, allow_unused=True)
        rows.append(_flat(found, parameters))
    values = torch.linalg.svdvals(torch.stack(rows).double())
    return values.min().item(), values.max().item()


@contextlib.contextmanager
def watching(policy: Policy, look: Callable[[Time, Tensor, Decision], None]) -> Iterator[None]:
    """Within, `look(t, z, decision)` is called at every decision of `policy`, as rollouts take it.

    The decisions of a `CompiledRollout` are inside compiled code and not seen.
    """

    def hook(_module: Policy, arguments: tuple, decision: Decision) -> None:
        t, z, *_ = arguments
        look(t, z, decision)

    handle = policy.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
