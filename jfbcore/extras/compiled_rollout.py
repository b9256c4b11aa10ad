"""A whole rollout and its gradient as compiled time steps, captured as CUDA graphs on a GPU.

Forwards the rollout runs without a graph and keeps, of each time step, the state, the network's
output and the inner solver's control. Backwards each time step is computed again and pulled back,
and the gradient with respect to the network's parameters is evaluated once for all time steps at
the end, as a few large products. No tensor travels to the host between the first time step and
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jfbcore import _validate
from jfbcore.kernels.fused import pull_back
from jfbcore.maps import BoundMap
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import InnerStatistics, Rollout, Step
from jfbcore.rollout import rollout as eager_rollout
from jfbcore.value_network import ValueNetwork

#: the matrix of the network's outer products and its biases, None without a value network
Prepared = tuple[Tensor, Tensor] | None
#: applications of the solver's step that one compiled function may hold; more are repeated calls
LONGEST_BODY = 16
#: floats of one layer's activations for which parameter gradients are evaluated at once
_CHUNK = 2**24
#: width of a layer that such chunks are sized for
_WIDEST = 128
#: inner iterations tried in tolerance mode; few, because each needs a graph of its own
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512)


def compiled_rollout_reason(policy: Policy) -> str | None:
    """None, or why `CompiledRollout` cannot run `policy`."""
    if not isinstance(policy, HamiltonianPolicy):
        return None
    return policy.solver.supports_repeat() or policy.gradient.supports_pull_back(policy.solver)


@dataclass
class _Body:
    """The functions of one time step, compiled or not, for a fixed number of solver steps."""

    prepare: Callable[..., Prepared]
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, Tensor]]
    more: Callable[..., Tensor] | None
    finish: Callable[..., tuple[Tensor, ...]] | None
    terminal: Callable[..., Tensor]
    terminal_pull_back: Callable[..., Tensor]


@dataclass
class _Flight:
    """What a rollout leaves for the way back: one entry per time step, the final state last."""

    times: Tensor
    step_length: Tensor
    states: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    controls: list[Tensor] = field(default_factory=list)
    prepared: Prepared = None
    running_cost: Tensor | None = None
    terminal_cost: Tensor | None = None
    residual: Tensor | None = None

    def at(self, i: int) -> Prepared:
        """What was prepared for time step `i`: the matrix, and its row of the biases."""
        return self.prepared and (self.prepared[0], self.prepared[1][i])


@dataclass
class _Capture:
    """A rollout and its way back as two CUDA graphs with static inputs and outputs."""

    flight: _Flight
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    cotangents: tuple[Tensor, Tensor, Tensor]
    gradients: list[Tensor]
    #: counts the rollouts that wrote these buffers
    generation: int = 0


class CompiledRollout:
    """A drop-in for `jfbcore.rollout.rollout`, bound to one `policy`.

    With a `tolerance` the inner solver takes the same number of steps at every time step: the
    number that the last rollout needed, checked once after each rollout and raised, with the
    rollout run again, where it was too few. Residuals are then at or below the tolerance, never
    above. `backend` is torch.compile's; None runs the same functions uncompiled. `capture` records
    whole rollouts as CUDA graphs, one for each batch size and grid; None captures on a GPU only.

    Costs and gradients equal those of `jfbcore.rollout.rollout` to rounding. Only one captured
    rollout may wait for its backward pass at a time. Raises ValueError with the reason where
    `policy` cannot be compiled, and for `penalties` and `segment`, which need the eager rollout.
    """

    def __init__(
        self, policy: Policy, *, backend: str | None = "inductor", capture: bool | None = None
    ) -> None:
        if (reason := compiled_rollout_reason(policy)) is not None:
            raise ValueError(reason)
        self.policy = policy
        self.backend = backend
        on_gpu = policy.problem.device.type == "cuda"
        self.capture = on_gpu if capture is None else capture
        if self.capture and not on_gpu:
            raise ValueError(f"`capture` needs a problem on a GPU, got {policy.problem.device}")
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self._bodies: dict[int, _Body] = {}
        self._captures: dict[tuple, _Capture] = {}
        self._steps: dict[tuple, int] = {}
        self._grids: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        policy: Policy,
        initial_states: Tensor,
        *,
        n_steps: int | None = None,
        warm_start: bool = False,
        penalties: bool = False,
        advance: Callable[..., Step] | None = None,
        segment: int | None = None,
    ) -> Rollout:
        """As `jfbcore.rollout.rollout`; without grad mode it is that function."""
        if policy is not self.policy:
            raise ValueError("`policy` must be the one this CompiledRollout was made for")
        problem = policy.problem
        problem.check(initial_states=initial_states)
        n_steps = problem.n_steps if n_steps is None else _validate.positive_int("n_steps", n_steps)
        if not torch.is_grad_enabled():
            return eager_rollout(
                policy, initial_states, n_steps=n_steps, warm_start=warm_start, penalties=penalties
            )
        for name, value in (("penalties", penalties), ("segment", segment), ("advance", advance)):
            if value:
                raise ValueError(f"`{name}` must be left out of a compiled rollout, got {value!r}")
        key = (tuple(initial_states.shape), n_steps, warm_start)
        solver = policy.solver if isinstance(policy, HamiltonianPolicy) else None
        if key not in self._steps:
            self._steps[key] = self._first_count(initial_states, n_steps, warm_start)
        while True:
            count = self._steps[key]
            running, terminal, final, residual = _Differentiable.apply(
                self, key, count, initial_states, *self.parameters
            )
            if solver is None or solver.tolerance is None or count >= solver.max_iterations:
                break
            # One number to the host per rollout. A NaN asks for no further iterations.
            if not bool((residual > solver.tolerance).any()):
                break
            self._steps[key] = _next_count(count, solver.max_iterations)
        inner = InnerStatistics()
        if solver is not None:
            inner.iterations.append(torch.tensor([count]))
            inner.residuals.append(residual)
        return Rollout(running, terminal, final, inner)

    @torch.no_grad()
    def _first_count(self, states: Tensor, n_steps: int, warm_start: bool) -> int:
        """Steps of the solver that one rollout needs, from one that tests as it goes."""
        if not isinstance(self.policy, HamiltonianPolicy):
            return 0
        solver = self.policy.solver
        if solver.tolerance is None:
            return solver.max_iterations
        flown = eager_rollout(self.policy, states, n_steps=n_steps, warm_start=warm_start)
        summary = flown.inner.summary()
        assert summary is not None
        need = max(int(summary["iterations"]["max"]), solver.fewest_repeats - 1)
        return _next_count(need, solver.max_iterations)

    def _body(self, count: int) -> _Body:
        if count not in self._bodies:
            self._bodies[count] = _make_body(self.policy, count, self._compiled)
        return self._bodies[count]

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.backend is None:
            return function
        options: dict[str, Any] | None = None
        if self.backend == "inductor" and self.policy.problem.device.type == "cpu":
            options = {"cpp_wrapper": True}
        return torch.compile(
            function, backend=self.backend, dynamic=False, fullgraph=True, options=options
        )

    # -- forwards and backwards, captured or not -------------------------------------------------

    @torch.no_grad()
    def _fly(self, key: tuple, count: int, states: Tensor) -> _Flight | _Capture:
        if not self.capture:
            return self._run(key, count, states)
        name = (key, count)
        if name not in self._captures:
            self._captures[name] = self._record(key, count, states)
        captured = self._captures[name]
        captured.flight.states[0].copy_(states)
        captured.forward.replay()
        captured.generation += 1
        return captured

    def _run(self, key: tuple, count: int, states: Tensor) -> _Flight:
        (batch, _), n_steps, warm_start = key
        body, policy = self._body(count), self.policy
        times, step_length = self._grid(n_steps, states)
        flight = _Flight(times, step_length, [states])
        running, start = states.new_zeros(batch), None
        if warm_start and isinstance(policy, HamiltonianPolicy):
            start = policy.problem.initial_control(0.0, states)
        residuals = []
        flight.prepared = body.prepare(times)
        for i, t in enumerate(times):
            prepared = flight.at(i)
            z = flight.states[-1]
            if body.more is None or body.finish is None:
                z, running, output, control, flown, residual = body.forward(
                    prepared, t, flight.step_length, z, running, start
                )
            else:
                output, control = body.forward(prepared, t, flight.step_length, z, running, start)
                for _ in range(count // LONGEST_BODY):
                    control = body.more(t, z, output, control)
                z, running, flown, residual = body.finish(
                    t, flight.step_length, z, running, output, control
                )
            flight.states.append(z)
            flight.outputs.append(output)
            flight.controls.append(control)
            residuals.append(residual)
            start = flown if warm_start else None
        flight.running_cost = running
        flight.terminal_cost = body.terminal(z)
        flight.residual = torch.stack(residuals)
        return flight

    def _return(
        self, key: tuple, count: int, flight: _Flight, cotangents: tuple[Tensor, Tensor, Tensor]
    ) -> list[Tensor]:
        """Gradients of the parameters for cotangents of running cost, terminal cost and state."""
        body = self._body(count)
        running_bar, terminal_bar, z_bar = cotangents
        z_bar = z_bar + body.terminal_pull_back(flight.states[-1], terminal_bar)
        (_, n_steps, _) = key
        output_bars: list[Tensor] = [z_bar] * n_steps
        for i in reversed(range(n_steps)):
            z_bar, output_bars[i] = body.backward(
                flight.at(i),
                flight.times[i],
                flight.step_length,
                flight.states[i],
                flight.outputs[i],
                flight.controls[i],
                z_bar,
                running_bar,
            )
        return _parameter_gradients(
            self.policy, self.parameters, flight.times, flight.states, output_bars
        )

    def _grid(self, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times (steps,) and step length, made once; every time begins at a multiple of 16 bytes,
        which compiled code wants of its inputs."""
        if n_steps not in self._grids:
            h = self.policy.problem.t_final / n_steps
            steps = torch.arange(n_steps, dtype=like.dtype, device=like.device)
            times = (h * steps).unsqueeze(1).expand(-1, 4).contiguous()[:, 0]
            self._grids[n_steps] = times, like.new_full((), h)
        return self._grids[n_steps]

    def _record(self, key: tuple, count: int, states: Tensor) -> _Capture:
        """Compile and warm up on a side stream, then capture both directions."""
        static = states.clone()
        cotangents = (
            torch.ones_like(states[:, 0]), torch.ones_like(states[:, 0]), torch.zeros_like(states),
        )  # fmt: skip
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # The whole rollout: nothing may be left to compile while the stream is captured.
        with torch.cuda.stream(side):
            for _ in range(2):
                self._return(key, count, self._run(key, count, static), cotangents)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._grid(key[1], states)
        pool = torch.cuda.graph_pool_handle()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=pool):
            flight = self._run(key, count, static)
        with torch.cuda.graph(backward, pool=pool):
            gradients = self._return(key, count, flight, cotangents)
        return _Capture(flight, forward, backward, cotangents, gradients)


class _Differentiable(torch.autograd.Function):
    """A rollout as one node of the graph: parameters to costs."""

    @staticmethod
    def forward(ctx, engine: CompiledRollout, key, count: int, states: Tensor, *parameters: Tensor):
        made = engine._fly(key, count, states)
        flight = made.flight if isinstance(made, _Capture) else made
        ctx.engine, ctx.key, ctx.count, ctx.made = engine, key, count, made
        ctx.generation = made.generation if isinstance(made, _Capture) else 0
        assert flight.running_cost is not None
        assert flight.terminal_cost is not None
        assert flight.residual is not None
        found: tuple[Tensor, ...] = (
            flight.running_cost,
            flight.terminal_cost,
            flight.states[-1],
            flight.residual,
        )
        if isinstance(made, _Capture):
            found = tuple(tensor.clone() for tensor in found)
        ctx.mark_non_differentiable(found[3])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents: Tensor):
        engine, made = ctx.engine, ctx.made
        bars = cotangents[:3]
        if isinstance(made, _Capture):
            if made.generation != ctx.generation:
                raise RuntimeError(
                    "a later rollout has overwritten this captured one; call backward() before "
                    "the next rollout, or use CompiledRollout(policy, capture=False)"
                )
            for static, given in zip(made.cotangents, bars, strict=True):
                static.copy_(given)
            made.backward.replay()
            # Copies, in one kernel: the next replay overwrites the static ones.
            gradients = list(torch._foreach_mul(made.gradients, 1.0))
        else:
            with torch.no_grad():
                gradients = engine._return(ctx.key, ctx.count, made, bars)
        return None, None, None, None, *gradients


def _next_count(count: int, most: int) -> int:
    """The least number of the ladder above `count`, at most `most`."""
    above = (step for step in _LADDER if step > count)
    return min(next(above, most), most)


# -- the body of a time step ---------------------------------------------------------------------


def _make_body(policy: Policy, count: int, compiled: Callable[..., Any]) -> _Body:
    problem = policy.problem
    long = count > LONGEST_BODY

    def signal(prepared: Prepared, t: Tensor, z: Tensor) -> Tensor:
        """What the network says: the costate, or the control of a direct policy."""
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            return policy.value_network.prepared_costate(*prepared, z)
        return policy(t, z).control

    def pull_signal(prepared: Prepared, t: Tensor, z: Tensor, bar: Tensor, onto: Tensor) -> Tensor:
        """`onto` plus the state's cotangent for the cotangent `bar` of what the network says."""
        if isinstance(policy, HamiltonianPolicy):
            assert prepared is not None
            return policy.value_network.prepared_pull_back(*prepared, z, bar, onto)
        return onto + pull_back(lambda z: policy(t, z).control, z)(bar)[0]

    def prepare(times: Tensor) -> Prepared:
        return (
            policy.value_network.prepare(times) if isinstance(policy, HamiltonianPolicy) else None
        )

    def bind(t: Tensor, z: Tensor, output: Tensor) -> BoundMap:
        assert isinstance(policy, HamiltonianPolicy)
        return policy.fixed_point_map.bind(problem.hamiltonian(t, z, output))

    def control_of(t: Tensor, z: Tensor, output: Tensor, solved: Tensor) -> Tensor:
        """The control that flies, differentiable in state and network output."""
        if not isinstance(policy, HamiltonianPolicy):
            return output
        return policy.gradient.reattach(bind(t, z, output), policy.solver, solved)

    def euler(t: Tensor, h: Tensor, z: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        return z + h * problem.dynamics(t, z, control), h * problem.running_cost(t, z, control)

    def begin(prepared, t: Tensor, z: Tensor, start: Tensor | None, steps: int):
        output = signal(prepared, t, z)
        if not isinstance(policy, HamiltonianPolicy):
            return output, output, z.new_zeros(z.shape[0])
        bound = bind(t, z, output)
        initial = problem.initial_control(t, z)
        if start is not None:
            initial = bound.hamiltonian.project(start)
        control, residual = policy.solver.repeat(bound, initial, steps)
        # Where the estimator tracks the iteration from its start, that start is what is kept.
        return output, policy.gradient.kept(initial, control), residual, control

    def forward(prepared, t, h, z, running, start):
        output, kept, residual, *_ = begin(prepared, t, z, start, count)
        flown = control_of(t, z, output, kept)
        z_next, cost = euler(t, h, z, flown)
        return z_next, running + cost, output, kept, flown, residual

    def first(prepared, t, h, z, running, start):
        output, _, _, control = begin(prepared, t, z, start, count % LONGEST_BODY)
        return output, control

    def more(t, z, output, control):
        assert isinstance(policy, HamiltonianPolicy)
        return policy.solver.repeat(bind(t, z, output), control, LONGEST_BODY)[0]

    def finish(t, h, z, running, output, control):
        residual = bind(t, z, output).residual(control)
        flown = control_of(t, z, output, control)
        z_next, cost = euler(t, h, z, flown)
        return z_next, running + cost, flown, residual

    def backward(prepared, t, h, z, output, solved, z_bar, running_bar):
        flown = control_of(t, z, output, solved)
        pull_euler = pull_back(lambda z, u: euler(t, h, z, u), z, flown)
        z_direct, control_bar = pull_euler((z_bar, running_bar))
        if isinstance(policy, HamiltonianPolicy):
            z_control, output_bar = policy.gradient.pull_back(
                lambda z, p: bind(t, z, p), policy.solver, z, output, solved, control_bar
            )
        else:
            return pull_signal(prepared, t, z, control_bar, z_direct), control_bar
        return pull_signal(prepared, t, z, output_bar, z_direct + z_control), output_bar

    def terminal_pull_back(z: Tensor, bar: Tensor) -> Tensor:
        return pull_back(problem.terminal_cost, z)(bar)[0]

    return _Body(
        prepare,
        compiled(first if long else forward),
        compiled(backward),
        compiled(more) if long else None,
        compiled(finish) if long else None,
        compiled(problem.terminal_cost),
        compiled(terminal_pull_back),
    )


def _parameter_gradients(
    policy: Policy,
    parameters: Sequence[Tensor],
    times: Tensor,
    states: Sequence[Tensor],
    output_bars: Sequence[Tensor],
) -> list[Tensor]:
    """The network's parameter gradients for the cotangents of its outputs at all time steps."""
    batch, width = states[0].shape
    dense = isinstance(policy, HamiltonianPolicy) and isinstance(policy.value_network, ValueNetwork)
    floats = max(width, _WIDEST) if dense else policy.problem.n_agents * _WIDEST
    together = max(1, _CHUNK // (batch * floats))
    signal = _Signal(policy)
    found = [torch.zeros_like(p) for p in parameters]
    for first in range(0, len(times), together):
        part = slice(first, min(first + together, len(times)))
        t = times[part].unsqueeze(1).expand(-1, batch).reshape(-1)
        z, bars = torch.cat(list(states[part])), torch.cat(list(output_bars[part]))
        with torch.enable_grad():
            # Leaves of their own: the graph nodes of the parameters belong to the stream they were
            # made on, which a capture must not wait for.
            leaves = {
                name: p.detach().requires_grad_()
                for name, p in signal.named_parameters()
                if p.requires_grad
            }
            output = torch.func.functional_call(signal, leaves, (t, z))
            gradients = torch.autograd.grad(output, list(leaves.values()), bars, allow_unused=True)
        for total, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)
    return found


class _Signal(nn.Module):
    """What the network of `policy` says, as a module: (rows,), (rows, n) to (rows, n or m)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        if isinstance(self.policy, HamiltonianPolicy):
            return self.policy.value_network.costate(t, z)
        return self.policy(t, z).control
