"""The training loop, one page, the same for every gradient: draw, roll out, backward, step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.extras import checkpoints
from jfbcore.extras.clock import Clock, crossed
from jfbcore.extras.distributed import World
from jfbcore.extras.guard import Guard
from jfbcore.extras.optimizers import build_optimizer
from jfbcore.extras.results import Evaluation as Evaluation
from jfbcore.extras.results import TrainingResult, headline
from jfbcore.extras.schedules import Schedules
from jfbcore.extras.training_config import TrainingConfig as TrainingConfig
from jfbcore.held_out import held_out_states
from jfbcore.policy import Policy
from jfbcore.rollout import Rollout, rollout

_EAGER = rollout  # needs no first training step to compile in


class Training:
    """A training run that can be stopped, saved to a file and continued.

    `checkpoint` is the file that is written every `checkpoint_interval` training steps. `identity`
    is a line that names what is trained; a checkpoint continues only a run with the same one.
    `callback`, if given, is the first of the `hooks`: functions that are called with this object
    after every training step, off the clock as evaluations are. `rollout` runs the training
    rollouts; one that compiles does so in the first training step of a process.
    """

    def __init__(
        self, policy: Policy, config: TrainingConfig, *,
        checkpoint: Path | None = None, checkpoint_interval: int = 100,
        identity: str | None = None, callback: Callable[[Training], None] | None = None,
        rollout: Callable[..., Rollout] = rollout,
    ) -> None:  # fmt: skip
        _validate.instance("policy", policy, Policy, "HamiltonianPolicy(problem, network, …)")
        _validate.instance("config", config, TrainingConfig, "TrainingConfig(steps=100)")
        self.policy, self.config, self.problem = policy, config, policy.problem
        self.rollout, self.identity = rollout, identity or checkpoints.identity(policy)
        self.world = World.current()
        # One process writes for all.
        self.saver = checkpoints.Saver(None if self.world.rank else checkpoint, checkpoint_interval)
        self.hooks = [hook for hook in (callback, self.saver) if hook is not None]
        self.optimizer = build_optimizer(config.optimizer, policy.parameters())
        self.guard = Guard(config.guard, policy, self.optimizer)
        self.schedules = Schedules(config, self.problem.n_steps)
        compiles, full_steps = rollout is not _EAGER, config.full_steps
        self.clock = Clock(config.steps, config.time_limit, compiles, full_steps=full_steps)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.held_out = held_out_states(self.problem, config.held_out)
        self.minibatch = self._draw() if config.fixed_minibatch else None
        self.step, self.loss, self.curve = 0, math.nan, list[Evaluation]()

    def run(self, progress: Callable[[float, str], None] | None = None) -> TrainingResult:
        """Train to the end. `progress` is told the fraction done and a line of text."""
        if not self.curve:
            self.evaluate()
        # A run that has diverged is over, also where it is resumed from a checkpoint.
        while not self.guard.exhausted and (before := self.fraction_done()) < 1.0:
            began = time.perf_counter()
            self._train_step()
            if self.problem.device.type == "cuda":
                torch.cuda.synchronize(self.problem.device)
            elapsed = self.world.longest(time.perf_counter() - began, self.problem.device)
            self.clock.count(elapsed, self.schedules.last_n_steps / self.problem.n_steps)
            if self.step == 1:
                # The first minibatch's loss belongs to the parameters of the first point.
                self.curve[0] = replace(self.curve[0], loss=self.loss)
            if self.guard.exhausted:
                break
            if crossed(before, self.fraction_done(), self.config.evaluations):
                self.evaluate()
            for hook in self.hooks:
                hook(self)
            if progress is not None:
                progress(self.fraction_done(), headline(self))
        if self.curve[-1].step != self.step:
            self.evaluate()
        self.saver.finish(self)
        return TrainingResult.of(self)

    def _train_step(self) -> None:
        x = self._draw() if self.minibatch is None else self.minibatch
        share, x = self.world.rows(x).shape[0] / x.shape[0], self.world.rows(x)
        self.schedules.follow(self.scheduled(), self.guard)
        self.optimizer.zero_grad()
        result = self._rollout(x)
        loss = objective = self._objective(result)
        if result.hjb_penalty is not None and result.terminal_penalty is not None:
            loss = loss + self.config.hjb_running * result.hjb_penalty.mean()
            loss = loss + self.config.hjb_final * result.terminal_penalty.mean()
        loss.backward()
        self.world.mean_gradients(self.policy.parameters(), share)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm)
        self.loss = self._mean(objective, share)
        # The guard may ask for the loss of other parameters. A graph is not needed for that, but
        # without one the control would be the solver's own, some applications of the map earlier.
        loss_now = lambda: self._mean(self._objective(self._rollout(x)), share)  # noqa: E731
        reason = self.guard.judge(self.loss, norm.item(), loss_now)
        if reason is None:
            self.guard.accept(self.loss)
            self.optimizer.step(self.learning_rate())
        else:
            self.guard.reject(self.step, reason)
        self.step += 1

    def _mean(self, objective: Tensor, share: float) -> float:
        return self.world.mean(objective.item(), share, self.problem.device)

    def _draw(self) -> Tensor:
        return self.problem.sample_initial_states(self.config.batch_size, self.generator)

    def _rollout(self, x: Tensor) -> Rollout:
        config, n_steps = self.config, self.schedules.n_steps(self.scheduled())
        penalties = config.hjb_running > 0 or config.hjb_final > 0
        return self.rollout(
            self.policy, x, n_steps=n_steps, warm_start=config.warm_start, penalties=penalties
        )

    def _objective(self, result: Rollout) -> Tensor:
        """What training minimises, without the penalties: a scalar."""
        return (result.running_cost + self.terminal_multiple() * result.terminal_cost).mean()

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Score the policy on the held-out states and add the point to the curve."""
        result = rollout(self.policy, self.held_out, warm_start=self.config.warm_start)
        self.curve.append(Evaluation.of(result, self.step, self.clock.seconds, self.loss))
        return self.curve[-1]

    def fraction_done(self) -> float:
        """How much of the run is done, in training steps or in seconds."""
        return self.clock.fraction(self.step)

    def scheduled(self) -> float:
        """How much of the schedules is done, in training steps where they are given."""
        return self.clock.scheduled(self.step)

    def terminal_multiple(self) -> float:
        """The factor of the terminal cost in the next training step."""
        return self.schedules.terminal_multiple(self.scheduled())

    def learning_rate(self) -> float:
        """The learning rate of the next training step: schedule x the guard's caution."""
        caution = self.guard.learning_rate_scale
        return self.schedules.learning_rate(self.step, self.scheduled(), self.loss, caution)

    def save(self, path: Path) -> None:
        """Write a checkpoint from which `load` continues and `jfbcore.load` reads the policy."""
        checkpoints.save_training(self, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint, or raise ValueError where it is not one of this very run."""
        checkpoints.load_training(self, path)
