"""Sizes x iterations x batches x gradients at full horizons, on a processor and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.case import DEFAULT_STEPS, Case
from bench.presets.names import MAIN_GRADIENTS, MORE_GRADIENTS

#: those of arXiv 2602.00921
_PROBLEMS = ("quadrotor", "bicycle", "consumption")
#: agents, or goods, of the sweeps; the ends first, because growth shows there
_SIZES = (1, 100, 20, 6, 50)
#: time steps of a checkpointed segment, near the root of the problems' 60 to 160
_SEGMENT = 12


def cpu() -> Iterator[Case]:
    """Agents x iterations x batch x gradients on three problems; a night on two cores."""
    yield from _sweep("cpu", batches=(32, 8, 128))


def gpu() -> Iterator[Case]:
    """The same at full size, on one GPU."""
    yield from _sweep("cuda", batches=(50, 128, 512))
    # Fixed iterations, compiled: what CUDA graphs are captured for.
    for n_agents in (1, 20, 100):
        for gradient in ("jfb", "unrolled"):
            yield Case(
                problem="quadrotor",
                n_agents=n_agents,
                gradient=gradient,
                tolerance=None,
                max_iterations=5,
                batch_size=50,
                n_steps=DEFAULT_STEPS["quadrotor"],
                device="cuda",
                compile=True,
            )


def _sweep(device: str, batches: tuple[int, ...]) -> Iterator[Case]:
    """What says most first: a run that is stopped early has every size of every problem."""
    first = batches[0]
    yield from _to_tolerance(device, first, [{"gradient": name} for name in MAIN_GRADIENTS])
    yield from _at_fixed_counts(device, first, ("jfb", "unrolled"))
    more: list[dict[str, Any]] = [{"gradient": name} for name in MORE_GRADIENTS]
    more += [{"map": "plain"}, {"compile": True}, {"segment": _SEGMENT}]
    yield from _to_tolerance(device, first, more)
    yield from _at_fixed_counts(device, first, ("unrolled-checkpoint", "implicit"))
    for batch_size in batches[1:]:
        main = [{"gradient": name, "train_steps": 0} for name in MAIN_GRADIENTS]
        yield from _to_tolerance(device, batch_size, main)
        yield from _at_fixed_counts(
            device, batch_size, ("jfb", "unrolled", "unrolled-checkpoint", "implicit")
        )


def _to_tolerance(
    device: str, batch_size: int, changes: Sequence[Mapping[str, Any]]
) -> Iterator[Case]:
    for n_agents in _SIZES:
        for problem in _PROBLEMS:
            base = Case(
                problem=problem,
                n_agents=n_agents,
                gradient="jfb",
                batch_size=batch_size,
                n_steps=DEFAULT_STEPS[problem],
                device=device,
                train_steps=20,
            )
            for change in changes:
                yield replace(base, **change)


def _at_fixed_counts(device: str, batch_size: int, gradients: Sequence[str]) -> Iterator[Case]:
    for iterations in (5, 500, 50, 20, 100):
        for n_agents in _SIZES:
            for problem in _PROBLEMS:
                for gradient in gradients:
                    yield Case(
                        problem=problem,
                        n_agents=n_agents,
                        gradient=gradient,
                        tolerance=None,
                        max_iterations=iterations,
                        batch_size=batch_size,
                        n_steps=DEFAULT_STEPS[problem],
                        device=device,
                    )
