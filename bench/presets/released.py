"""The settings of the method's released code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS, Case
from bench.registry import has_inner_problem


def released() -> Iterator[Case]:
    """The released code's settings: plain ascent, step 1e-4, 499 iterations, tolerance 0.1.

    That tolerance is absolute, a case's is in units of the problem's gradient scale.
    """
    # Here, so that listing the other presets does not import torch.
    from bench.build import released_tolerance
    from bench.recipes import RELEASED_INNER

    for problem in ("quadrotor", "bicycle", "consumption"):
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
                    case = replace(case, **RELEASED_INNER, tolerance=released_tolerance(case))
                yield case
