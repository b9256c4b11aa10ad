"""A fixed-point iteration that is inverted on the way back instead of being stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.relaxed import STATE, Relaxed, RelaxedState, Reverse, WayBack
from jfbcore import _validate
from jfbcore.jfb import GradientEstimator
from jfbcore.maps import BoundMap, FixedPointMap
from jfbcore.problems.base import Problem, Time
from jfbcore.solvers import Picard, Solution, Solver
from jfbcore.solvers.iterate import Run, iterate, take


@dataclass(frozen=True)
class Reversible(GradientEstimator):
    """The exact gradient of a relaxed iteration, whose backward pass inverts it step by step.

    With beta the `relaxation` and both starts at the initial control, the sequence
    w_k = (1 - beta) w_(k-2) + beta T(w_(k-1)) has the fixed points of T, and its inverse is
    w_(k-2) = (w_k - beta T(w_(k-1))) / (1 - beta). The two sequences y and z of the source are its
    odd and even members, so that one iteration here is one application of T and K is the K of
    every other gradient. Backward applies T once more per iteration, with its vector-Jacobian
    product. Memory is independent of K: what is kept is the last two members and the start.

    Prefer it where K is too large to unroll and the derivative of the iteration itself is wanted.
    Where T contracts at rate mu > 0, the sequence falls by r, r^2 = 1 - beta + beta mu r, a step:
    by 0.45, 0.69, 0.87 at mu = 0, 0.5, 0.8 for the default beta = 0.8, the value of the source.
    A smaller beta drifts less and converges more slowly (0.71, 0.84, 0.94 at beta = 0.5), a larger
    one the other way round. The control is the same with and without a graph.

    Drift: each inverted step can amplify rounding by 1 / (1 - beta), because a contraction forgets
    what its inverse asks for. Two quadrotors of generic costates, beta = 0.8, largest distance
    between inverted and true start over the control, never recomputed (`inversions` None, as
    published):

    | map | precision | K = 5 | 10 | 20 | 30 | 50 | 500 |
    |---|---|---|---|---|---|---|---|
    | scaled | float64 | 2e-14 | 4e-12 | 5e-7 | 2e-2 | not finite | not finite |
    | plain | float64 | 2e-14 | 3e-11 | 1e-4 | not finite | not finite | not finite |
    | scaled | float32 | 8e-15 | 3e-13 | 1e-9 | 3e-4 | not finite | not finite |
    | plain | float32 | 1e-14 | 3e-13 | 9e-10 | 2e-4 | not finite | not finite |

    The gradient is off by 1e-6 at K = 20 on the plain map in float64, and not finite where the
    drift is not. Hence `inversions`: after so many inverted steps in a row the two members are
    computed from the start once more. With the default of 10 the drift stays below 1e-9 and
    the gradient within 4e-11 of the tracked iteration's at every K above in float64, at the price
    of K^2 / 20 further applications without a graph: for K = 500 on six quadrotors, backward takes
    8 times that of `unrolled`. float32 is inverted better than float64 because the sequence is
    added up in float64 there, so that T meets the very numbers it met forwards. Where T does not
    contract (plain map, larger costates, an endless oscillation) 10 inversions drift by up to 7e-2
    in float32 at K = 500, and the gradient by 1e-3: look at the drift there.

    A compiled rollout, on a processor, walks back in one loop for all K. T is translated once for
    each direction and may round differently there, which inversion amplifies as it does any
    rounding. One and six rotor quadrotors, Newton map, K = 1 to 5, float32, 80 time steps: the
    gradient is 2e-7 and 3e-7 from the eager rollout's, and 6e-7 and 5e-7 from float64's.

    `drifts`: a list that receives the largest such distance of each backward pass, (batch,).

    Source: McCallum, Arora and Foster, Reversible Deep Equilibrium Models, arXiv 2509.12917.
    Raises ValueError for a `relaxation` outside (0, 1) or `inversions` below 1.
    """

    relaxation: float = 0.8
    inversions: int | None = 10
    drifts: list[Tensor] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < _validate.finite("relaxation", self.relaxation) < 1.0:
            raise ValueError(
                f"`relaxation` must be in (0, 1), got {self.relaxation}; for the plain iteration, "
                "which has no inverse, use `Unrolled()`"
            )
        if self.inversions is not None:
            _validate.positive_int("inversions", self.inversions, "None never recomputes")

    def attach(self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor) -> Solution:
        """The control of the relaxed iteration, which backward inverts step by step."""
        relaxed = self.relaxed(solver)
        run = self._solve(fixed_point_map, relaxed, initial.detach())
        solution = relaxed.result(run)
        t, z, p = fixed_point_map.hamiltonian.inputs
        if not (torch.is_grad_enabled() and (z.requires_grad or p.requires_grad)):
            return solution
        # The map itself must not be kept: its Hamiltonian holds the graph this one is part of.
        repeated = _Run(
            self,
            relaxed,
            fixed_point_map.recipe,
            fixed_point_map.hamiltonian.problem,
            t,
            run.iterations,
        )
        control = _ReversibleControl.apply(
            z, p, run.state.previous, run.state.last, initial.detach(), repeated
        )
        return replace(solution, control=control)

    def supports_solver(self, solver: Solver) -> str | None:
        """None, or the reason why this gradient cannot work with `solver`."""
        if isinstance(solver, Picard):
            return None
        return (
            "reversible runs and inverts a relaxed Picard iteration and cannot invert "
            f"{type(solver).__name__}; use solver picard"
        )

    tracks_from_start: ClassVar[bool] = True

    def supports_pull_back(self, solver: Solver) -> str | None:
        """None, or the reason why only an eager rollout can tell what is asked for."""
        if self.drifts is not None:
            return "a compiled rollout does not note `drifts`; use the eager rollout"
        return None

    def supports_capture(self, solver: Solver) -> str | None:
        """The reason why a rollout that is captured cannot run it."""
        return (
            "reversible walks back the iterations that each time step took, and to count them a "
            "GPU waits for the host; use the eager rollout"
        )

    def solve(
        self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor
    ) -> tuple[Solution, Tensor]:
        """The solution without a graph; the last two members, the start and the iterations,
        (batch, 3 m + 1)."""
        relaxed = self.relaxed(solver)
        run = self._solve(fixed_point_map, relaxed, initial)
        return relaxed.result(run), _packed(run.state, initial, run.iterations)

    def repeat(
        self, fixed_point_map: BoundMap, solver: Solver, initial: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `solve` keeps after exactly `steps` untested steps, residual, control."""
        relaxed = self.relaxed(solver)
        state = take(relaxed, fixed_point_map, relaxed.init(fixed_point_map, initial), steps)
        kept = _packed(state, initial, steps)
        return kept, fixed_point_map.residual(state.control), state.control

    def reattach(self, fixed_point_map: BoundMap, solver: Solver, kept: Tensor) -> Tensor:
        """The last member, (batch, m); its derivative is `pull_back`'s alone."""
        z = fixed_point_map.hamiltonian.inputs[1]
        return _members(kept)[1].to(z.dtype, copy=True)

    def pull_back(
        self,
        bind: Callable[[Tensor, Tensor], BoundMap],
        solver: Solver,
        z: Tensor,
        p: Tensor,
        kept: Tensor,
        control_bar: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(z_bar, p_bar), (batch, n) each, along the iteration walked backwards."""

        def pull(u: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            image, back, *_ = torch.func.vjp(lambda u, z, p: bind(z, p)(u), u, z, p)
            return image, *back(cotangent)

        previous, last, start = _members(kept)
        reverse = Reverse(
            self.relaxed(solver), self.inversions, bind(z, p), start.to(z.dtype, copy=True), pull
        )
        state = WayBack(
            previous.clone(),
            last.clone(),
            torch.zeros_like(control_bar),
            control_bar.clone(),
            torch.zeros_like(z),
            torch.zeros_like(p),
        )
        count = kept[0, -1].to(torch.int64)
        if torch.compiler.is_compiling():
            state = reverse.run_in_graph(state, count)
        else:
            state = reverse.run(state, int(count), lambda inverted, true: None)
        return state.into_z, state.into_p

    def relaxed(self, solver: Solver) -> Relaxed:
        """The iteration that stops as `solver` does."""
        return Relaxed(
            tolerance=solver.tolerance,
            max_iterations=solver.max_iterations,
            check_interval=solver.check_interval,
            relaxation=self.relaxation,
        )

    @torch.no_grad()
    def _solve(self, fixed_point_map: BoundMap, relaxed: Relaxed, initial: Tensor) -> Run:
        state = relaxed.init(fixed_point_map, initial)
        return iterate(relaxed, fixed_point_map, state, relaxed.max_iterations)


@dataclass(frozen=True)
class _Run:
    """What the backward pass repeats: everything of one decision but its tensors."""

    estimator: Reversible
    relaxed: Relaxed
    recipe: FixedPointMap
    problem: Problem
    t: Time
    iterations: int


class _ReversibleControl(torch.autograd.Function):
    """`last` in the precision of `initial`; backward walks the sequence back to `initial`."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, p: Tensor, previous: Tensor, last: Tensor, initial: Tensor, run: _Run
    ) -> Tensor:
        ctx.save_for_backward(z, p, previous, last, initial)
        ctx.run = run
        return last.to(initial.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        z, p, previous, last, initial = ctx.saved_tensors
        run = ctx.run
        z, p = (x.detach().requires_grad_() for x in (z, p))
        with torch.enable_grad():
            # Built once, from leaves: what is pulled back to them needs no knowledge of what the
            # Hamiltonian computes in between.
            bound = run.recipe.bind(run.problem.hamiltonian(run.t, z, p))

        def pull(u: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            u = u.detach().requires_grad_()
            with torch.enable_grad():
                image = bound(u)
            parts = torch.autograd.grad(
                image, (u, z, p), cotangent, retain_graph=True, materialize_grads=True
            )
            return image.detach(), *parts

        drift = torch.zeros(last.shape[0], dtype=STATE, device=last.device)

        def watch(inverted: WayBack, true: WayBack) -> None:
            distance = _distance(inverted[:2], true[:2], last)
            torch.maximum(drift, distance, out=drift)

        start = (previous, last, torch.zeros_like(v), v, torch.zeros_like(z), torch.zeros_like(p))
        reverse = Reverse(run.relaxed, run.estimator.inversions, bound, initial, pull)
        end = reverse.run(WayBack(*start), run.iterations, watch)
        if run.estimator.drifts is not None:
            run.estimator.drifts.append(drift)
        into_z, into_p = (
            x if needed else None
            for x, needed in zip((end.into_z, end.into_p), ctx.needs_input_grad[:2], strict=True)
        )
        return into_z, into_p, None, None, None, None


def _packed(state: RelaxedState, initial: Tensor, iterations: int | Tensor) -> Tensor:
    """What the way back needs of one decision, (batch, 3 m + 1), in the sequence's precision."""
    count = state.last.new_zeros(initial.shape[0], 1) + iterations
    return torch.cat((state.previous, state.last, initial.to(STATE), count), 1)


def _members(kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last two members and the start of what was packed, (batch, m) each."""
    m = kept.shape[1] // 3
    return kept[:, :m], kept[:, m : 2 * m], kept[:, 2 * m : 3 * m]


def _distance(found: tuple[Tensor, ...], true: tuple[Tensor, ...], unit: Tensor) -> Tensor:
    """|found - true| of two pairs of controls over |unit|, (batch,); absolute where unit is 0."""
    difference = torch.cat(found, 1) - torch.cat(true, 1)
    distance, size = (torch.linalg.vector_norm(v, dim=1) for v in (difference, unit))
    return torch.where(size > 0, distance / size, distance)
