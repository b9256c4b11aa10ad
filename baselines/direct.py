"""A network that outputs the control itself: no Hamiltonian, no inner problem."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore.policy import Decision, Policy
from jfbcore.problems import Consumption, Problem
from jfbcore.problems.base import Time


class DirectPolicy(Policy):
    """u(t, z) = P(a fully connected network of (z, t)), trained by ordinary backpropagation.

    The width and depth are the value network's, so that parameter counts compare. Admissible by
    construction: the problem's own projection, and for consumption an excess above habit that is
    the nominal one times exp of the output.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.problem = problem
        width = _validate.positive_int("width", width or problem.network_width)
        depth = _validate.positive_int("depth", depth or problem.network_depth)
        sizes = [problem.state_dim + 1, *[width] * depth, problem.control_dim]
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layer = nn.Linear(n_in, n_out, dtype=problem.dtype, device=problem.device)
            with torch.no_grad():
                for parameter in layer.parameters():
                    draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_((2.0 * draw - 1.0) / n_in**0.5)
            layers += [layer, nn.Tanh()]
        self.network = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            # Start near zero output, where every problem's costs are finite.
            for parameter in layers[-2].parameters():
                parameter.mul_(0.01)

    def forward(self, t: Time, z: Tensor, warm_start: Tensor | None = None) -> Decision:
        time = torch.as_tensor(t, dtype=z.dtype, device=z.device).reshape(-1, 1)
        output = self.network(torch.cat((z, time.expand(z.shape[0], 1)), 1))
        return Decision(self._admissible(t, z, output))

    def _admissible(self, t: Time, z: Tensor, output: Tensor) -> Tensor:
        problem = self.problem
        if isinstance(problem, Consumption):
            return z[:, 1:] + problem.nominal_excess * output.clamp(-20.0, 20.0).exp()
        # The projection does not depend on the costate.
        return problem.hamiltonian(t, z, torch.zeros_like(z)).project(output)
