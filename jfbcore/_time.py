"""A time is a number, a tensor (), or one of (batch,) with a time for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

Time = float | Tensor


def time_tensor(t: Time, like: Tensor) -> Tensor:
    """`t` in the precision and on the device of `like`.

    A number is filled in there: copied from the host it would wait for the device.
    """
    if isinstance(t, Tensor):
        return t.to(like)
    return torch.full((), t, dtype=like.dtype, device=like.device)


def time_column(t: Time) -> Time:
    """A time that broadcasts against (batch, k): (batch,) becomes (batch, 1), scalars pass."""
    if isinstance(t, Tensor) and t.dim() == 1:
        return t.unsqueeze(-1)
    return t
