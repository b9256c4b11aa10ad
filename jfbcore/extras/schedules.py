"""What changes over a training run: learning rate, time steps and weight of the terminal cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jfbcore.extras.guard import Guard
    from jfbcore.extras.training_config import TrainingConfig


class Plateau:
    """Halves a learning rate after more than `patience` training steps without a better loss."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.scale, self.best, self.waited = 1.0, math.inf, 0

    def scale_after(self, loss: float) -> float:
        """The learning rate's factor after a training step with this loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = 0.5 * self.scale, 0
        return self.scale

    def rescale(self, growth: float) -> None:
        """Expect losses `growth` times those so far, because the objective has grown."""
        self.best += (growth - 1.0) * abs(self.best)

    def forget(self) -> None:
        """Wait for a better loss anew, for another objective."""
        self.best, self.waited = math.inf, 0


class Schedules:
    """The schedules of a `TrainingConfig` as functions of the fraction of the run that is done.

    `part`: the fractions of the run at which they begin and end; before and after it they stay.
    """

    def __init__(
        self, config: TrainingConfig, n_steps: int, part: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.config, self._part = config, part
        self._finest = n_steps
        self.plateau = Plateau(config.plateau_patience)
        #: time steps and terminal multiple of the last training step
        self.last_n_steps, self.last_multiple = self.n_steps(0.0), self.terminal_multiple(0.0)

    def n_steps(self, fraction: float) -> int:
        """Time steps of a training rollout."""
        fraction = self._within(fraction)
        for until, factor in self.config.coarsening:
            if fraction < until:
                return max(1, self._finest // factor)
        return self._finest

    def terminal_multiple(self, fraction: float) -> float:
        """The factor of the terminal cost in what training minimises."""
        if self.config.terminal_ramp is None:
            return 1.0
        multiple, until, full = self.config.terminal_ramp
        done = (self._within(fraction) - until) / (full - until)
        return float(multiple ** (1.0 - min(max(done, 0.0), 1.0)))

    def learning_rate(self, step: int, fraction: float, loss: float, caution: float) -> float:
        """The rate of training step number `step`, whose loss is `loss`: schedule x `caution`."""
        config = self.config
        rate = config.learning_rate * caution * min(1.0, (step + 1) / max(config.warmup_steps, 1))
        if config.schedule == "cosine":
            floor = config.final_learning_rate_fraction
            wave = 0.5 * (1.0 + math.cos(math.pi * self._within(fraction)))
            rate *= floor + (1.0 - floor) * wave
        elif config.schedule == "plateau":
            rate *= self.plateau.scale_after(loss)
        return rate

    def follow(self, fraction: float, guard: Guard) -> None:
        """Adapt what is expected of the next loss where the schedules change the objective.

        Losses on another grid are not comparable, so the earlier ones are forgotten. Where the
        terminal cost's factor grows, the loss may grow as much; it may grow less, because the
        running cost stays what it is.
        """
        n_steps, multiple = self.n_steps(fraction), self.terminal_multiple(fraction)
        growth = multiple / self.last_multiple
        for watcher in (guard, self.plateau):
            if n_steps != self.last_n_steps:
                watcher.forget()
            if growth > 1.0:
                watcher.rescale(growth)
        self.last_n_steps, self.last_multiple = n_steps, multiple

    def _within(self, fraction: float) -> float:
        """The fraction of `part` that is done."""
        begin, end = self._part
        return min(max((fraction - begin) / (end - begin), 0.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        plateau = self.plateau
        return {
            "last": (self.last_n_steps, self.last_multiple),
            "plateau": (plateau.scale, plateau.best, plateau.waited),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of the same schedules."""
        self.last_n_steps, self.last_multiple = state["last"]
        self.plateau.scale, self.plateau.best, self.plateau.waited = state["plateau"]
