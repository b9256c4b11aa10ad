"""What the machine allows: product and copy rates, and the price of one operator.

Each figure is the best of many repeats: a bound should not contain the neighbours' noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bench.roofline.counts import Layout, Product

#: side of the large square product, and bytes of the large copy's source
_SQUARE = {"cpu": 1024, "cuda": 8192}
_COPY = {"cpu": 256 * 2**20, "cuda": 2**30}
_CHAIN = 500


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """Rates that do not depend on the case.

    `square_flops_per_second`: product of large squares. `copy_bytes_per_second`: copy of a tensor
    well beyond the caches, bytes read plus written. `operator_seconds`: one operator on one
    element without a graph; `view_seconds`: one view. `tracked_forward_seconds` and
    `tracked_backward_seconds`: one operator on one element with a graph, and its backward.
    """

    square_flops_per_second: float
    copy_bytes_per_second: float
    operator_seconds: float
    view_seconds: float
    tracked_forward_seconds: float
    tracked_backward_seconds: float


def best(rates: Sequence[MachineRates]) -> MachineRates:
    """The best figure of each kind among several processes' rates: a bound has no noise in it."""
    return MachineRates(**{
        f.name: (max if f.name.endswith("per_second") else min)(getattr(r, f.name) for r in rates)
        for f in fields(MachineRates)
    })  # fmt: skip


def machine_rates(device: str, dtype: torch.dtype, seconds: float = 0.4) -> MachineRates:
    """Measure, about `seconds` for each of the five figures."""
    side, size = _SQUARE[device], _COPY[device]
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    square = fastest(lambda: torch.mm(a, b, out=out), device, seconds)
    forward, backward = _tracked_seconds(device, dtype, seconds)
    with torch.no_grad():
        x = torch.ones(1, device=device, dtype=dtype)
        operator = fastest(lambda: _repeat(lambda: torch.mul(x, x)), device, seconds) / _CHAIN
        view = fastest(lambda: _repeat(lambda: x.view(1)), device, seconds) / _CHAIN
    return MachineRates(
        square_flops_per_second=2 * side**3 / square,
        copy_bytes_per_second=copy_rate(size, device, seconds),
        operator_seconds=operator,
        view_seconds=view,
        tracked_forward_seconds=forward,
        tracked_backward_seconds=backward,
    )


def copy_rate(size: int, device: str, seconds: float = 0.2) -> float:
    """Bytes per second, read plus written, of copying `size` bytes."""
    source = torch.ones(max(size, 1), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device, seconds)


def product_rate(products: Iterable[Product], device: str, seconds: float = 0.6) -> float | None:
    """FLOPs per second of a step's own products, each as often as it occurs; None without any."""
    products = list(products)
    flops, spent = 0, 0.0
    for product in products:
        arguments = [_filled(x, device) for x in product.arguments]
        keywords = {name: _filled(x, device) for name, x in product.keywords.items()}
        with torch.no_grad():
            call = lambda p=product, a=arguments, k=keywords: p.operator(*a, **k)  # noqa: E731
            spent += product.calls * fastest(call, device, seconds / len(products))
        flops += product.flops
    return flops / spent if spent else None


def fastest(call: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds of the fastest call, of at least five and as many as `seconds` allow."""
    # On a GPU several calls share one wait, which would otherwise be most of what is timed.
    together = 20 if device == "cuda" else 1
    call()
    best, count, began = float("inf"), 0, time.perf_counter()
    while count < 5 or time.perf_counter() - began < seconds:
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(together):
            call()
        _synchronise(device)
        best = min(best, (time.perf_counter() - start) / together)
        count += 1
    return best


def _tracked_seconds(device: str, dtype: torch.dtype, seconds: float) -> tuple[float, float]:
    factor = torch.ones(1, device=device, dtype=dtype)
    leaf = torch.ones(1, device=device, dtype=dtype, requires_grad=True)
    chains: list[Tensor] = []

    def forward() -> None:
        x = leaf
        for _ in range(_CHAIN):
            x = torch.mul(x, factor)
        chains[:] = [x]

    def forward_and_backward() -> None:
        forward()
        chains.pop().backward()

    tracked = fastest(forward, device, seconds)
    both = fastest(forward_and_backward, device, seconds)
    return tracked / _CHAIN, max(both - tracked, 0.0) / _CHAIN


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(_CHAIN):
        call()


def _filled(x: Any, device: str) -> Any:
    if not isinstance(x, Layout):
        return x
    # Small numbers, so that what accumulates in place over many repeats stays finite.
    if 0 in x.strides:
        one = torch.full((1,) * len(x.shape), 1e-3, dtype=x.dtype, device=device)
        return one.expand(x.shape)
    return torch.empty_strided(x.shape, x.strides, dtype=x.dtype, device=device).fill_(1e-3)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
