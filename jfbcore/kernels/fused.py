"""When a hand-written derivative has to step aside for the plain formula it was derived from.

The hand-written vector-Jacobian products of this package write into preallocated tensors: fast,
lean, and differentiable once. Second derivatives, `torch.func` transforms and `torch.compile`
(which fuses plain operations better than it could an opaque function) take the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def plain_formula_required() -> bool:
    """True inside torch.func transforms and while torch.compile traces."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def pull_back(function: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """The vector-Jacobian product of `function` at `inputs`: cotangents of its outputs to those of
    its inputs, a tuple. As torch.func.vjp, without the outputs."""
    return torch.func.vjp(function, *inputs)[1]


def differentiable_vjp(
    formula: Callable[..., Tensor], inputs: tuple[Tensor, ...], cotangent: Tensor
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of `formula` at `inputs`, itself differentiable."""
    # Aliases: one input may depend on another, and only the direct dependence is asked for.
    inputs = tuple(x.view_as(x) for x in inputs)
    along = (formula(*inputs) * cotangent).sum()
    slopes = iter(
        torch.autograd.grad(along, [x for x in inputs if x.requires_grad], create_graph=True)
    )
    return tuple(next(slopes) if x.requires_grad else None for x in inputs)
