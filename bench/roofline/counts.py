"""FLOPs, bytes and kernels of every operator that runs, counted by watching the dispatcher.

Conventions, stated here once:

- An operator that makes a view or only allocates is free; every other one is one kernel launch.
- Products of matrices count as in `torch.utils.flop_counter`: two FLOPs per multiply-add; those
  in place, which it leaves out, count like the others. Every other operator counts one FLOP per
  element it writes, whatever it computes.
- Bytes are those of the elements an operator reads and of those it writes, as if nothing stayed
  in a cache between operators; a dimension that is broadcast (stride 0) counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from bench.roofline.parts import Parts

#: operators whose first argument is written without being read
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "uniform_", "normal_"})
#: operators that reserve memory and touch none of it
_ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


@dataclass
class Tally:
    """What one part, operator or step costs; `free` are views and allocations."""

    calls: int = 0
    free: int = 0
    matmul_flops: int = 0
    pointwise_flops: int = 0
    bytes: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Product:
    """A product of matrices as it was called: enough to call it again on made-up numbers."""

    operator: Any
    arguments: tuple
    keywords: dict[str, Any]
    calls: int = 0
    flops: int = 0


class Layout(NamedTuple):
    """A tensor without its contents."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class OperatorCounter(TorchDispatchMode):
    """A context manager that counts by phase and part of the step, and by operator.

    Without `parts` everything belongs to the part "".
    """

    def __init__(self, parts: Parts | None = None) -> None:
        super().__init__()
        self.parts = parts
        #: by (phase, part)
        self.by_part: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self.by_operator: defaultdict[str, Tally] = defaultdict(Tally)
        self.products: dict[tuple, Product] = {}
        #: set while the update runs; else the phase is forward or backward, by who is asking
        self.place: tuple[str, str] | None = None

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.by_part.values():
            total.add(tally)
        return total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tally = self._tally(func, args, kwargs, result)
        self.by_part[self._place()].add(tally)
        self.by_operator[_name(func)].add(tally)
        return result

    def _place(self) -> tuple[str, str]:
        """(phase, part) of the operator that runs now."""
        if self.place is not None:
            return self.place
        node = torch._C._current_autograd_node()
        if self.parts is None:
            return ("forward" if node is None else "backward"), ""
        if node is None:
            return "forward", self.parts.current
        return "backward", self.parts.of_node(node)

    def _tally(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> Tally:
        name = _name(func)
        if func.is_view or name in _ALLOCATES:
            return Tally(free=1)
        written = list(_tensors(result))
        read = list(_tensors(args[1:] if name in _OVERWRITES else args))
        # a tensor given as `out` is written, and among the results already
        read += _tensors({key: value for key, value in kwargs.items() if key != "out"})
        tally = Tally(calls=1, bytes=sum(map(touched_bytes, (*read, *written))))
        formula = _flop_formula(func)
        if formula is None:
            tally.pointwise_flops = sum(tensor.numel() for tensor in written)
        else:
            tally.matmul_flops = int(formula(*args, **kwargs, out_val=result))
            self._keep(func, args, kwargs, tally.matmul_flops)
        return tally

    def _keep(self, func: Any, args: tuple, kwargs: dict[str, Any], flops: int) -> None:
        arguments = tuple(map(_layout, args))
        keywords = {name: _layout(value) for name, value in kwargs.items()}
        key = (func, arguments, tuple(keywords.items()))
        product = self.products.setdefault(key, Product(func, arguments, keywords))
        product.calls += 1
        product.flops += flops


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of `tensor`."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride != 0 else min(size, 1)
    return elements * tensor.element_size()


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _layout(x: Any) -> Any:
    return Layout(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, Tensor) else x


def _flop_formula(func: Any) -> Any:
    """The FLOP formula of a product of matrices; None for every other operator."""
    found = flop_registry.get(func._overloadpacket)
    name = _name(func)
    if found is None and name.endswith("_"):
        # torch's registry leaves out the variants that write in place
        found = flop_registry.get(getattr(torch.ops.aten, name[:-1], None))
    return found


def _name(func: Any) -> str:
    return func._overloadpacket.__name__
