"""Random numbers that a seed fixes whatever the precision and the device they are used in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw(
    sampler: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None
) -> Tensor:
    """`sampler` (torch.rand or torch.randn) in float64, on the generator's own device.

    To be cast and moved by the caller. Without a generator the CPU's global one draws.
    """
    device = "cpu" if generator is None else generator.device
    return sampler(tuple(shape), generator=generator, dtype=torch.float64, device=device)
