"""A gate: which of two branches a network takes at a state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore.extras.fully_connected import fully_connected

_WIDTH = 32


class Gate(nn.Module):
    """A small network whose sign says which branch to take; its size plays no part.

    Where the optimum switches from one kind of flight to another, its value function has a kink,
    which a smooth network blurs: it then flies neither kind, at the cost of both. A network that
    is told a sign besides the state has a branch for each kind. The sign is constant almost
    everywhere, so no cost can train the gate; it is fitted to known optima and stays as it is.
    """

    def __init__(
        self,
        inputs: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.inputs = _validate.positive_int("inputs", inputs)
        sizes = (inputs + 1, _WIDTH, _WIDTH, 1)
        self.layers = fully_connected(sizes, dtype=dtype, device=device, generator=generator)

    def forward(self, times: Tensor, states: Tensor, indices: Tensor) -> Tensor:
        """The logit of the second branch, (rows,), at times (rows, 1), states and indices
        (rows, ·), `inputs` numbers together."""
        logit: Tensor = self.layers(torch.cat((states, indices, times), 1))
        return logit.squeeze(1)

    def branch(self, times: Tensor, states: Tensor, indices: Tensor) -> Tensor:
        """-1 or 1 for each row, (rows, 1)."""
        return sign(self(times, states, indices) > 0, states)


def sign(second: Tensor, like: Tensor) -> Tensor:
    """-1, or 1 where `second` (rows,) is true, in the dtype of `like`: (rows, 1)."""
    return torch.where(second, 1.0, -1.0).to(like.dtype).unsqueeze(1)
