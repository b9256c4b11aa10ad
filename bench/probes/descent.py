"""True gradient norms along SGD with a method's gradient and with the exact one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.build import build, exact_estimator
from bench.case import Case
from bench.diagnostics import policy_gradient
from bench.probes.probe import Hooks, Probe, Row, explain_column
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy


@dataclass(frozen=True, kw_only=True)
class Descent(Probe):
    """Ten rows along `case.train_steps` steps of each of the two, and how far they are apart there.

    Plain SGD with the same minibatches and the same step size for both: 0.01 of the norm of theta
    over the norm of the first true gradient, decaying as 1/sqrt(k), each gradient clipped to
    that first norm. Stops with a reason where a gradient is not finite.
    """

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        record["rows"] = [
            {"sgd": name, **row}
            for name, estimator in ((case.gradient, None), ("exact", exact_estimator(case)))
            for row in _descend(case, seed, estimator)
        ]
        for column in ("true_gradient_norm", "gradient_difference"):
            explain_column(record, column, "the gradient is not finite")


def _descend(case: Case, seed: int, estimator: Any) -> list[Row]:
    policy = build(case, seed)
    assert isinstance(policy, HamiltonianPolicy)
    fixed = held_out_states(policy.problem, 16)
    generator = torch.Generator().manual_seed(seed)
    scale = policy_gradient(policy, fixed, exact_estimator(case)).norm()
    size = torch.cat([p.detach().flatten() for p in policy.parameters()]).norm()
    rows: list[Row] = []
    for k in range(case.train_steps + 1):
        if k % max(1, case.train_steps // 10) == 0:
            true = policy_gradient(policy, fixed, exact_estimator(case))
            own = policy_gradient(policy, fixed)
            apart = ((own - true).norm() / true.norm()).item()
            norm = true.norm().item()
            rows.append({"step": k, "true_gradient_norm": norm, "gradient_difference": apart})
        states = policy.problem.sample_initial_states(case.batch_size, generator)
        gradient = policy_gradient(policy, states, estimator)
        if not bool(gradient.isfinite().all()):
            reason = "the minibatch gradient is not finite"
            return [*rows, {"step": k, "true_gradient_norm": None, "reason": reason}]
        clip = min(1.0, (scale / gradient.norm()).item())
        _move(policy, gradient, clip * (0.01 * size / scale / (k + 1) ** 0.5).item())
    return rows


@torch.no_grad()
def _move(policy: HamiltonianPolicy, gradient: Tensor, step: float) -> None:
    parameters = list(policy.parameters())
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.sub_(step * part.view_as(parameter).to(parameter.dtype))
