"""One training on several processes: each takes its rows of every minibatch, gradients are summed.

All processes hold the whole policy and draw the same minibatch, so that N of them train as one
does. The gradients are summed by one collective after the backward pass of a rollout, at the end of
which all of them are complete: there is nothing that buckets of DistributedDataParallel could
overlap with. Agents are never divided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a training, `size` of them, of which this is number `rank`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The default process group's; of one process where there is no group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def rows(self, minibatch: Tensor) -> Tensor:
        """This process's rows of a minibatch (batch, n) that all processes have drawn.

        Raises ValueError where it would be none.
        """
        if len(minibatch) < self.size:
            raise ValueError(
                f"`batch_size` must be at least the {self.size} processes, got {len(minibatch)}"
            )
        return minibatch if self.size == 1 else minibatch[self.rank :: self.size]

    def mean_gradients(self, parameters: Iterable[Tensor], share: float) -> None:
        """Turn gradients of means over this process's rows, its `share` of a minibatch, into those
        of the mean over the minibatch."""
        if self.size == 1:
            return
        used = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in used if p.grad is not None]) * share
        dist.all_reduce(flat)
        for p, whole in zip(used, flat.split([p.numel() for p in used]), strict=True):
            p.grad = whole.view_as(p)

    def mean(self, value: float, share: float, device: torch.device) -> float:
        """The mean over the minibatch of what is `value` in the mean over this process's rows."""
        return self._reduced(value * share, dist.ReduceOp.SUM, device)

    def longest(self, seconds: float, device: torch.device) -> float:
        """The seconds of the slowest process: all must agree how much of a run is done."""
        return self._reduced(seconds, dist.ReduceOp.MAX, device)

    def _reduced(self, value: float, by: dist.ReduceOp.RedOpType, device: torch.device) -> float:
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(found, by)
        return float(found.item())
