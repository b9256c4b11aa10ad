"""First and second derivatives of a function of the control, by automatic differentiation.

Outside of torch.func's transforms and of torch.compile, torch.autograd serves: it is faster, works
under hooks on saved tensors (checkpointing, counting of bytes) and takes any autograd.Function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jfbcore.kernels.fused import plain_formula_required


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient by `x` of the sum of what `function` returns for it: in the shape of `x`.

    Differentiable once more, in `x` and in what `function` closes over, where grad mode is on.
    """
    if plain_formula_required():
        slope: Tensor = torch.func.grad(lambda x: function(x).sum())(x)
        return slope
    tracked = torch.is_grad_enabled()
    with _recording(tracked):
        at = x if tracked and x.requires_grad else x.detach().requires_grad_()
        return _slope(function(at).sum(), at, tracked)


def hessian_product(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The Hessian by `x` of the sum of what `function` returns, times `v`: in the shape of `x`.

    Differentiable as `gradient` is.
    """
    # The Hessian is symmetric: its transpose serves, and asks for reverse mode only.
    if plain_formula_required():
        product: Tensor = torch.func.vjp(lambda x: gradient(function, x), x)[1](v)[0]
        return product
    tracked = torch.is_grad_enabled()
    with _recording(tracked):
        at = x if tracked and x.requires_grad else x.detach().requires_grad_()
        # A number to differentiate: given a cotangent, torch.autograd.grad imports sympy for it.
        return _slope((gradient(function, at) * v).sum(), at, tracked)


@contextlib.contextmanager
def _recording(tracked: bool) -> Iterator[None]:
    """Grad mode on. A graph that is not handed on is no concern of the caller's hooks on saved
    tensors: checkpointing would expect to see it again when it computes a segment once more."""
    with torch.enable_grad():
        if tracked:
            yield
        else:
            with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda x: x):
                yield


def _slope(total: Tensor, at: Tensor, tracked: bool) -> Tensor:
    if not total.requires_grad:  # constant in `at`, or without a derivative
        return torch.zeros_like(at)
    (slope,) = torch.autograd.grad(
        total, at, create_graph=tracked, allow_unused=True, materialize_grads=True
    )
    return slope
