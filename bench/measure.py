"""The benchmark body: one training step of a case, its time and its memory.

The sweep, asv and pytest-benchmark all call what is here; nothing is measured anywhere else.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines import Implicit, ReferenceMisfit, Reversible
from baselines.linear_solvers import Watched
from bench.build import build, build_rollout, exact_estimator
from bench.case import REPEATS, Case
from bench.diagnostics import difference, policy_gradient
from bench.memory import LiveTensorTracker, SavedTensorCounter
from jfbcore.jfb import GradientEstimator
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import Rollout

#: untimed repeats of a step before the timed ones
WARM_UP = 2
#: seconds after which fewer repeats than `REPEATS` have to do; recorded with the result
TIME_BUDGET = 120.0
#: offset between the seed of the parameters and that of the minibatch
_MINIBATCH_SEED = 1_000


class Step:
    """A training step of `case`, ready to run: rollout, mean cost, backward.

    The optimiser's update is left out: it is the same for every gradient. Raises Unsupported.
    """

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.policy = build(case, seed)
        self.rollout = build_rollout(case, self.policy)
        generator = torch.Generator().manual_seed(_MINIBATCH_SEED + seed)
        self.states = self.policy.problem.sample_initial_states(case.batch_size, generator)
        self.last: Rollout | None = None
        #: whether the cost is that of a rollout, and not the misfit to reference trajectories
        self.rolls_out = not isinstance(self.rollout, ReferenceMisfit)

    def forward(self) -> Tensor:
        """The minibatch's mean cost, with its graph."""
        self.last = self.rollout(self.policy, self.states)
        return self.last.cost.mean()

    def clear(self) -> None:
        """Drop gradients, so that every step allocates the same."""
        for parameter in self.policy.parameters():
            parameter.grad = None
        self.last = None

    def synchronise(self) -> None:
        if self.case.device == "cuda":
            torch.cuda.synchronize()

    def __call__(self) -> float:
        """One whole step, synchronised: the mean cost."""
        self.clear()
        cost = self.forward()
        cost.backward()
        self.synchronise()
        return cost.item()

    def gradient(self) -> Tensor:
        """The minibatch gradient as one vector, (n_parameters,)."""
        self()
        parts = [
            torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.parameters()
        ]
        return torch.cat([part.detach().flatten() for part in parts])


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed repeat, whole and by part; `first`: of the first step of all;
    `processor`: what of each repeat the process had a processor for, of all threads together."""

    forward: list[float]
    backward: list[float]
    first: float
    processor: list[float]

    @property
    def step(self) -> list[float]:
        return [a + b for a, b in zip(self.forward, self.backward, strict=True)]

    @property
    def cpu_share(self) -> float:
        """Processor seconds per second: less than one where other load held the processor."""
        return sum(self.processor) / sum(self.step)


def summarise(seconds: list[float]) -> dict[str, float | int]:
    """{median, min, q25, q75, repeats} of a list of timings."""
    q25, median, q75 = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {
        "median": float(median),
        "min": min(seconds),
        "q25": float(q25),
        "q75": float(q75),
        "repeats": len(seconds),
    }


def measure_time(
    step: Step, repeats: int = REPEATS, warm_up: int = WARM_UP, budget: float = TIME_BUDGET
) -> Timing:
    """Time `repeats` steps after a warm-up; at least 3 when the budget runs out before."""
    forward: list[float] = []
    backward: list[float] = []
    processor: list[float] = []
    first: float | None = None
    began = time.perf_counter()
    for i in range(-warm_up, repeats):
        spent = time.perf_counter() - began
        if (i < 0 and i > -warm_up and spent > budget) or (i >= 3 and spent > budget):
            continue
        step.clear()
        step.synchronise()
        before, t0 = time.process_time(), time.perf_counter()
        cost = step.forward()
        step.synchronise()
        t1 = time.perf_counter()
        cost.backward()
        step.synchronise()
        t2 = time.perf_counter()
        first = t2 - t0 if first is None else first
        if i >= 0:
            forward.append(t1 - t0)
            backward.append(t2 - t1)
            processor.append(time.process_time() - before)
    assert first is not None
    return Timing(forward, backward, first, processor)


def outcome(step: Step) -> dict[str, Any]:
    """Iterations and residual of the step that was run last, None where it solved no inner problem,
    and whether its cost and its gradients are finite."""
    assert step.last is not None
    unknown = {"iterations": None, "residual": None}
    finite = math.isfinite(step.last.cost.mean().item()) and all(
        p.grad is None or bool(p.grad.isfinite().all()) for p in step.policy.parameters()
    )
    return {**unknown, **(step.last.inner.summary() or {}), "finite": finite}


def measure_memory(step: Step) -> dict[str, Any]:
    """Peak live tensor bytes of a step and bytes saved for backward, in a pass of its own.

    Parameters count as live (they are, whichever gradient is used), not as saved. The bytes of a
    compiled step are None: its kernels allocate where no tracker of operations can see.
    """
    if step.case.compile:
        step()
        return {"peak_live_tensor_bytes": None, "saved_tensor_bytes": None, **outcome(step)}
    step.clear()
    gc.collect()
    fixed = [*step.policy.parameters(), *step.policy.buffers(), step.states]
    with SavedTensorCounter(exclude=fixed) as saved:
        step.forward()
    step.clear()
    gc.collect()
    with LiveTensorTracker() as live:
        live.track(fixed)
        step.forward().backward()
    found = outcome(step)
    step.clear()
    return {"peak_live_tensor_bytes": live.peak_bytes, "saved_tensor_bytes": saved.bytes, **found}


def cuda_memory(step: Step) -> dict[str, int]:
    """The allocator's peaks over one step, taken apart from its time."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return {
        "max_allocated_bytes": torch.cuda.max_memory_allocated(),
        "max_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def busy_seconds(step: Step) -> float:
    """Seconds of one step in which the GPU ran a kernel or copied; what is left of the step is
    launches and waiting. Captured graphs count kernel by kernel."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or ()
        if event.device_type == DeviceType.CUDA
    )
    busy, until = 0.0, -math.inf
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1e-6 * busy


def gradient_cosine(step: Step) -> float | None:
    """Cosine between this estimator's minibatch gradient and the implicit one, in float64.

    None for policies without an inner problem, for steps that roll nothing out, and where the
    implicit gradient is not finite or zero.
    """
    if not isinstance(step.policy, HamiltonianPolicy) or not step.rolls_out:
        return None
    segment, exactly = step.case.segment, exact_estimator(step.case)
    own = policy_gradient(step.policy, step.states, segment=segment)
    exact = policy_gradient(step.policy, step.states, exactly, segment=segment)
    step.clear()
    found = difference(own, exact)
    return None if found is None else found["cosine"]


def linear_residual(step: Step) -> dict[str, float] | None:
    """{mean, max} over time steps and samples of the relative residuals of implicit
    differentiation's linear solves in one step; None for gradients without one."""
    gradient = getattr(step.policy, "gradient", None)
    if not isinstance(gradient, Implicit):
        return None
    watched = Watched(gradient.linear_solver)
    return _over_a_step(step, replace(gradient, linear_solver=watched), watched.residuals)


def reversible_drift(step: Step) -> dict[str, float] | None:
    """{mean, max} over time steps and samples of how far the controls that the backward pass of one
    step reconstructed are from the true ones, relative; None for gradients that invert nothing."""
    gradient = getattr(step.policy, "gradient", None)
    if not isinstance(gradient, Reversible):
        return None
    drifts: list[Tensor] = []
    return _over_a_step(step, replace(gradient, drifts=drifts), drifts)


def _over_a_step(
    step: Step, watched: GradientEstimator, noted: Sequence[Tensor]
) -> dict[str, float]:
    """{mean, max} of what the estimator `watched` has `noted` along one policy gradient."""
    assert isinstance(step.policy, HamiltonianPolicy)
    policy_gradient(step.policy, step.states, watched, segment=step.case.segment)
    step.clear()
    found = torch.stack(list(noted))
    return {"mean": found.mean().item(), "max": found.max().item()}


def tolerance_reached(policy: Policy, residual: dict[str, float] | None) -> bool | None:
    """Whether the largest inner residual met the tolerance; None where none was asked for."""
    solver = getattr(policy, "solver", None)
    if residual is None or solver is None or solver.tolerance is None:
        return None
    return math.isfinite(residual["max"]) and residual["max"] <= solver.tolerance


def peak_rss_bytes() -> int | None:
    """This process's largest resident set so far.

    From /proc, whose figure starts anew at exec; getrusage's would inherit the parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
