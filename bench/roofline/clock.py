"""Seconds of each part of a step, forward and backward.

Stamps of a clock at the borders of the parts, not `torch.profiler`: its records of every operator
make a step of operators this small more than ten times slower, and not evenly. In the backward
pass a hook on every graph node reads the clock when the node is done; what passed since the last
stamp, autograd's own bookkeeping included, belongs to that node's part. Stamps and hooks cost a
few per cent, and the parts add up to the whole.

Times are the host's. On a GPU they say which part the host was busy with, not which part's
kernels ran.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.measure import Step
from bench.roofline.parts import labelled


@dataclass
class PartTime:
    """Seconds and how often: entries of a part in the forward pass, nodes in the backward."""

    seconds: float = 0.0
    calls: int = 0


class PartClock:
    """Adds up the seconds between stamps, by (phase, part)."""

    def __init__(self) -> None:
        self.times: defaultdict[tuple[str, str], PartTime] = defaultdict(PartTime)
        self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in self.times.values())

    def start(self) -> None:
        self._last = time.perf_counter()

    def stamp(self, phase: str, part: str, calls: int = 1) -> None:
        """What passed since the last stamp belongs to `part`."""
        now = time.perf_counter()
        entry = self.times[phase, part]
        entry.seconds += now - self._last
        entry.calls += calls
        self._last = now


def clock_parts(step: Step) -> PartClock:
    """One step, timed by part."""
    clock = PartClock()
    step.clear()
    with labelled(step.policy) as parts:
        parts.before_switch = lambda: clock.stamp("forward", parts.current)
        step.synchronise()
        clock.start()
        cost = step.forward()
        step.synchronise()
        clock.stamp("forward", parts.current)
        parts.close()
        handles = [
            node.register_hook(lambda *_, part=part: clock.stamp("backward", part))
            for node, part in [(node, parts.of_node(node)) for node in graph_nodes(cost)]
        ]
        clock.start()
        cost.backward()
        step.synchronise()
        # After the last node nothing is left but the return from autograd.
        clock.stamp("backward", parts.current, calls=0)
    for handle in handles:
        handle.remove()
    step.clear()
    return clock


def graph_nodes(output: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every node of the graph behind `output`, each once."""
    waiting = [] if output.grad_fn is None else [output.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
