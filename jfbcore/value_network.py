"""The value network phi(t, z) with a hand-written gradient sweep (arXiv 2602.00921, sec. 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from jfbcore import _validate
from jfbcore._random import draw
from jfbcore._time import Time, time_column
from jfbcore.extras.network_defaults import NetworkScaling, network_defaults
from jfbcore.kernels import saved_sweep
from jfbcore.kernels.costate import Costate, costate_formula, costate_of, forward_backward
from jfbcore.kernels.fused import plain_formula_required
from jfbcore.kernels.saved_sweep import Columns, Cotangents, Layers, Saved, narrow
from jfbcore.kernels.sweep import antiderivative_of_tanh, core, core_vjp
from jfbcore.problems.base import Problem

QUADRATIC_RANK = 10


class ValueNetwork(nn.Module):
    """phi(t, z) = w.N(y) + |A y|^2 / 2 + b.y with y = (z, t) and a residual network N.

    N has `depth` layers of `width`, the activation log(2 cosh x) (whose derivative is tanh) and
    residual step 1/(depth - 1); A has rank min(10, n + 1). Gradients with respect to the state
    and to time come from one forward-backward sweep written by hand, never from a second pass of
    automatic differentiation. `scaling` puts numbers of order one into and out of it, for
    problems whose states or values are far from that.

    Parameters are drawn from `generator` in float64, so that a seed means the same network
    in every dtype and on every device.
    """

    def __init__(
        self,
        state_dim: int,
        width: int,
        depth: int = 3,
        *,
        initial_costate: Tensor | None = None,
        scaling: NetworkScaling | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.state_dim = n = _validate.positive_int("state_dim", state_dim)
        self.width = _validate.positive_int("width", width)
        self.depth = _validate.positive_int("depth", depth)
        self.residual_step, self.scaling = 1.0 / max(depth - 1, 1), scaling
        rank = min(QUADRATIC_RANK, n + 1)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            numbers = 2.0 * draw(torch.rand, shape, generator) - 1.0
            numbers *= 1.0 / math.sqrt(fan_in)
            return nn.Parameter(numbers.to(device=device, dtype=dtype))

        # The opening layer and A act on y = (z, t); their last column is kept apart so that y is
        # never concatenated.
        self.opening = uniform(width, n, fan_in=n + 1)
        self.opening_time = uniform(width, fan_in=n + 1)
        self.opening_bias = uniform(width, fan_in=n + 1)
        layers = range(depth - 1)
        self.weights = nn.ParameterList(uniform(width, width, fan_in=width) for _ in layers)
        self.biases = nn.ParameterList(uniform(width, fan_in=width) for _ in layers)
        self.readout = uniform(width, fan_in=100 * width)
        self.quadratic = uniform(rank, n, fan_in=10 * (n + 1))
        self.quadratic_time = uniform(rank, fan_in=10 * (n + 1))
        self.linear = nn.Parameter(torch.zeros(n, device=device, dtype=dtype))
        self.linear_time = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        units = 1.0 if scaling is None else scaling.state
        self._state_unit: Tensor | float
        if isinstance(units, tuple):
            if len(units) != n:
                raise ValueError(
                    f"`scaling.state` must have {n} units, one for each state, got {len(units)}"
                )
            # Not part of a saved state: a constant of the problem.
            constant = torch.tensor(units, dtype=dtype, device=device)
            self.register_buffer("_state_unit", constant, persistent=False)
        else:
            self._state_unit = units
        if initial_costate is not None:
            with torch.no_grad():
                self.linear.copy_(initial_costate / self._costate_unit)

    @classmethod
    def for_problem(
        cls,
        problem: Problem,
        *,
        width: int | None = None,
        depth: int | None = None,
        scaling: NetworkScaling | None = None,
        generator: torch.Generator | None = None,
    ) -> ValueNetwork:
        """The network used for `problem` in arXiv 2602.00921, on its dtype and device.

        `width`, `depth` and `scaling` replace what `network_defaults(problem)` says.
        """
        defaults = network_defaults(problem)
        return cls(
            problem.state_dim,
            defaults.width if width is None else width,
            defaults.depth if depth is None else depth,
            initial_costate=problem.initial_costate(),
            scaling=defaults.scaling if scaling is None else scaling,
            dtype=problem.dtype,
            device=problem.device,
            generator=generator,
        )

    def forward(self, t: Time, z: Tensor) -> Tensor:
        """phi(t, z): (batch, n) -> (batch,)."""
        return self.value_and_gradient(t, z)[0]

    def costate(self, t: Time, z: Tensor) -> Tensor:
        """p = grad_z phi(t, z): (batch, n) -> (batch, n), differentiable in z and parameters."""
        formula = costate_formula if plain_formula_required() else Costate.apply
        return self._by_state(
            formula(self.residual_step, t, self._inputs(z), *self._sweep_parameters())
        )

    def value_and_gradient(self, t: Time, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi (batch,), grad_z phi (batch, n) and d phi/dt (batch,), all from one sweep."""
        z = self._inputs(z)
        sweep = forward_backward(self.residual_step, t, z, *self._sweep_parameters())
        last = antiderivative_of_tanh(sweep.last)
        if sweep.states:
            last = torch.add(sweep.states[-1], last, alpha=self.residual_step)
        quadratic = 0.5 * torch.linalg.vecdot(sweep.projected, sweep.projected)
        in_time = (self.linear_time * time_column(t)).reshape(-1)
        phi = last @ self.readout + quadratic + z @ self.linear + in_time
        p = costate_of(sweep, self.opening, self.quadratic, self.linear)
        phi_t = sweep.pulled @ self.opening_time + sweep.projected @ self.quadratic_time
        phi_t = phi_t + self.linear_time
        if self.scaling is None:
            return phi, p, phi_t
        return phi * self.scaling.value, self._by_state(p), phi_t * self.scaling.value

    def prepare(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """What a rollout over the grid `times` (steps,) makes once for all its time steps.

        Opening layer and A as one matrix (width + rank, n), so that one product serves both, and
        their biases at every time, (steps, at least width + rank). Rows of the biases begin at
        multiples of 16 bytes, which compiled code wants of its inputs.
        """
        slope = torch.cat((self.opening_time, self.quadratic_time))
        bias = torch.cat((self.opening_bias, torch.zeros_like(self.quadratic_time)))
        table = torch.addcmul(bias, times.unsqueeze(1), slope)
        matrix = torch.cat((self.opening, self.quadratic))
        return matrix, functional.pad(table, (0, -table.shape[1] % 4))

    def prepared_costate(self, matrix: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        """`costate` without a graph, at the time of a row `bias` of what `prepare` makes.

        The residual core is one kernel where there is one for it.
        """
        opened = torch.addmm(bias[: matrix.shape[0]], self._inputs(z), matrix.T)
        pulled = core(opened, self.readout, *self._layers(), self.residual_step)
        return self._by_state(torch.addmm(self.linear, pulled, matrix))

    def prepared_pull_back(
        self, matrix: Tensor, bias: Tensor, z: Tensor, p_bar: Tensor, onto: Tensor
    ) -> Tensor:
        """`onto` + (dp/dz)^T p_bar, all (batch, n), without a graph."""
        opened = torch.addmm(bias[: self.width], self._inputs(z), matrix[: self.width].T)
        bars = self._by_state(p_bar) @ matrix.T
        bars = core_vjp(opened, bars, self.readout, *self._layers(), self.residual_step)
        if self.scaling is None:
            return torch.addmm(onto, bars, matrix)
        return onto + bars @ matrix / self._state_unit

    def layers(self, matrix: Tensor, columns: Columns | None = None) -> Layers:
        """The parameters as `jfbcore.kernels.saved_sweep` takes them; `matrix` is `prepare`'s.

        With `columns`, which a network with a scaling does not take, `saved_costate` and the
        methods after it are about these costates alone.
        """
        weights = self.readout.new_zeros(0, self.width, self.width)
        biases = self.readout.new_zeros(0, self.width)
        if self.depth > 1:
            weights, biases = map(torch.stack, self._layers())
        both, step = (weights, weights.mT.contiguous()), self.residual_step
        opening = matrix, matrix.T.contiguous()
        # The parameter itself where it is whole: a compiled loop takes no view beside it.
        linear = self.linear if columns is None else narrow(self.linear[None], columns)[0]
        out = narrow(matrix, columns).clone()
        closing = out, out.T.contiguous()
        return Layers(*opening, *closing, *both, biases, self.readout, linear, step, columns)

    def saved_costate(self, layers: Layers, bias: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
        """`costate` without a graph, and what `saved_pull_back` needs of it."""
        p, saved = saved_sweep.sweep(layers, bias[: layers.matrix.shape[0]], self._inputs(z))
        return self._by_state(p), saved

    def saved_pull_back(
        self, layers: Layers, saved: Saved, at_step: Tensor, p_bar: Tensor, onto: Tensor
    ) -> tuple[Tensor, Cotangents]:
        """`onto` + (dp/dz)^T p_bar, (batch, n) each, and what `saved_gradients` needs of it."""
        if self.scaling is None:
            return saved_sweep.pull_back(layers, saved, at_step, p_bar, onto)
        start, p_bar = torch.zeros_like(onto), self._by_state(p_bar)
        z_bar, cotangents = saved_sweep.pull_back(layers, saved, at_step, p_bar, start)
        return onto + z_bar / self._state_unit, cotangents

    def saved_gradients(
        self,
        layers: Layers,
        times: Tensor,
        z: Tensor,
        p_bar: Tensor,
        saved: Saved,
        cotangents: Cotangents,
    ) -> dict[str, Tensor]:
        """Gradients of the parameters by name; tensors are stacked, (steps, batch, …) each."""
        width, value = self.width, 1.0 if self.scaling is None else self.scaling.value
        # From z / value, and not z / unit, both products in `matrix` lack the costate's unit alone:
        # it is put in once, and no states or costates of a whole rollout are scaled.
        inputs = z if value == 1.0 else z / value
        whole = saved_sweep.parameter_gradients(layers, times, inputs, p_bar, saved, cotangents)
        matrix = self._by_state(whole.matrix)
        gradients = {
            "opening": matrix[:width],
            "opening_time": whole.time[:width],
            "opening_bias": whole.bias[:width],
            "quadratic": matrix[width:],
            "quadratic_time": whole.time[width:],
            "readout": whole.readout,
            "linear": self._by_state(whole.linear),
        }
        for i, (weight, bias) in enumerate(zip(whole.weights, whole.biases, strict=True)):
            gradients |= {f"weights.{i}": weight, f"biases.{i}": bias}
        return gradients

    def _layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the residual layers."""
        # One by one: torch.compile of 2.11 cannot unpack a ParameterList.
        layers = range(self.depth - 1)
        return [self.weights[i] for i in layers], [self.biases[i] for i in layers]

    def _sweep_parameters(self) -> tuple[Tensor, ...]:
        """The parameters in the order of `forward_backward`."""
        weights, biases = self._layers()
        opening = (self.opening, self.opening_time, self.opening_bias, self.readout)
        return (*opening, self.quadratic, self.quadratic_time, self.linear, *weights, *biases)

    @property
    def _costate_unit(self) -> Tensor | float:
        return 1.0 if self.scaling is None else self.scaling.value / self._state_unit

    def _by_state(self, p: Tensor) -> Tensor:
        """A gradient (batch, n) by the network's own input, as one by the state."""
        return p if self.scaling is None else p * self._costate_unit

    def _inputs(self, z: Tensor) -> Tensor:
        return z if self.scaling is None else z / self._state_unit
