"""What a Hamiltonian must satisfy at a point beside what `jfbcore.checks` asks of every problem."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.check.points import Point, generator
from bench.check.requirement import declared, require, require_close, require_finite, requirement


@requirement("the Hessian is symmetric", "correct `hvp`, or leave `hamiltonian` out")
def hessian_is_symmetric(point: Point) -> None:
    h, v, w = point.hamiltonian(), _noise(point.u, 1), _noise(point.u, 2)
    left, right = (w * h.hvp(point.u, v)).sum(1), (v * h.hvp(point.u, w)).sum(1)
    require_close(left, right, "the difference between the Hessian and its transpose")


@requirement(
    "the curvature scaling is positive at costates of every size",
    "bound the scaling away from zero and infinity, and detach it",
)
def curvature_scaling_is_positive(point: Point) -> None:
    for scale in (0.0, 1e-8, 1.0, 1e3, 1e6):
        p = (scale * point.p).requires_grad_()
        h = point.problem.hamiltonian(point.t, point.z, p)
        scaling = h.curvature_scaling(point.u)
        where = f"curvature_scaling at {scale:g} times the costate"
        require(not scaling.requires_grad, f"{where} carries a graph")
        require(
            scaling.shape in (point.u.shape, (len(point.u), 1)),
            f"{where} has shape {tuple(scaling.shape)}, expected {tuple(point.u.shape)} or "
            f"{(len(point.u), 1)}",
        )
        require_finite(scaling, where)
        require((scaling > 0).all(), f"{where} is not positive: {scaling.min().item():.2g}")


@requirement(
    "the Newton direction ascends and holds the Hessian fixed",
    "take the absolute value of negative curvature, and detach the Hessian",
)
def newton_direction_ascends(point: Point) -> None:
    point.require_grad()
    h = point.hamiltonian()
    r, s = _noise(point.u, 1).requires_grad_(), _noise(point.u, 2)
    direction = h.newton_direction(point.u, r)
    slopes = (direction * r).sum(1)
    require((slopes > 0).all(), f"it descends: <direction, r> is {slopes.min().item():.2g}")
    expected = 2.0 * direction - h.newton_direction(point.u, s)
    require_close(h.newton_direction(point.u, 2.0 * r - s), expected, "what is linear in r")
    into_r, *others = torch.autograd.grad(
        direction.sum(), (r, point.u, point.z, point.p), allow_unused=True
    )
    require(into_r is not None, "it has no derivative in r")
    require(others == [None, None, None], "it has a derivative in u, z or p: detach the Hessian")


@requirement(
    "the projection on admissible controls is one",
    "let `project` leave admissible controls alone and `interior` be True exactly there",
)
def projection_is_one(point: Point) -> None:
    h = point.hamiltonian()
    if not h.constrained:
        require(h.interior(point.u) is None, "`constrained` is False and `interior` is not None")
        same = h.project(point.u) is point.u
        require(same, "`constrained` is False and `project` does something")
        return
    far = 1e4 * _noise(point.u, 1)
    projected, inside = h.project(far), h.interior(far)
    require_close(h.project(projected), projected, "a second projection")
    if inside is None:
        raise AssertionError("`constrained` is True and `interior` is None")
    require_close(projected[inside], far[inside], "a control inside, projected,")
    moved = (projected - far)[~inside].ne(0)
    require(moved.all(), "`interior` is False where `project` does nothing")


def _noise(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=generator(seed), dtype=like.dtype)


HAMILTONIAN_REQUIREMENTS = declared(globals())
