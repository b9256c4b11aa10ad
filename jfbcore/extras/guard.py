"""The guard that takes a training run back from where gradients explode."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from jfbcore import _validate


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """When a step counts as bad, and what happens then.

    A step is bad when its loss or gradient norm is not finite, or its loss exceeds
    `jump_factor` times the median of the last `window` good losses plus `jump_offset`. The
    parameters then go back to the last good snapshot (taken every `snapshot_interval` good
    steps) and the learning rate is multiplied by `backoff`, recovering by `recovery` per good
    step. More than `patience` bad steps in a row end the run as diverged. A gradient norm that
    jumps and stays finite is no reason of its own: training clips it, and near an optimum the
    norm of a minibatch's gradient varies by orders of magnitude without harm.

    Losses that climb slowly never jump. Whenever a snapshot is due, their median is compared with
    the least there has been: where it is more than `drift_factor` times that (plus `jump_offset`),
    and so is the loss compared with what the parameters of then make of the same minibatch, those
    parameters come back, and the learning rate recovers to `backoff` times as much as before.
    """

    jump_factor: float = 3.0
    drift_factor: float = 2.0
    jump_offset: float = 1.0
    window: int = 25
    snapshot_interval: int = 25
    backoff: float = 0.5
    recovery: float = 1.02
    patience: int = 20

    def __post_init__(self) -> None:
        for name in ("jump_factor", "drift_factor"):
            if _validate.positive(name, getattr(self, name)) <= 1.0:
                raise ValueError(f"`{name}` must be > 1, got {getattr(self, name)}")
        _validate.non_negative("jump_offset", self.jump_offset)
        for name in ("window", "snapshot_interval", "patience"):
            _validate.positive_int(name, getattr(self, name))
        if not 0.0 < _validate.finite("backoff", self.backoff) <= 1.0:
            raise ValueError(f"`backoff` must be in (0, 1], got {self.backoff}")
        if _validate.finite("recovery", self.recovery) < 1.0:
            raise ValueError(f"`recovery` must be >= 1, got {self.recovery}")


@dataclass
class Intervention:
    """One rejected step: which, and why."""

    step: int
    reason: str


@dataclass
class Guard:
    """Watches losses and gradient norms; keeps the last good parameters, and the best."""

    settings: GuardSettings
    module: nn.Module
    learning_rate_scale: float = 1.0
    interventions: list[Intervention] = field(default_factory=list)
    bad_in_a_row: int = 0
    _recent: deque[float] = field(default_factory=deque)
    _snapshot: list[Tensor] = field(default_factory=list)
    _since_snapshot: int = 0
    #: what the learning rate's scale recovers to
    _ceiling: float = 1.0
    #: the least median of losses so far, and the parameters of then
    _best_median: float = math.inf
    _best: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._recent = deque(maxlen=self.settings.window)
        self._take_snapshot()

    def inspect(self, loss: float, gradient_norm: float) -> str | None:
        """Why the step with this loss and gradient norm must not be taken; None if it may."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"gradient norm is {gradient_norm} at loss {loss:.4g}"
        if len(self._recent) == self.settings.window:
            usual = median(self._recent)
            if loss > self._limit(usual, self.settings.jump_factor):
                return f"loss jumped to {loss:.4g} from a median of {usual:.4g}"
        return None

    def look_back(self, loss: float, objective: Callable[[], float]) -> str | None:
        """Why training has drifted away from its best parameters; None if it has not.

        To be asked on good steps. `objective` gives the loss on the minibatch of `loss` with the
        parameters the module then holds: the objective of then may have been a cheaper one.
        """
        full = len(self._recent) == self.settings.window
        if not full or self._since_snapshot + 1 < self.settings.snapshot_interval:
            return None
        usual, least, factor = median(self._recent), self._best_median, self.settings.drift_factor
        if usual <= self._limit(least, factor):
            if usual < least:
                self._best_median, self._best = usual, self._copy()
            return None
        present = self._copy()
        self._put(self._best)
        then = objective()
        if math.isfinite(then) and loss > self._limit(then, factor):
            self._snapshot = self._best
            self._ceiling *= self.settings.backoff
            self._recent.clear()
            return (
                f"loss drifted to a median of {usual:.4g} from {least:.4g}; the parameters of then "
                f"give {then:.4g} here instead of {loss:.4g}"
            )
        self._put(present)
        self._best_median, self._best = usual, present
        return None

    def accept(self, loss: float) -> None:
        """Note a good step that has been inspected and not yet applied."""
        self.bad_in_a_row = 0
        self._recent.append(loss)
        recovered = self.learning_rate_scale * self.settings.recovery
        self.learning_rate_scale = min(self._ceiling, recovered)
        self._since_snapshot += 1
        if self._since_snapshot >= self.settings.snapshot_interval:
            self._take_snapshot()

    def rescale(self, growth: float) -> None:
        """Expect losses `growth` times those noted so far: the objective has grown by as much."""
        grown = (loss + (growth - 1.0) * abs(loss) for loss in self._recent)
        self._recent = deque(grown, maxlen=self.settings.window)

    def forget(self) -> None:
        """Judge nothing until `window` more losses are in: the loss has become another one."""
        self._recent.clear()
        self._best_median, self._best = math.inf, []

    def reject(self, step: int, reason: str) -> None:
        """Put the last good parameters back and slow down."""
        self.interventions.append(Intervention(step, reason))
        self.bad_in_a_row += 1
        self.learning_rate_scale *= self.settings.backoff
        self._since_snapshot = 0
        self._put(self._snapshot)

    @property
    def exhausted(self) -> bool:
        return self.bad_in_a_row > self.settings.patience

    def state_dict(self) -> dict:
        return {
            "learning_rate_scale": self.learning_rate_scale,
            "interventions": [(i.step, i.reason) for i in self.interventions],
            "bad_in_a_row": self.bad_in_a_row,
            "recent": list(self._recent),
            "snapshot": [good.clone() for good in self._snapshot],
            "since_snapshot": self._since_snapshot,
            "ceiling": self._ceiling,
            "best_median": self._best_median,
            "best": [good.clone() for good in self._best],
        }

    def load_state_dict(self, state: dict) -> None:
        self.learning_rate_scale = state["learning_rate_scale"]
        self.interventions = [Intervention(*i) for i in state["interventions"]]
        self.bad_in_a_row = state["bad_in_a_row"]
        self._recent = deque(state["recent"], maxlen=self.settings.window)
        self._since_snapshot = state["since_snapshot"]
        self._snapshot = self._beside(state["snapshot"])
        self._ceiling, self._best_median = state["ceiling"], state["best_median"]
        self._best = self._beside(state["best"])

    def _limit(self, usual: float, factor: float) -> float:
        """What a loss may come to where `usual` is the usual one, whatever its sign."""
        return usual + (factor - 1.0) * abs(usual) + self.settings.jump_offset

    def _take_snapshot(self) -> None:
        self._snapshot = self._copy()
        self._since_snapshot = 0

    def _beside(self, saved: list[Tensor]) -> list[Tensor]:
        """Copies of `saved`, one for each parameter or none at all, where the parameters are."""
        pairs = zip(saved, self.module.parameters(), strict=False)
        return [value.to(parameter.device, copy=True) for value, parameter in pairs]

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.module.parameters()]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.module.parameters(), values, strict=True):
            parameter.copy_(value)
