"""The held-out initial states every policy is scored on."""

from __future__ import annotations

import torch
from torch import Tensor

from jfbcore.problems.base import Problem

#: number of held-out initial states
COUNT = 64
#: seed of the generator they are drawn with; never used for training
SEED = 20_260_202


def held_out_states(problem: Problem, count: int = COUNT) -> Tensor:
    """The first `count` held-out initial states, (count, n), the same for every gradient.

    Drawn state by state on the CPU, so that a smaller `count` is a prefix of a larger one and
    neither dtype nor device changes them.
    """
    generator = torch.Generator().manual_seed(SEED)
    draws = [problem.sample_initial_states(1, generator) for _ in range(count)]
    return torch.cat(draws)
