"""A fully connected network with tanh between its layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from jfbcore._random import draw


def fully_connected(
    sizes: Sequence[int],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Layers between `sizes`, inputs first: (rows, sizes[0]) -> (rows, sizes[-1]).

    Parameters are uniform within 1/sqrt(inputs of the layer), and drawn from `generator` in
    float64, so that a seed means the same network in every dtype and on every device.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layer = nn.Linear(n_in, n_out, dtype=dtype, device=device)
        with torch.no_grad():
            for parameter in layer.parameters():
                uniform = draw(torch.rand, parameter.shape, generator)
                parameter.copy_((2.0 * uniform - 1.0) / n_in**0.5)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
