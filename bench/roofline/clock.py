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


def clock_parts(step: Step) -> dict[tuple[str, str], PartTime]:
    """One step, timed by (phase, part)."""
    times: defaultdict[tuple[str, str], PartTime] = defaultdict(PartTime)
    last = 0.0

    def stamp(phase: str, part: str, calls: int = 1) -> None:
        """What passed since the last stamp belongs to `part`."""
        nonlocal last
        now = time.perf_counter()
        entry = times[phase, part]
        entry.seconds += now - last
        entry.calls += calls
        last = now

    step.clear()
    with labelled(step.policy) as parts:
        parts.before_switch = lambda: stamp("forward", parts.current)
        step.synchronise()
        last = time.perf_counter()
        cost = step.forward()
        step.synchronise()
        stamp("forward", parts.current)
        parts.close()
        handles = []
        for node in graph_nodes(cost):
            part = parts.of_node(node)
            handles.append(node.register_hook(lambda *_, part=part: stamp("backward", part)))
        last = time.perf_counter()
        cost.backward()
        step.synchronise()
        # After the last node nothing is left but the return from autograd.
        stamp("backward", parts.current, calls=0)
    for handle in handles:
        handle.remove()
    step.clear()
    return times


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
