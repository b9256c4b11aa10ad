"""What a GPU says first, in eight minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS, Case
from bench.presets.targets import trained

#: unrolled at 5 % below and above the batch that `bench predict` says fills an H100 (80 GB) at K=50
_GPU_LIMITS = (
    (100, 50, 5145),
    (100, 50, 5685),
    (1, 50, 153_600),
    (1, 50, 169_800),
    (20, 50, 23_600),
    (20, 50, 26_100),
)


def gpu_headline() -> Iterator[Case]:
    """What a GPU says first, in eight minutes: step time, memory, loss against seconds."""
    for n_agents in (1, 100, 20):
        yield _captured(_on_gpu(n_agents, "jfb"))
    for n_agents in (100, 1, 20):
        for gradient in ("jfb", "unrolled"):
            yield _gpu_memory(n_agents, gradient, 50)
    for iterations in (5, 500):
        for gradient in ("jfb", "unrolled"):
            yield _gpu_memory(100, gradient, iterations)
    limits = [_gpu_memory(n, "unrolled", *limit) for n, *limit in _GPU_LIMITS]
    yield from limits[:4]
    yield _gpu_trained(1, "jfb")
    yield _gpu_trained(100, "jfb", 60.0)
    yield from limits[4:]
    for gradient in ("implicit", "reversible", "unrolled-checkpoint", "unrolled-network"):
        yield _gpu_memory(100, gradient, 50)
    yield _captured(_on_gpu(100, "implicit"))
    yield _captured(_on_gpu(100, "direct"))
    for n_agents in (1, 100):
        yield _on_gpu(n_agents, "jfb")
    for iterations in (5, 500):
        for gradient in ("jfb", "unrolled"):
            yield _gpu_memory(1, gradient, iterations)
    yield _gpu_trained(1, "direct")
    yield _captured(_on_gpu(6, "jfb"))
    yield _on_gpu(1, "cvxpylayers-moreau")
    for gradient in ("implicit", "reversible", "unrolled-checkpoint", "unrolled-network"):
        yield _gpu_memory(1, gradient, 50)
    yield _gpu_trained(20, "jfb", 30.0)
    for iterations in (5, 500):
        for gradient in ("jfb", "unrolled"):
            yield _gpu_memory(20, gradient, iterations)
    yield _gpu_trained(100, "direct", 30.0)
    for n_agents in (1, 100):
        yield _captured(_on_gpu(n_agents, "unrolled", tolerance=None, max_iterations=4))
    yield _captured(_on_gpu(1, "implicit"))
    yield _captured(_on_gpu(1, "direct"))
    yield _on_gpu(20, "jfb")
    for n_agents in (1, 100):
        yield _on_gpu(n_agents, "implicit")
        yield _on_gpu(n_agents, "unrolled", tolerance=None, max_iterations=4)
    for gradient in ("jfb", "unrolled"):
        yield _gpu_memory(6, gradient, 50)
    for gradient in ("implicit", "reversible", "unrolled-checkpoint"):
        for n_agents in (20, 6):
            yield _gpu_memory(n_agents, gradient, 50)
        yield _gpu_memory(100, gradient, 500)
    yield _on_gpu(100, "cvxpylayers-moreau")
    yield _on_gpu(1, "jfb", compile=True)
    yield _gpu_trained(1, "implicit")
    yield _gpu_trained(100, "implicit", 30.0)
    yield _gpu_trained(20, "direct", 30.0)


def _on_gpu(n_agents: int, gradient: str, **changes: Any) -> Case:
    case = Case(
        problem="quadrotor",
        n_agents=n_agents,
        gradient=gradient,
        batch_size=DEFAULT_BATCH["quadrotor"],
        n_steps=DEFAULT_STEPS["quadrotor"],
        device="cuda",
    )
    return replace(case, **changes)


def _gpu_memory(n_agents: int, gradient: str, iterations: int, batch_size: int = 50) -> Case:
    return _on_gpu(
        n_agents,
        gradient,
        tolerance=None,
        max_iterations=iterations,
        timed=False,
        batch_size=batch_size,
    )


def _gpu_trained(n_agents: int, gradient: str, seconds: float | None = None) -> Case:
    """The recommended recipe, for `seconds` or as long as on a processor at most. A swarm takes
    larger batches, which cost a GPU next to nothing; one quadrotor keeps the recipe's, and takes
    the map and the solver for which a rollout is one kernel."""
    case = trained("recommended", "quadrotor", n_agents, gradient, seconds)
    case = replace(case, device="cuda", batch_size=max(case.batch_size, 32))
    if n_agents == 1 and gradient == "jfb":
        case = replace(case, map="scaled", solver="picard")
    return _captured(case)


def _captured(case: Case) -> Case:
    return replace(case, compile=True, capture=True)
