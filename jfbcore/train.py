"""The training loop, one page, the same for every gradient."""

from __future__ import annotations

import errno
import inspect
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.extras.guard import Guard, GuardSettings, Intervention
from jfbcore.extras.optimizers import OPTIMIZERS, build_optimizer
from jfbcore.held_out import held_out_states
from jfbcore.policy import HamiltonianPolicy, Policy
from jfbcore.rollout import Rollout, rollout

CHECKPOINT_VERSION = 6
#: the rollout that needs no first step to compile in
_EAGER = rollout


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that shapes a training run besides the problem and the policy.

    The run ends after `steps` optimiser steps or `time_limit` seconds of training (evaluation
    excluded), whichever is given; schedule, coarsening and ramp run to that end, from the end of
    compiling where the time steps are compiled. `schedule`: "cosine"
    (to `final_learning_rate_fraction`), "plateau" (halved after `plateau_patience` steps without
    a better loss) or "constant". `optimizer`: "adam", or "muon" for the matrices at `matrix_rate`
    times the learning rate with Adam for the vectors. `coarsening`: pairs (until, factor); up to
    that fraction of the run rollouts take `factor` times fewer time steps. `terminal_ramp`: a
    triple (multiple, until, full); the terminal cost counts `multiple` times up to the fraction
    `until` of the run and grows geometrically to its full weight at the fraction `full`, in what is
    minimised and in `loss`, not in the costs on held-out states. `fixed_minibatch` draws
    one minibatch and keeps it. `hjb_running`, `hjb_final`: weights of the HJB penalties (released
    defaults 1e-4 and 1e-2; off here). `evaluations` on the held-out states, evenly spaced in steps
    or, with a time limit, in time.
    """

    steps: int | None = None
    time_limit: float | None = None
    batch_size: int = 50
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    matrix_rate: float = 2.0
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    final_learning_rate_fraction: float = 0.01
    plateau_patience: int = 100
    clip_norm: float = 20.0
    coarsening: tuple[tuple[float, int], ...] = ()
    terminal_ramp: tuple[float, float, float] | None = None
    fixed_minibatch: bool = False
    warm_start: bool = False
    hjb_running: float = 0.0
    hjb_final: float = 0.0
    evaluations: int = 10
    held_out: int = 64
    guard: GuardSettings = field(default_factory=GuardSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.time_limit is None):
            raise ValueError(
                f"give exactly one of `steps` and `time_limit`, got {self.steps} and "
                f"{self.time_limit}"
            )
        if self.steps is not None:
            _validate.positive_int("steps", self.steps)
        if self.time_limit is not None:
            _validate.positive("time_limit", self.time_limit)
        for name in ("batch_size", "plateau_patience", "evaluations", "held_out"):
            _validate.positive_int(name, getattr(self, name))
        for name in ("learning_rate", "matrix_rate", "clip_norm"):
            _validate.positive(name, getattr(self, name))
        for name in ("final_learning_rate_fraction", "hjb_running", "hjb_final"):
            _validate.non_negative(name, getattr(self, name))
        if self.warmup_steps != 0:
            _validate.positive_int("warmup_steps", self.warmup_steps, "0 for no warm-up")
        self._check_coarsening()
        if self.terminal_ramp is not None:
            multiple, until, full = _validate.point("terminal_ramp", self.terminal_ramp, 3)
            _validate.positive("terminal_ramp multiple", multiple)
            if not 0.0 <= until < full <= 1.0:
                raise ValueError(
                    f"`terminal_ramp` must have 0 <= until < full <= 1, got {until} and {full}"
                )
            if self.hjb_final > 0:
                raise ValueError(
                    f"`hjb_final` must be 0 with a `terminal_ramp`, got {self.hjb_final}: it "
                    f"compares the value network with the full terminal cost"
                )
        _validate.one_of("optimizer", self.optimizer, OPTIMIZERS)
        _validate.one_of("schedule", self.schedule, ("cosine", "plateau", "constant"))
        _validate.integer("seed", self.seed)
        for beta in _validate.point("betas", self.betas, 2):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"`betas` must be in [0, 1), got {self.betas}")

    def _check_coarsening(self) -> None:
        last = 0.0
        for stage in self.coarsening:
            until, _ = _validate.point("coarsening stage", stage, 2)
            _validate.positive_int("coarsening factor", stage[1])
            if not last < until <= 1.0:
                raise ValueError(
                    f"`coarsening` stages (until, factor) must have 0 < until <= 1, each later "
                    f"than the one before, got {self.coarsening}"
                )
            last = until


@dataclass(frozen=True)
class Evaluation:
    """A point of the curve: `loss` on the last minibatch, the costs on the held-out states.

    `inner`: iterations and residuals of the inner solves on the held-out states, as
    `InnerStatistics.summary` gives them; None for a policy without an inner problem.
    """

    step: int
    seconds: float
    loss: float
    running_cost: float
    terminal_cost: float
    evaluation_cost: float
    costs: tuple[float, ...] = field(repr=False, default=())
    inner: dict[str, dict[str, float]] | None = field(repr=False, default=None)


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves. `status` is "ok" or "diverged", with the reason."""

    curve: list[Evaluation]
    steps: int
    seconds: float
    step_seconds: list[float]
    interventions: list[Intervention]
    status: str
    reason: str | None

    @property
    def median_step_seconds(self) -> float | None:
        return median(self.step_seconds) if self.step_seconds else None


class Training:
    """A training run that can be stopped, saved and continued.

    `identity` is a line that names what is trained; a checkpoint continues only a run with the
    same one. `callback`, if given, is called after every step with this object; time spent in it
    and in evaluations is off the clock. `rollout` runs the training rollouts;
    one that compiles does so in the first step of a process. Those
    seconds are on the clock, and no part of what the schedules of a run with a time limit divide.
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainingConfig,
        *,
        checkpoint: Path | None = None,
        checkpoint_interval: int = 100,
        identity: str | None = None,
        callback: Callable[[Training], None] | None = None,
        rollout: Callable[..., Rollout] = rollout,
    ) -> None:
        self.policy, self.config, self.problem = policy, config, policy.problem
        self.checkpoint = checkpoint
        self.identity = _describe(policy) if identity is None else identity
        self.checkpoint_interval = _validate.positive_int(
            "checkpoint_interval", checkpoint_interval
        )
        self.callback, self.rollout = callback, rollout
        self.optimizer = build_optimizer(
            config.optimizer,
            policy.parameters(),
            betas=config.betas,
            matrix_rate=config.matrix_rate,
        )
        self.guard = Guard(config.guard, policy)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.held_out = held_out_states(self.problem, config.held_out)
        self.minibatch = self._draw() if config.fixed_minibatch else None
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.compiling_seconds = 0.0
        self._compiling = rollout is not _EAGER
        self.step_seconds: list[float] = []
        self.curve: list[Evaluation] = []
        self._plateau_scale, self._plateau_best, self._plateau_wait = 1.0, math.inf, 0
        self._grid, self._multiple = self.n_steps(), self.terminal_multiple()

    def run(self, progress: Callable[[float, str], None] | None = None) -> TrainingResult:
        """Train to the end. `progress` is told the fraction done and a line of text."""
        if not self.curve:
            self.evaluate()
        # Asked here too: a run that has diverged is over, also for who resumes it.
        while not self.guard.exhausted and (fraction := self.fraction_done()) < 1.0:
            began = time.perf_counter()
            self._train_step()
            if self.step == 1:
                # The first minibatch's loss belongs to the parameters of the first point.
                self.curve[0] = replace(self.curve[0], loss=self.loss)
            self._synchronise()
            elapsed = time.perf_counter() - began
            self.seconds += elapsed
            self.step_seconds.append(elapsed)
            if self._compiling:
                self.compiling_seconds += elapsed
                self._compiling = False
            if self.guard.exhausted:
                break
            if self.callback is not None:
                self.callback(self)
            if self._evaluation_due(fraction) and self.fraction_done() < 1.0:
                self.evaluate()
            if self.checkpoint is not None and self.step % self.checkpoint_interval == 0:
                self.save(self.checkpoint)
            if progress is not None:
                progress(self.fraction_done(), self._headline())
        if self.curve[-1].step != self.step:
            self.evaluate()
        if self.checkpoint is not None:
            self.save(self.checkpoint)
        reason = self.guard.interventions[-1].reason if self.guard.exhausted else None
        status = "ok" if reason is None else "diverged"
        if reason is None and not math.isfinite(self.curve[-1].evaluation_cost):
            status, reason = "diverged", "the final evaluation cost is not finite"
        return TrainingResult(
            self.curve,
            self.step,
            self.seconds,
            self.step_seconds,
            self.guard.interventions,
            status,
            reason,
        )

    def _train_step(self) -> None:
        x = self._draw() if self.minibatch is None else self.minibatch
        self._follow_the_objective()
        self.optimizer.zero_grad()
        result = self._rollout(x)
        loss = objective = self._objective(result)
        if result.hjb_penalty is not None and result.terminal_penalty is not None:
            loss = loss + self.config.hjb_running * result.hjb_penalty.mean()
            loss = loss + self.config.hjb_final * result.terminal_penalty.mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm)
        self.loss = objective.item()
        problem = self.guard.inspect(self.loss, norm.item())
        if problem is None:
            problem = self.guard.look_back(self.loss, lambda: self._loss_on(x))
        if problem is None:
            self.guard.accept(self.loss)
            self.optimizer.step(self.learning_rate())
        else:
            self.guard.reject(self.step, problem)
        self.step += 1

    def _follow_the_objective(self) -> None:
        """What past losses say of the next one, where the schedules have changed the objective."""
        if self.n_steps() != self._grid:
            # The cost on another grid is another one; a jump between the two says nothing.
            self._grid = self.n_steps()
            self.guard.forget()
            self._plateau_best, self._plateau_wait = math.inf, 0
        multiple = self.terminal_multiple()
        if (growth := multiple / self._multiple) > 1.0:
            # So much at most: the running cost does not grow with it.
            self.guard.rescale(growth)
            if math.isfinite(self._plateau_best):
                self._plateau_best += (growth - 1.0) * abs(self._plateau_best)
        self._multiple = multiple

    def _loss_on(self, x: Tensor) -> float:
        """What `loss` is on the minibatch `x` with the present parameters.

        With a graph, though none is needed: without one the control would be the solver's, some
        applications of the map behind the one that training flies.
        """
        return self._objective(self._rollout(x)).item()

    def _objective(self, result: Rollout) -> Tensor:
        """What training minimises, but for the penalties: a scalar."""
        return (result.running_cost + self.terminal_multiple() * result.terminal_cost).mean()

    def _rollout(self, x: Tensor) -> Rollout:
        penalties = self.config.hjb_running > 0 or self.config.hjb_final > 0
        return self.rollout(
            self.policy,
            x,
            n_steps=self.n_steps(),
            warm_start=self.config.warm_start,
            penalties=penalties,
        )

    def n_steps(self) -> int:
        """Time steps of the next training rollout."""
        fraction = self.fraction_done()
        for until, factor in self.config.coarsening:
            if fraction < until:
                return max(1, self.problem.n_steps // factor)
        return self.problem.n_steps

    def terminal_multiple(self) -> float:
        """What the terminal cost is multiplied by in the next step."""
        if self.config.terminal_ramp is None:
            return 1.0
        multiple, until, full = self.config.terminal_ramp
        done = (self.fraction_done() - until) / (full - until)
        return multiple ** (1.0 - min(max(done, 0.0), 1.0))

    def learning_rate(self) -> float:
        """The rate for the next step: schedule x warm-up x the guard's caution."""
        config = self.config
        rate = config.learning_rate * self.guard.learning_rate_scale
        if self.step < config.warmup_steps:
            rate *= (self.step + 1) / config.warmup_steps
        if config.schedule == "cosine":
            floor = config.final_learning_rate_fraction
            wave = 0.5 * (1.0 + math.cos(math.pi * min(self.fraction_done(), 1.0)))
            rate *= floor + (1.0 - floor) * wave
        elif config.schedule == "plateau":
            rate *= self._plateau()
        return rate

    def _plateau(self) -> float:
        if self.loss < self._plateau_best:
            self._plateau_best, self._plateau_wait = self.loss, 0
        else:
            self._plateau_wait += 1
        if self._plateau_wait > self.config.plateau_patience:
            self._plateau_scale, self._plateau_wait = 0.5 * self._plateau_scale, 0
        return self._plateau_scale

    def fraction_done(self) -> float:
        if self.config.steps is not None:
            return self.step / self.config.steps
        assert self.config.time_limit is not None
        left = self.config.time_limit - self.compiling_seconds
        return (self.seconds - self.compiling_seconds) / left if left > 0.0 else 1.0

    def _evaluation_due(self, before: float) -> bool:
        n = self.config.evaluations
        return int(self.fraction_done() * n) > int(before * n)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Score the policy on the held-out states and add the point to the curve."""
        result = rollout(self.policy, self.held_out, warm_start=self.config.warm_start)
        cost = result.cost.double()
        point = Evaluation(
            step=self.step,
            seconds=self.seconds,
            loss=self.loss,
            running_cost=result.running_cost.double().mean().item(),
            terminal_cost=result.terminal_cost.double().mean().item(),
            evaluation_cost=cost.mean().item(),
            costs=tuple(cost.tolist()),
            inner=result.inner.summary(),
        )
        self.curve.append(point)
        return point

    def _draw(self) -> Tensor:
        return self.problem.sample_initial_states(self.config.batch_size, self.generator)

    def _synchronise(self) -> None:
        if self.problem.device.type == "cuda":
            torch.cuda.synchronize(self.problem.device)

    def _headline(self) -> str:
        line = f"loss {self.loss:.4g}, held-out {self.curve[-1].evaluation_cost:.4g}"
        rejected = len(self.guard.interventions)
        return f"{line}, {rejected} rejected" if rejected else line

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically: a killed process leaves the old one or the new one."""
        state = {
            "version": CHECKPOINT_VERSION,
            "config": asdict(self.config),
            "identity": self.identity,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
            "generator": self.generator.get_state(),
            "minibatch": self.minibatch,
            "progress": (self.step, self.seconds, self.loss),
            "compiling_seconds": self.compiling_seconds,
            "objective": (self._grid, self._multiple),
            "plateau": (self._plateau_scale, self._plateau_best, self._plateau_wait),
            "step_seconds": self.step_seconds,
            "curve": [asdict(point) for point in self.curve],
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        except RuntimeError as error:  # torch's word for a disk that is full
            raise OSError(errno.EIO, str(error).splitlines()[0], str(path)) from error
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of a run with the same configuration.

        Raises ValueError when the checkpoint is unreadable or belongs to another configuration.
        """
        try:
            # To the host, where Adam's step counts belong; what is loaded copies to the device.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch raise almost anything
            line = (str(error).splitlines() or [repr(error)])[0]
            raise ValueError(f"`checkpoint` {path} cannot be read: {line}") from error
        if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
            raise ValueError(
                f"`checkpoint` {path} is not a version {CHECKPOINT_VERSION} checkpoint"
            )
        if missing := {"config", "identity", "policy", "optimizer", "guard"} - set(state):
            raise ValueError(f"`checkpoint` {path} is incomplete: no {', '.join(sorted(missing))}")
        expected = asdict(self.config)
        changed = [name for name, value in state["config"].items() if expected[name] != value]
        if changed:
            raise ValueError(
                f"`checkpoint` {path} was written with another configuration; different: "
                f"{', '.join(changed)}"
            )
        if state["identity"] != self.identity:
            raise ValueError(
                f"`checkpoint` {path} belongs to another run: {state['identity']}, not "
                f"{self.identity}"
            )
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        self.generator.set_state(state["generator"])
        minibatch = state["minibatch"]
        self.minibatch = None if minibatch is None else minibatch.to(self.problem.device)
        self.step, self.seconds, self.loss = state["progress"]
        self.compiling_seconds = state["compiling_seconds"]
        self._plateau_scale, self._plateau_best, self._plateau_wait = state["plateau"]
        self._grid, self._multiple = state["objective"]
        self.step_seconds = state["step_seconds"]
        self.curve = [Evaluation(**point) for point in state["curve"]]


def _describe(policy: Policy) -> str:
    problem = policy.problem
    names = inspect.signature(type(problem)).parameters
    values = {name: getattr(problem, name) for name in names if hasattr(problem, name)}
    values.pop("device", None)  # where it is trained is not what is trained
    shapes = ", ".join(str(tuple(p.shape)) for p in policy.parameters())
    method = ""
    if isinstance(policy, HamiltonianPolicy):
        method = f" by {policy.gradient}, {policy.fixed_point_map}, {policy.solver}"
        method += f" on {type(policy.value_network).__name__}"
    settings = ", ".join(f"{name}={value}" for name, value in values.items())
    return f"{type(policy).__name__} for {problem.name} ({settings}){method} with {shapes}"
