"""The profile of one case: time, parts, counts, and the floors beneath them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from bench.build import DTYPES
from bench.case import Case
from bench.measure import Step, measure_time, summarise
from bench.roofline.clock import PartTime, clock_parts
from bench.roofline.counts import OperatorCounter, Tally
from bench.roofline.parts import OPTIMISER, PARTS, labelled
from bench.roofline.rates import MachineRates, copy_rate, machine_rates, product_rate
from jfbcore.train import TrainingConfig

#: passes that time the parts; the one with the median total is kept
_PASSES = 3
#: operators listed, those with most calls first
_LISTED = 20


class Update:
    """The optimiser's part of a training step: clipping and Adam, on the gradients there are."""

    def __init__(self, step: Step) -> None:
        self._parameters = list(step.policy.parameters())
        # The update's work at a rate of zero: every repeat measures the same parameters.
        self._optimizer = torch.optim.Adam(self._parameters, lr=0.0)

    def __call__(self) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, TrainingConfig.clip_norm)
        norm.item()
        self._optimizer.step()


def profile_case(case: Case, *, repeats: int, seed: int = 0) -> dict[str, Any]:
    """What is measured of one case and of the machine beside it; raises Unsupported.

    Time, parts and counts are three passes, so that none disturbs another.
    """
    rates = machine_rates(case.device, DTYPES[case.dtype])
    step = Step(case, seed)
    timing = measure_time(step, repeats=repeats)
    step()
    update = Update(step)
    updates = [_seconds(step, update) for _ in range(1 + repeats)][1:]
    clocks = [clock_parts(step) for _ in range(_PASSES)]
    clocked = [sum(part.seconds for part in clock.values()) for clock in clocks]
    middle = clocked.index(statistics.median_low(clocked))
    counter = count(step, update)
    forward, backward = map(statistics.median, (timing.forward, timing.backward))
    optimiser = statistics.median(updates)
    seconds = {
        "step": statistics.median(timing.step) + optimiser,
        "forward": forward,
        "backward": backward,
        "optimiser": optimiser,
    }
    total = counter.total
    mean_bytes = total.bytes // max(total.calls, 1)
    inner = step.last.inner.summary() if step.last is not None else None
    step.clear()
    return {
        "case": case.to_dict(seed),
        "seconds": seconds,
        "step_seconds": summarise(timing.step),
        "iterations": None if inner is None else inner["iterations"],
        "counts": asdict(total),
        "own_rates": {
            "product_flops_per_second": product_rate(counter.products.values(), case.device),
            "operator_bytes": mean_bytes,
            "copy_bytes_per_second": copy_rate(mean_bytes // 2, case.device),
        },
        "clocked_seconds": clocked[middle],
        "parts": _parts(clocks[middle], counter, seconds),
        "operators": _operators(counter),
        "rates": asdict(rates),
    }


def with_floors(profile: dict[str, Any], rates: MachineRates) -> dict[str, Any]:
    """A case's entry of roofline.json: its profile, and the floors beneath it at `rates`."""
    entry = {name: value for name, value in profile.items() if name != "rates"}
    floors = floor_seconds(Tally(**entry["counts"]), rates, entry["own_rates"])
    step = entry["seconds"]["step"]
    ratio = {name: step / value for name, value in floors.items() if value > 0}
    return entry | {"floor_seconds": floors, "bound": bound(floors), "ratio": ratio}


def count(step: Step, update: Update) -> OperatorCounter:
    """FLOPs, bytes and kernels of one whole training step."""
    step.clear()
    with labelled(step.policy) as parts, OperatorCounter(parts) as counter:
        cost = step.forward()
        parts.close()
        cost.backward()
        counter.place = ("optimiser", OPTIMISER)
        update()
    return counter


def floor_seconds(total: Tally, rates: MachineRates, own: dict[str, Any]) -> dict[str, float]:
    """The least seconds a step can take, by what holds it.

    `arithmetic` at the faster of the two product rates and `traffic` at the faster of the two
    copy rates, so that both are floors; `roofline` is the larger one. `launch`: one empty
    operator for every kernel.
    """
    product = max(rates.square_flops_per_second, own["product_flops_per_second"] or 0.0)
    copy = max(rates.copy_bytes_per_second, own["copy_bytes_per_second"])
    arithmetic = (total.matmul_flops + total.pointwise_flops) / product
    traffic = total.bytes / copy
    return {
        "arithmetic": arithmetic,
        "traffic": traffic,
        "roofline": max(arithmetic, traffic),
        "launch": total.calls * rates.operator_seconds,
    }


def bound(floors: dict[str, float]) -> str:
    """Which floor is the highest: arithmetic, traffic or launch."""
    return max(("arithmetic", "traffic", "launch"), key=lambda name: floors[name])


def _parts(
    clock: Mapping[tuple[str, str], PartTime], counter: OperatorCounter, seconds: dict[str, float]
) -> list[dict[str, Any]]:
    """One entry per phase and part; seconds scaled so that a phase's parts add up to its median."""
    rows = []
    for phase in ("forward", "backward"):
        clocked = sum(one.seconds for (of, _), one in clock.items() if of == phase)
        for part in PARTS:
            if (phase, part) in clock:
                entry = clock[phase, part]
                rows.append((phase, part, entry.seconds * seconds[phase] / clocked, entry.calls))
    rows.append(("optimiser", OPTIMISER, seconds["optimiser"], 1))
    return [
        {"phase": phase, "part": part, "seconds": own, "share": own / seconds["step"]}
        | {"entered": entered, **asdict(counter.by_part.get((phase, part), Tally()))}
        for phase, part, own, entered in rows
    ]


def _seconds(step: Step, update: Update) -> float:
    """Of one update."""
    step.synchronise()
    began = time.perf_counter()
    update()
    step.synchronise()
    return time.perf_counter() - began


def _operators(counter: OperatorCounter) -> list[dict[str, Any]]:
    ranked = sorted(
        counter.by_operator.items(), key=lambda item: (item[1].calls, item[1].free), reverse=True
    )
    return [{"operator": name, **asdict(tally)} for name, tally in ranked[:_LISTED]]
