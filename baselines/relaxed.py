"""A relaxed iteration of two interleaved sequences, and the way back along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from jfbcore.solvers.base import IterativeSolver
from jfbcore.solvers.iterate import take

if TYPE_CHECKING:
    from jfbcore.maps import BoundMap

#: the sequence and its inverse are added up in this precision, whatever T is evaluated in
STATE = torch.float64
#: T at a point (batch, m), and the cotangents of that point, of z and of p, for one of T's:
#: (point, cotangent) -> (image, into the point, into z, into p)
Pull = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


class RelaxedState(NamedTuple):
    """The last two members of the sequence, and the later one in the precision of controls:
    (batch, m) each."""

    control: Tensor
    previous: Tensor
    last: Tensor


@dataclass(frozen=True, kw_only=True)
class Relaxed(IterativeSolver):
    """w_k = (1 - beta) w_(k-2) + beta T(w_(k-1)) from two equal starts, beta the `relaxation`."""

    relaxation: float

    def init(self, fixed_point_map: BoundMap, control: Tensor) -> RelaxedState:
        """The state before the first step: both sequences start at `control` (batch, m)."""
        start = control.to(STATE)
        return RelaxedState(control, start, start)

    def step(
        self, fixed_point_map: BoundMap, state: RelaxedState, evaluated: Tensor
    ) -> RelaxedState:
        """The state after one reversible step."""
        image = fixed_point_map.step(state.control, evaluated)
        last = (1.0 - self.relaxation) * state.previous + self.relaxation * image.to(STATE)
        previous, alone = state.last, torch.compiler.is_compiling()
        if alone:  # the loop of a graph wants no two tensors that share memory
            previous = previous.clone()
        return RelaxedState(last.to(image.dtype, copy=alone), previous, last)

    def position(self, state: RelaxedState) -> Tensor:
        """Both members, (batch, 2 m): near-quadratic Hamiltonians move the later one in every
        second step alone."""
        return torch.cat((state.previous.to(state.control.dtype), state.control), 1)

    def supports_repeat(self) -> str | None:
        """None: every step is one application of the map."""
        return None

    def backwards(self, after: Tensor, image: Tensor) -> Tensor:
        """w_(k-2) from w_k and T(w_(k-1)), (batch, m)."""
        return (after - self.relaxation * image.to(STATE)) / (1.0 - self.relaxation)


class WayBack(NamedTuple):
    """Where the way back stands: the last two members that are left, (batch, m) each, their
    cotangents, and what has reached z and p, (batch, n) each."""

    previous: Tensor
    last: Tensor
    into_previous: Tensor
    into_last: Tensor
    into_z: Tensor
    into_p: Tensor


@dataclass(frozen=True)
class Reverse:
    """The vector-Jacobian product of a relaxed iteration, from its last two members and its start.

    `inversions`: steps inverted in a row before the members are computed from the start again.
    """

    relaxed: Relaxed
    inversions: int | None
    fixed_point_map: BoundMap
    initial: Tensor
    pull: Pull

    def back(self, state: WayBack) -> WayBack:
        """One step less."""
        previous, last, into_previous, into_last, into_z, into_p = state
        beta = self.relaxed.relaxation
        u = previous.to(self.initial.dtype)
        image, into_u, more_z, more_p = self.pull(u, beta * into_last)
        return WayBack(
            self.relaxed.backwards(last, image),
            previous,
            (1.0 - beta) * into_last,
            into_previous + into_u,
            into_z + more_z,
            into_p + more_p,
        )

    def run(self, state: WayBack, count: int, watch: Callable[[WayBack, WayBack], None]) -> WayBack:
        """All `count` steps. `watch` sees every pair of inverted and true members."""
        for done in range(count):
            if self.inversions is not None and done and done % self.inversions == 0:
                true = self._from_the_start(state, count - done)
                watch(state, true)
                state = true
            state = self.back(state)
        watch(state, self._from_the_start(state, 0))
        return state

    def run_in_graph(self, state: WayBack, count: Tensor) -> WayBack:
        """As `run` for a `count` that is a tensor of one integer, as loops of a compiled graph."""
        if self.inversions is None:
            return self._back_in_graph(state, count, torch.zeros_like(count))
        length = self.inversions

        def trip(left: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            state = WayBack(*tensors)
            true = self._again_in_graph(torch.where(left < count, left, 0))
            state = state._replace(
                previous=torch.where(left < count, true[0], state.previous),
                last=torch.where(left < count, true[1], state.last),
            )
            until = (left - length).clamp_min(0)
            return until, *self._back_in_graph(state, left, until)

        _, *tensors = while_loop(lambda left, *_: left > 0, trip, (count.clone(), *state))
        return WayBack(*tensors)

    def _back_in_graph(self, state: WayBack, left: Tensor, until: Tensor) -> WayBack:
        """From `left` members to `until`."""

        def trip(left: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return left - 1, *(x.clone() for x in self.back(WayBack(*tensors)))

        copies = (tensor.clone() for tensor in state)
        _, *tensors = while_loop(lambda left, *_: left > until, trip, (left.clone(), *copies))
        return WayBack(*tensors)

    def _again_in_graph(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """The last two members after `count` applications."""
        relaxed, bound = self.relaxed, self.fixed_point_map

        def trip(done: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return done + 1, *take(relaxed, bound, RelaxedState(*tensors), 1)

        start = (x.clone() for x in relaxed.init(bound, self.initial))
        begin = (torch.zeros_like(count), *start)
        _, _, previous, last = while_loop(lambda done, *_: done < count, trip, begin)
        return previous, last

    @torch.no_grad()
    def _from_the_start(self, state: WayBack, count: int) -> WayBack:
        """`state` with the last two members after `count` applications, computed once more."""
        bound = self.fixed_point_map
        true = take(self.relaxed, bound, self.relaxed.init(bound, self.initial), count)
        return state._replace(previous=true.previous, last=true.last)
