"""How wrong the derivative is after K unrolled iterations, or k tracked ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import DenseLU, Implicit, Unrolled
from bench import training
from bench.build import build
from bench.case import Case
from bench.diagnostics import difference, policy_gradient
from bench.probes.probe import Hooks, Probe, Row, explain_column
from jfbcore.held_out import held_out_states
from jfbcore.jfb import JFB, GradientEstimator
from jfbcore.maps import MAPS
from jfbcore.policy import HamiltonianPolicy
from jfbcore.solvers import Newton, Picard, Solver

#: inner residual of the true gradient, in units of the problem's gradient scale
_TIGHT = 1e-11


@dataclass(frozen=True, kw_only=True)
class Derivative(Probe):
    """Relative error of the policy gradient against the implicit one, before and after training.

    `unrolled` runs exactly K iterations from the cold start and differentiates them; `jfb` tracks
    k applications from the converged control; K and k are each of `counts`. The truth is implicit
    differentiation, dense, at Newton's control: it knows nothing of the map. The policy trains on
    the scaled map whatever the map measured, so that all curves of a problem belong to the same two
    policies. `states`: initial states, every one of which is unrolled.
    """

    counts: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 35, 60)
    maps: tuple[str, ...] = ("scaled", "plain")
    states: int = 4

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        assert case.dtype == "float64", "differences near rounding are the point here"
        case = replace(case, map="scaled")
        policy = build(case, seed)
        assert isinstance(policy, HamiltonianPolicy)
        x = held_out_states(policy.problem, self.states)
        record["rows"] = []
        for at in ("initial", "trained"):
            if at == "trained":
                config = training.config(case, seed, "recommended", evaluations=1, held_out=1)
                training.prepare(case, seed, config, policy=policy).run()
            for row in derivative_rows(
                policy, x, self.maps, unrolled=self.counts, tracked=self.counts
            ):
                kept = {name: row[name] for name in ("map", "gradient", "count")}
                record["rows"].append({"policy": at, **kept, "error": row["gradient_bias"]})
        explain_column(record, "error", "the gradient is not finite")


def derivative_rows(
    policy: HamiltonianPolicy,
    states: Tensor,
    maps: Iterable[str],
    *,
    unrolled: Sequence[int] = (),
    tracked: Sequence[int] = (),
    starts: Sequence[str] = ("cold",),
) -> Iterator[Row]:
    """How far policy gradients are from the exact one, `gradient_bias` and `gradient_cosine`.

    Of exactly K iterations that are unrolled, from the problem's initial control (cold) or the
    control of the time step before (warm); and of JFB with k tracked applications from Newton's
    control. The truth is implicit differentiation, dense, at Newton's control.
    """
    newton = Newton(tolerance=_TIGHT * policy.problem.gradient_scale, max_iterations=200)

    def gradient(name: str, estimator: GradientEstimator, solver: Solver, warm: bool) -> Tensor:
        """One NaN where the rollout leaves the finite numbers."""
        measured = policy.with_gradient(estimator, fixed_point_map=MAPS[name], solver=solver)
        try:
            return policy_gradient(measured, states, warm_start=warm)
        except torch.linalg.LinAlgError:  # a decomposition of what is not finite
            return torch.full_like(states[0, :1], torch.nan)

    true = gradient("scaled", Implicit(DenseLU()), newton, False)
    for name in maps:
        for start, count in itertools.product(starts, unrolled):
            exactly = Picard(tolerance=None, max_iterations=count)
            found = gradient(name, Unrolled(), exactly, start == "warm")
            head = {"map": name, "gradient": "unrolled", "start": start, "count": count}
            yield head | compared(found, true)
        for count in tracked:
            found = gradient(name, JFB(count), newton, False)
            yield {"map": name, "gradient": "jfb", "count": count} | compared(found, true)


def compared(gradient: Tensor, true: Tensor) -> Row:
    """`gradient_bias`, the norm of the difference over that of the truth, and `gradient_cosine`."""
    found = difference(gradient.expand_as(true), true) or {}
    names = {"gradient_bias": "relative", "gradient_cosine": "cosine"}
    return {column: found.get(name, math.nan) for column, name in names.items()}
