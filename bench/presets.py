"""The case grids: which cases each preset measures, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS, Case
from bench.filters import narrowed
from bench.recipes import RECOMMENDED, RELEASED_TOLERANCE, case_settings
from bench.registry import has_inner_problem

#: one of each kind of gradient
MAIN_GRADIENTS = (
    "jfb",
    "implicit",
    "unrolled",
    "unrolled-checkpoint",
    "torchdeq",
    "cvxpylayers",
    "direct",
)
MORE_GRADIENTS = ("jfb-3", "torchdeq-phantom", "torchdeq-implicit", "implicit-gmres")


#: agents, or goods, of the sweeps; the ends first, because growth shows there
_SIZES = (1, 100, 20, 6, 50)
#: problems trained to a target, and for how long [s]
_TRAINED = (
    ("quadrotor", 1, 300.0),
    ("consumption", 5, 60.0),
    ("bicycle", 1, 200.0),
    ("quadrotor", 6, 300.0),
    ("quadrotor", 20, 400.0),
    ("consumption", 100, 120.0),
    ("bicycle", 20, 600.0),
    ("quadrotor", 100, 600.0),
)
#: those on which the learning rate is tuned for each gradient, and the factors tried
_TUNED = _TRAINED[:3]
_RATE_FACTORS = (2.0, 0.5)
#: time steps of a checkpointed segment, near the root of the problems' 60 to 160
_SEGMENT = 12


def smoke() -> Iterator[Case]:
    """Every gradient on every problem in minutes: short horizons, small batches."""
    for n_agents in (1, 6, 20, 100):
        for gradient in MAIN_GRADIENTS:
            yield Case(
                problem="quadrotor",
                n_agents=n_agents,
                gradient=gradient,
                batch_size=4,
                n_steps=12,
                train_steps=6,
            )
    base = Case(
        problem="quadrotor", n_agents=1, gradient="jfb", batch_size=4, n_steps=12, train_steps=6
    )
    yield replace(base, map="plain")
    yield replace(base, solver="anderson")
    yield replace(base, solver="newton")
    yield replace(base, solver="closed-form")
    for problem, n_agents, n_steps in (("bicycle", 1, 20), ("consumption", 5, 20)):
        for gradient in MAIN_GRADIENTS:
            yield Case(
                problem=problem,
                n_agents=n_agents,
                gradient=gradient,
                batch_size=8,
                n_steps=n_steps,
                train_steps=6,
            )
    yield Case(
        problem="consumption",
        variant="concave",
        n_agents=5,
        gradient="cvxpylayers",
        batch_size=4,
        n_steps=12,
        train_steps=6,
    )
    yield from _iteration_sweep(6, batch_size=4, n_steps=8, gradients=("jfb", "unrolled"))
    yield from _iteration_sweep(
        6, batch_size=4, n_steps=8, gradients=("unrolled-checkpoint", "implicit"), counts=(5, 50)
    )
    yield from _iteration_sweep(
        100, batch_size=2, n_steps=4, gradients=("jfb", "unrolled"), counts=(5, 500)
    )


def _iteration_sweep(
    n_agents: int,
    *,
    batch_size: int,
    n_steps: int,
    gradients: tuple[str, ...],
    counts: tuple[int, ...] = (5, 50, 500),
) -> Iterator[Case]:
    for iterations in counts:
        for gradient in gradients:
            yield Case(
                problem="quadrotor",
                n_agents=n_agents,
                gradient=gradient,
                tolerance=None,
                max_iterations=iterations,
                batch_size=batch_size,
                n_steps=n_steps,
                timed=False,
            )


def quick() -> Iterator[Case]:
    """What asv tracks: two sizes of every problem, to tolerance and at fixed K."""
    for problem in ("quadrotor", "bicycle", "consumption"):
        for n_agents in (1, 20):
            for gradient in ("jfb", "implicit", "unrolled", "direct"):
                yield Case(
                    problem=problem, n_agents=n_agents, gradient=gradient, batch_size=16, n_steps=20
                )
    for gradient in ("cvxpylayers", "torchdeq", "unrolled-checkpoint"):
        yield Case(problem="quadrotor", n_agents=1, gradient=gradient, batch_size=4, n_steps=10)
    for gradient, of in (("jfb", "scaled"), ("unrolled", "scaled"), ("jfb", "plain")):
        yield Case(
            problem="quadrotor",
            n_agents=20,
            gradient=gradient,
            map=of,
            tolerance=None,
            max_iterations=50,
            batch_size=16,
            n_steps=20,
        )


def gate() -> Iterator[Case]:
    """What the regression gate compares: exact counts at small sizes, nothing timed."""
    for problem, n_agents in (("quadrotor", 6), ("bicycle", 6), ("consumption", 5)):
        for gradient in ("jfb", "unrolled", "implicit"):
            case = Case(
                problem=problem,
                n_agents=n_agents,
                gradient=gradient,
                batch_size=4,
                n_steps=8,
                timed=False,
            )
            yield case
            yield replace(case, tolerance=None, max_iterations=50)
    for gradient in ("jfb-3", "unrolled-checkpoint", "torchdeq", "cvxpylayers", "direct"):
        yield Case(
            problem="quadrotor",
            n_agents=6,
            gradient=gradient,
            batch_size=4,
            n_steps=8,
            timed=False,
        )
    yield Case(
        problem="quadrotor", n_agents=100, gradient="jfb", batch_size=4, n_steps=8, timed=False
    )


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


def gpu_headline() -> Iterator[Case]:
    """What a GPU says first, in eight minutes: step time, memory, loss against seconds."""
    for n_agents in (1, 100):
        yield _captured(_on_gpu(n_agents, "jfb"))
    for n_agents in (1, 100):
        yield _on_gpu(n_agents, "jfb")
    for iterations in (50, 5):
        for n_agents in (100, 1, 20):
            for gradient in ("jfb", "unrolled"):
                yield _gpu_memory(n_agents, gradient, iterations)
    for gradient in ("jfb", "unrolled"):
        yield _gpu_memory(100, gradient, 500)
    yield _gpu_trained(100, "jfb", 30.0)
    yield _gpu_trained(1, "jfb", 20.0)
    for gradient in ("implicit", "reversible", "unrolled-checkpoint", "unrolled-network"):
        for n_agents in (100, 1):
            yield _gpu_memory(n_agents, gradient, 50)
    for n_agents, iterations, batch_size in _GPU_LIMITS:
        yield _gpu_memory(n_agents, "unrolled", iterations, batch_size)
    yield _captured(_on_gpu(20, "jfb"))
    yield _captured(_on_gpu(100, "implicit"))
    yield _captured(_on_gpu(100, "direct"))
    yield _gpu_trained(1, "direct", 20.0)
    yield _on_gpu(1, "cvxpylayers-moreau")
    yield _gpu_trained(100, "direct", 30.0)
    yield _gpu_trained(20, "jfb", 20.0)
    for n_agents in (20, 1):
        for gradient in ("jfb", "unrolled"):
            yield _gpu_memory(n_agents, gradient, 500)
    for n_agents in (1, 100):
        yield _captured(_on_gpu(n_agents, "unrolled", tolerance=None, max_iterations=4))
    yield _captured(_on_gpu(1, "implicit"))
    yield _captured(_on_gpu(1, "direct"))
    yield _captured(_on_gpu(6, "jfb"))
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
    yield _gpu_trained(1, "implicit", 20.0)
    yield _gpu_trained(100, "implicit", 30.0)
    yield _gpu_trained(20, "direct", 20.0)


#: unrolled at 5 % below and above the batch that `bench predict` says fills an H100 (80 GB) at K=50
_GPU_LIMITS = (
    (100, 50, 5145),
    (100, 50, 5685),
    (20, 50, 23_600),
    (20, 50, 26_100),
    (1, 50, 153_600),
    (1, 50, 169_800),
)


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


def _gpu_trained(n_agents: int, gradient: str, seconds: float) -> Case:
    case = _trained("recommended", "quadrotor", n_agents, gradient, seconds)
    return _captured(replace(case, device="cuda", batch_size=max(case.batch_size, 32)))


def _captured(case: Case) -> Case:
    return replace(case, compile=True, capture=True)


def released() -> Iterator[Case]:
    """The released code's settings: plain ascent, step 1e-4, 499 iterations, tolerance 0.1.

    That tolerance is absolute, a case's is in units of the problem's gradient scale.
    """
    # Here, so that listing the other presets does not import torch.
    from bench.build import released_tolerance

    for problem in DEFAULT_STEPS:
        for n_agents in (1, 6, 20, 100):
            for gradient in ("jfb", "unrolled", "direct"):
                case = Case(
                    problem=problem,
                    n_agents=n_agents,
                    gradient=gradient,
                    batch_size=DEFAULT_BATCH[problem],
                    n_steps=DEFAULT_STEPS[problem],
                    variant="released" if problem == "consumption" else "default",
                    train_steps=10,
                )
                if has_inner_problem(gradient):
                    case = replace(
                        case,
                        map="plain",
                        step_size=1e-4,
                        max_iterations=499,
                        tolerance=released_tolerance(case),
                    )
                yield case


def targets() -> Iterator[Case]:
    """Training to a target: every gradient on the recommended recipe, then with its rate tuned.

    Beside them what else there is to choose: jfb compiled, on the scaled map, and as released, and
    direct policies of swarms on one dense network.
    """
    for problem, n_agents, seconds in _TRAINED:
        for gradient in MAIN_GRADIENTS:
            yield _trained("recommended", problem, n_agents, gradient, seconds)
    problem, n_agents, seconds = _TRAINED[0]
    recommended = _trained("recommended", problem, n_agents, "jfb", seconds)
    yield replace(recommended, compile=True)
    yield replace(recommended, map="scaled", solver="picard")
    yield replace(
        _trained("released", problem, n_agents, "jfb", seconds),
        tolerance=RELEASED_TOLERANCE,  # one quadrotor's gradient scale is 1: absolute
    )
    for problem, n_agents, seconds in _TRAINED:
        direct = _trained("recommended", problem, n_agents, "direct", seconds)
        if direct.network != "dense":
            yield replace(direct, network="dense", batch_size=DEFAULT_BATCH[problem])
    for factor in _RATE_FACTORS:
        for problem, n_agents, seconds in _TUNED:
            rate = factor * RECOMMENDED[problem]["learning_rate"]
            for gradient in MAIN_GRADIENTS:
                case = _trained("recommended", problem, n_agents, gradient, seconds)
                yield replace(case, learning_rate=rate)


def _trained(recipe: str, problem: str, n_agents: int, gradient: str, seconds: float) -> Case:
    return Case(
        problem=problem,
        n_agents=n_agents,
        gradient=gradient,
        n_steps=DEFAULT_STEPS[problem],
        recipe=recipe,
        train_seconds=seconds,
        **case_settings(recipe, problem, n_agents, gradient),
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
        for problem in DEFAULT_STEPS:
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
            for problem in DEFAULT_STEPS:
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


#: presets by the name used on the command line
PRESETS: dict[str, Callable[[], Iterator[Case]]] = {
    "smoke": smoke,
    "quick": quick,
    "gate": gate,
    "cpu": cpu,
    "gpu": gpu,
    "gpu-headline": gpu_headline,
    "released": released,
    "targets": targets,
}
#: seconds one case may take before it is recorded as timed out
TIMEOUTS = {
    "smoke": 120.0,
    "quick": 120.0,
    "gate": 120.0,
    "cpu": 900.0,
    "gpu": 300.0,
    "gpu-headline": 90.0,
    "released": 1800.0,
    "targets": 3600.0,
}


def select(preset: str, filters: list[str], device: str | None = None) -> list[Case]:
    """The cases of `preset` that match every KEY=VALUE filter, on `device` if one is given.

    ValueError for an unknown preset, and as `bench.filters.narrowed` says.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    cases = list(PRESETS[preset]())
    if device is not None:
        cases = [replace(case, device=device) for case in cases]
    return narrowed(cases, filters, f"preset {preset}")
