"""The one loop that every iterative solver runs in, those of linear systems included.

A solver says how it moves and how far it is from done (`Iterative`). The functions here decide how
the loop runs: with a test on the host or as an operator of a compiled graph (`iterate`), for a
number of steps without any test (`take`), with a graph (`track`), or with a graph that is computed
again in segments (`checkpointed`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop
from torch.utils.checkpoint import checkpoint

from jfbcore.solvers.stopping import Watch, still, within

#: a NamedTuple of tensors
State = Any
#: steps in one trip of a compiled loop of fixed length, so that they fuse
_STEPS_PER_TRIP = 10


class Iterative(abc.ABC):
    """What the loop asks of a solver. `context` is what it solves: a bound map, or a system."""

    #: residual at which to stop; None runs a fixed number of iterations
    tolerance: float | None
    #: iterations between stopping tests
    check_interval: int = 1

    @abc.abstractmethod
    def evaluate(self, context: Any, state: State, /) -> Tensor:
        """What `step` and `terminate` both need at `state`, computed once an iteration."""

    @abc.abstractmethod
    def step(self, context: Any, state: State, evaluated: Tensor, /) -> State:
        """The next state; carries a graph in grad mode. Nothing in it waits for the device."""

    @abc.abstractmethod
    def terminate(self, context: Any, state: State, evaluated: Tensor, /) -> Tensor:
        """Residual (batch,) of what `answer` would return now."""

    def answer(self, state: State, residual: Tensor, /) -> Tensor:
        """The point (batch, m) to return, given what `terminate` said of `state`."""
        point: Tensor = state.control
        return point

    def pending(self, state: State, /) -> Tensor | None:
        """Whether the iteration goes on after its last step; None where one step completes it."""
        return None

    def position(self, state: State, /) -> Tensor | None:
        """What moves as long as steps help, (batch, m); None runs to the tolerance or the limit."""
        return None


class Run(NamedTuple):
    """How a loop ended: the point (batch, m), its residual (batch,), the iterations completed and
    the solver's last state."""

    point: Tensor
    residual: Tensor
    iterations: int
    state: State


def take(solver: Iterative, context: Any, state: State, steps: int) -> State:
    """The state after exactly `steps` steps, without a test: nothing waits for the device."""
    for _ in range(steps):
        state = solver.step(context, state, solver.evaluate(context, state))
    return state


def iterate(solver: Iterative, context: Any, state: State, limit: int) -> Run:
    """At most `limit` iterations, without a graph. To be called without grad mode."""
    if torch.compiler.is_compiling():
        return _in_graph(solver, context, state, limit)
    return _finish(solver, _advance(solver, _Progress(context, state, Watch()), limit))


def track(
    solver: Iterative,
    context: Any,
    state: State,
    limit: int,
    renew: Callable[[], Any] | None = None,
) -> Run:
    """As `iterate`, with a graph through every step from `state` on.

    One more iteration is tracked after the test passes: a solver that lands in few steps is right
    about the point before it is right about its derivative. The residual is that of the test.
    `renew` gives every step after the first a context of its own.
    """
    start = _Progress(context, state, Watch())
    return _finish(solver, _advance(solver, start, limit, tracked=True, renew=renew))


def checkpointed(solver: Iterative, context: Any, state: State, limit: int, length: int) -> Run:
    """As `track`, keeping one state per `length` iterations: backward computes the rest again.

    The residual is that of the last point.
    """
    progress = _Progress(context, state, Watch())
    while progress.passed is None and progress.iterations < limit:
        progress = _segment(solver, progress, min(progress.iterations + length, limit))
    return _finish(solver, progress._replace(passed=None))


class _Progress(NamedTuple):
    """A loop that has paused after so many iterations, in so many steps of its last part."""

    context: Any
    state: State
    watch: Watch
    iterations: int = 0
    steps: int = 0
    #: the residual that passed the test, if one did
    passed: Tensor | None = None
    #: whether `state` is one iteration beyond the one that passed
    beyond: bool = False


def _advance(
    solver: Iterative,
    progress: _Progress,
    limit: int,
    *,
    tracked: bool = False,
    renew: Callable[[], Any] | None = None,
) -> _Progress:
    """Go on until the test passes, no step helps or the limit is met."""
    context, state, watch, iterations, *_ = progress
    tolerance, interval = solver.tolerance, solver.check_interval
    if tolerance is None and renew is None and solver.pending(state) is None:
        steps = limit - iterations
        return _Progress(context, take(solver, context, state, steps), watch, limit, steps)
    terminate = torch.no_grad()(solver.terminate) if tracked else solver.terminate
    passed, due, steps = None, True, 0
    while iterations < limit:
        if renew is not None and steps:
            context = renew()
        evaluated = solver.evaluate(context, state)
        if due and tolerance is not None and iterations % interval == 0:
            residual = terminate(context, state, evaluated)
            if within(residual, tolerance) or watch.finished(
                solver.position(state), residual, iterations, tolerance
            ):
                if not tracked:
                    return _Progress(context, state, watch, iterations, steps, residual)
                # One more iteration, without another test.
                passed, limit, tolerance = residual, iterations + 1, None
        state = solver.step(context, state, evaluated)
        pending = solver.pending(state)
        due = pending is None or not bool(pending)
        iterations += due
        steps += 1
    return _Progress(context, state, watch, iterations, steps, passed, passed is not None)


def _finish(solver: Iterative, progress: _Progress) -> Run:
    """The result of a loop that has ended; evaluates the residual where no test has."""
    context, state, residual = progress.context, progress.state, progress.passed
    if residual is None:
        with torch.no_grad():
            residual = solver.terminate(context, state, solver.evaluate(context, state))
    point = state.control if progress.beyond else solver.answer(state, residual)
    return Run(point, residual, progress.iterations, state)


def _segment(solver: Iterative, progress: _Progress, limit: int) -> _Progress:
    """One checkpointed piece of a loop, up to `limit` iterations.

    When backward computes it again it repeats the number of steps and tests nothing. `ends`, the
    first and the last progress, is emptied when it is done, so that no tensors are kept for that.
    """
    context, kind, steps = progress.context, type(progress.state), -1
    ends = [progress._replace(state=None)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        state = kind(*tensors)
        # A derivative inside of a step makes checkpoint compute it again before it is done.
        if not ends:
            return tuple(take(solver, context, state, steps))
        ends[1:] = [_advance(solver, ends[0]._replace(state=state), limit, tracked=True)]
        return tuple(ends[1].state)

    tensors = checkpoint(run, *progress.state, use_reentrant=False, preserve_rng_state=False)
    reached = ends[1]
    ends.clear()
    steps = reached.steps
    return reached._replace(state=kind(*tensors))


def _in_graph(solver: Iterative, context: Any, state: State, limit: int) -> Run:
    """The loop as an operator of a compiled graph, which cannot test on the host."""
    if solver.tolerance is None and solver.pending(state) is None:
        state = _fixed_in_graph(solver, context, state, limit)
        residual = solver.terminate(context, state, solver.evaluate(context, state))
        return Run(solver.answer(state, residual), residual, limit, state)
    kind, tolerance = type(state), solver.tolerance

    def unfinished(
        iterations: Tensor, evaluated: Tensor, residual: Tensor, stuck: Tensor, *_: Tensor
    ) -> Tensor:
        going = iterations < limit
        return going if tolerance is None else going & (~stuck & (residual > tolerance)).any()

    def trip(
        iterations: Tensor, evaluated: Tensor, residual: Tensor, stuck: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        before = kind(*tensors)
        state = solver.step(context, before, evaluated)
        pending = solver.pending(state)
        evaluated = solver.evaluate(context, state)
        reached = solver.terminate(context, state, evaluated)
        earlier, position = solver.position(before), solver.position(state)
        if earlier is not None and position is not None:
            # As `Watch`, over one iteration: a graph would pay for a window in every trip.
            helpless = still(earlier, position) & ~(reached < residual)
            stuck = stuck | (helpless if pending is None else helpless & ~pending)
        count = iterations + (1 if pending is None else ~pending)
        return count, evaluated, reached, stuck.clone(), *state

    evaluated = solver.evaluate(context, state)
    residual = solver.terminate(context, state, evaluated)
    nobody = torch.zeros_like(residual, dtype=torch.bool)
    start = (_zero(residual), evaluated, residual, nobody, *_copies(state))
    iterations, _, residual, _, *tensors = while_loop(unfinished, trip, start)
    state = kind(*tensors)
    return Run(solver.answer(state, residual), residual, iterations, state)


def _fixed_in_graph(solver: Iterative, context: Any, state: State, steps: int) -> State:
    """The state after `steps` steps, most of them in a loop of the graph."""
    trips, rest = divmod(steps, _STEPS_PER_TRIP)
    if trips < 2:
        return take(solver, context, state, steps)
    kind, state = type(state), take(solver, context, state, rest)

    # Samples last where they are more than a sample's numbers: loops over them are then vectors.
    turned = [x.dim() == 2 and x.shape[0] > x.shape[1] for x in state]

    def turn(tensors: Iterable[Tensor]) -> list[Tensor]:
        return [x.mT if last else x for x, last in zip(tensors, turned, strict=True)]

    def trip(done: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = take(solver, context, kind(*turn(tensors)), _STEPS_PER_TRIP)
        return done + 1, *(x.contiguous() for x in turn(state))

    copies = (x.clone(memory_format=torch.contiguous_format) for x in turn(state))
    start = (_zero(state[0]), *copies)
    _, *tensors = while_loop(lambda done, *_: done < trips, trip, start)
    return kind(*turn(tensors))


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device)


def _copies(state: State) -> list[Tensor]:
    """The tensors of a state, none of which shares memory, as the loop of a graph wants them."""
    return [tensor.clone() for tensor in state]
