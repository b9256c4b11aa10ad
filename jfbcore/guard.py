"""The guard that takes a training run back from where gradients explode."""

from __future__ import annotations

import math
from collections import deque
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
    step. More than `patience` bad steps in a row end the run as diverged.
    """

    jump_factor: float = 3.0
    jump_offset: float = 1.0
    window: int = 25
    snapshot_interval: int = 25
    backoff: float = 0.5
    recovery: float = 1.02
    patience: int = 20

    def __post_init__(self) -> None:
        if _validate.positive("jump_factor", self.jump_factor) <= 1.0:
            raise ValueError(f"`jump_factor` must be > 1, got {self.jump_factor}")
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
    """Watches losses and gradient norms; keeps the last good parameters."""

    settings: GuardSettings
    module: nn.Module
    learning_rate_scale: float = 1.0
    interventions: list[Intervention] = field(default_factory=list)
    bad_in_a_row: int = 0
    _recent: deque[float] = field(default_factory=deque)
    _snapshot: list[Tensor] = field(default_factory=list)
    _since_snapshot: int = 0

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
            limit = usual + (self.settings.jump_factor - 1.0) * abs(usual)
            limit += self.settings.jump_offset
            if loss > limit:
                return f"loss jumped to {loss:.4g} from a median of {usual:.4g}"
        return None

    def accept(self, loss: float) -> None:
        """Note a good step that has been inspected and not yet applied."""
        self.bad_in_a_row = 0
        self._recent.append(loss)
        self.learning_rate_scale = min(1.0, self.learning_rate_scale * self.settings.recovery)
        self._since_snapshot += 1
        if self._since_snapshot >= self.settings.snapshot_interval:
            self._take_snapshot()

    def forget(self) -> None:
        """Judge no jump until `window` more losses are in: the loss has become another one."""
        self._recent.clear()

    def reject(self, step: int, reason: str) -> None:
        """Put the last good parameters back and slow down."""
        self.interventions.append(Intervention(step, reason))
        self.bad_in_a_row += 1
        self.learning_rate_scale *= self.settings.backoff
        self._since_snapshot = 0
        with torch.no_grad():
            for parameter, good in zip(self.module.parameters(), self._snapshot, strict=True):
                parameter.copy_(good)

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
        }

    def load_state_dict(self, state: dict) -> None:
        self.learning_rate_scale = state["learning_rate_scale"]
        self.interventions = [Intervention(*i) for i in state["interventions"]]
        self.bad_in_a_row = state["bad_in_a_row"]
        self._recent = deque(state["recent"], maxlen=self.settings.window)
        self._since_snapshot = state["since_snapshot"]
        for good, saved in zip(self._snapshot, state["snapshot"], strict=True):
            good.copy_(saved)

    def _take_snapshot(self) -> None:
        self._snapshot = [parameter.detach().clone() for parameter in self.module.parameters()]
        self._since_snapshot = 0
