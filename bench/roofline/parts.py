"""Which part of a training step is running, seen from outside the code that runs.

The methods between which a step's work divides are wrapped for the duration of one pass. In the
backward pass a graph node belongs to the part that was running when the node was made: autograd
numbers its nodes as it makes them, so each stretch of a part owns a range of numbers.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from jfbcore.policy import HamiltonianPolicy, Policy

#: what the rollout itself does between the parts: Euler sums, statistics, loops
ROLLOUT = "rollout"
#: adding a parameter's gradients up, which belongs to no part of the forward pass
ACCUMULATION = "gradient accumulation"
OPTIMISER = "optimiser step"
#: every part, in the order of tables and figures, and what it is
PARTS = {
    "costate": "the value network's forward-backward sweep",
    "control coefficient": "building the Hamiltonian: what does not depend on the control",
    "inner solve": "the iteration to the fixed point, without a graph",
    "re-attachment": "what the gradient estimator does besides the solve",
    "control network": "the network of a direct policy",
    "running cost": "running cost with the interaction of the agents",
    "dynamics": "right-hand side of the state equation",
    "terminal cost": "cost of the final state",
    ROLLOUT: "Euler sums, residual statistics and loops",
    ACCUMULATION: "adding up the parameters' gradients",
    OPTIMISER: "gradient clipping and Adam",
}


class Parts:
    """The part that runs now, and the part that made a graph node.

    `before_switch` is called whenever the running part is about to change.
    """

    def __init__(self) -> None:
        self.before_switch: Callable[[], None] | None = None
        self._stack = [ROLLOUT]
        self._active = True
        self._first_numbers: list[int] = []
        self._owners: list[str] = []
        self._end = 0
        self._mark()

    @property
    def current(self) -> str:
        return self._stack[-1]

    def enter(self, part: str) -> None:
        self._switch(lambda: self._stack.append(part))

    def leave(self) -> None:
        self._switch(self._stack.pop)

    def close(self) -> None:
        """The forward pass is over: later calls of wrapped methods belong to the node's part."""
        self._end = _next_number()
        self._active = False

    def of_node(self, node: torch.autograd.graph.Node) -> str:
        """The part whose forward pass made `node`."""
        number = node._sequence_nr()
        # Leaves' accumulators carry the largest number there is, to run as early as possible.
        if number >= self._end:
            return ACCUMULATION
        return self._owners[max(bisect.bisect_right(self._first_numbers, number) - 1, 0)]

    def _switch(self, change: Callable[[], Any]) -> None:
        if not self._active:
            return
        if self.before_switch is not None:
            self.before_switch()
        change()
        self._mark()

    def _mark(self) -> None:
        self._first_numbers.append(_next_number())
        self._owners.append(self.current)


@contextmanager
def labelled(policy: Policy) -> Iterator[Parts]:
    """Wrap the methods `policy` is made of; undone on leaving. One such context at a time."""
    parts = Parts()
    with ExitStack() as undo:
        for owner, name, part in _methods(policy):
            undo.callback(_wrap(owner, name, part, parts))
        yield parts


def _methods(policy: Policy) -> list[tuple[type, str, str]]:
    problem = type(policy.problem)
    found = [
        (problem, "running_cost", "running cost"),
        (problem, "terminal_cost", "terminal cost"),
    ]
    if not isinstance(policy, HamiltonianPolicy):
        network = (type(policy), "forward", "control network")
        return [*found, (problem, "dynamics", "dynamics"), network]
    # The rollout asks the Hamiltonian, which may do without the problem's own.
    state = policy.problem.sample_initial_states(1, torch.Generator().manual_seed(0))
    hamiltonian = policy.problem.hamiltonian(0.0, state, torch.zeros_like(state))
    return [
        *found,
        (type(hamiltonian), "dynamics", "dynamics"),
        (type(policy.value_network), "costate", "costate"),
        (problem, "hamiltonian", "control coefficient"),
        (type(policy.gradient), "attach", "re-attachment"),
        (type(policy.solver), "solve", "inner solve"),
    ]


def _wrap(owner: type, name: str, part: str, parts: Parts) -> Callable[[], None]:
    """Replace a method on its class, because frozen objects refuse it; how to undo that."""
    inherited = name not in vars(owner)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        parts.enter(part)
        try:
            return original(*args, **kwargs)
        finally:
            parts.leave()

    setattr(owner, name, wrapped)
    return lambda: delattr(owner, name) if inherited else setattr(owner, name, original)


def _next_number() -> int:
    """The number the next graph node of this thread will get."""
    return torch._C._autograd._get_sequence_nr()
