"""The optimisers that a training run may use, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from jfbcore.extras.muon import Muon

#: names a training configuration may give
OPTIMIZERS = ("adam", "muon")


class ScheduledOptimizer:
    """torch optimisers that step together, each at its own multiple of one learning rate."""

    def __init__(self, parts: Sequence[tuple[torch.optim.Optimizer, float]]) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts, as torch optimisers have them."""
        return [group for optimizer, _ in self._parts for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for optimizer, _ in self._parts:
            optimizer.zero_grad()

    def step(self, learning_rate: float) -> None:
        """Step every part at its multiple of `learning_rate`."""
        for optimizer, multiple in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * multiple
            optimizer.step()

    def forget(self) -> None:
        """Drop all moments: those of one objective say nothing of another."""
        for optimizer, _ in self._parts:
            optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        return {"parts": [optimizer.state_dict() for optimizer, _ in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of an optimiser of the same parts."""
        for (optimizer, _), part in zip(self._parts, state["parts"], strict=True):
            optimizer.load_state_dict(part)


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    matrix_rate: float = 2.0,
) -> ScheduledOptimizer:
    """Adam, or Muon for the matrices among the parameters with Adam for the vectors.

    Muon (Jordan et al., 2024) makes every matrix update orthogonal: each direction of a layer moves
    at the same pace, however small its part of the gradient. Where the cost is as ill-conditioned
    as a heavy terminal cost makes it, that takes a fraction of Adam's steps.
    `matrix_rate`: the matrices' learning rate in units of the vectors'.
    """
    parameters = list(parameters)
    if name == "adam":
        return ScheduledOptimizer([(torch.optim.Adam(parameters, betas=betas), 1.0)])
    vectors = torch.optim.Adam([p for p in parameters if p.dim() != 2], betas=betas)
    # No weight decay: a value function has no reason to be small.
    matrices = Muon([p for p in parameters if p.dim() == 2])
    return ScheduledOptimizer([(vectors, 1.0), (matrices, matrix_rate)])
