"""The guard that takes a training run back from where gradients explode."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from jfbcore._validate import finite, non_negative, parameter, parameters, positive_int
from jfbcore.extras.optimizers import ScheduledOptimizer


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """When a training step counts as bad, and what happens then.

    A training step is bad when its loss or gradient norm is not finite, or when its loss exceeds
    `jump_factor` times the median of the last `window` good losses plus `jump_offset`. (A gradient
    norm that jumps is clipped: near an optimum it varies by orders of magnitude.) After a bad step
    parameters and optimiser go back to the last snapshot, taken every `snapshot_interval` good
    steps, and the learning rate is multiplied by `backoff`; it recovers by the factor `recovery`
    per good step. More than `patience` bad steps in a row end the run as diverged.

    Losses that climb slowly never jump. Whenever a snapshot is due and their median exceeds
    `drift_factor` times the least so far (plus `jump_offset`), the parameters of the least median
    are tried on the present minibatch. If the present loss exceeds theirs by the same factor, they
    come back, and from then on the learning rate recovers only to `backoff` times its former value.
    """

    jump_factor: float = parameter(3.0, finite)
    drift_factor: float = parameter(2.0, finite)
    jump_offset: float = parameter(1.0, non_negative)
    window: int = parameter(25, positive_int)
    snapshot_interval: int = parameter(25, positive_int)
    backoff: float = parameter(0.5, finite)
    recovery: float = parameter(1.02, finite)
    patience: int = parameter(20, positive_int)

    def __post_init__(self) -> None:
        parameters(self)
        for name in ("jump_factor", "drift_factor"):
            if getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be > 1, got {getattr(self, name)}")
        if not 0.0 < self.backoff <= 1.0:
            raise ValueError(f"`backoff` must be in (0, 1], got {self.backoff}")
        if self.recovery < 1.0:
            raise ValueError(f"`recovery` must be >= 1, got {self.recovery}")


@dataclass(frozen=True)
class Intervention:
    """One rejected training step: which, and why."""

    step: int
    reason: str


#: attributes of a guard that a checkpoint keeps as they are
_STATE = (
    "learning_rate_scale", "bad_in_a_row", "_ceiling", "_recent", "_snapshot", "_since_snapshot",
    "_best", "_best_median",
)  # fmt: skip


class Guard:
    """Watches losses and gradient norms, and keeps the last good and the best parameters.

    A snapshot holds the parameters of `module` and, if an `optimizer` is given, its state: moments
    gathered where training went wrong would lead it there again.
    """

    def __init__(
        self,
        settings: GuardSettings,
        module: nn.Module,
        optimizer: ScheduledOptimizer | None = None,
    ) -> None:
        self.settings, self.module, self.optimizer = settings, module, optimizer
        self.interventions, self.bad_in_a_row = list[Intervention](), 0
        #: the learning rate's factor, and the one to which it recovers
        self.learning_rate_scale, self._ceiling = 1.0, 1.0
        self._recent: list[float] = []
        self._snapshot, self._since_snapshot = self._copy(), 0
        #: the snapshot of the least median of losses so far, and that median
        self._best: dict[str, Any] = {}
        self._best_median = math.inf

    @property
    def exhausted(self) -> bool:
        """Whether more training steps in a row were bad than the settings have patience for."""
        return self.bad_in_a_row > self.settings.patience

    def judge(
        self, loss: float, gradient_norm: float, objective: Callable[[], float]
    ) -> str | None:
        """Why a training step must not be taken, by either test below, or None if it may."""
        reason = self.inspect(loss, gradient_norm)
        return self.look_back(loss, objective) if reason is None else reason

    def inspect(self, loss: float, gradient_norm: float) -> str | None:
        """Why a training step with this loss and gradient norm must not be taken, or None."""
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
        """Why training has drifted away from its best parameters, or None if it has not.

        To be asked on good steps. `objective` computes the loss on the present minibatch with the
        parameters that the module holds at the time: the best parameters' own loss is of no use
        where the schedules have changed the objective since.
        """
        settings, least = self.settings, self._best_median
        due = self._since_snapshot + 1 >= settings.snapshot_interval
        if not due or len(self._recent) < settings.window:
            return None
        usual, present = median(self._recent), self._copy()
        if usual > self._limit(least, settings.drift_factor):
            self._restore(self._best)
            best_loss = objective()
            if math.isfinite(best_loss) and loss > self._limit(best_loss, settings.drift_factor):
                self._snapshot, self._recent = self._best, []
                self._ceiling *= settings.backoff
                return (
                    f"loss drifted to a median of {usual:.4g} from {least:.4g}; the parameters of "
                    f"then give {best_loss:.4g} here instead of {loss:.4g}"
                )
            self._restore(present)
        elif usual >= least:
            return None
        self._best_median, self._best = usual, present
        return None

    def accept(self, loss: float) -> None:
        """Note the loss of a good training step, before the optimiser takes it."""
        self.bad_in_a_row = 0
        self._recent = [*self._recent, loss][-self.settings.window :]
        recovered = self.learning_rate_scale * self.settings.recovery
        self.learning_rate_scale = min(self._ceiling, recovered)
        self._since_snapshot += 1
        if self._since_snapshot >= self.settings.snapshot_interval:
            self._snapshot, self._since_snapshot = self._copy(), 0

    def reject(self, step: int, reason: str) -> None:
        """Put the last snapshot back and slow down."""
        self.interventions.append(Intervention(step, reason))
        self.bad_in_a_row += 1
        self.learning_rate_scale *= self.settings.backoff
        self._since_snapshot = 0
        self._restore(self._snapshot)

    def rescale(self, growth: float) -> None:
        """Expect losses `growth` times those noted so far, because the objective has grown."""
        self._recent = [loss + (growth - 1.0) * abs(loss) for loss in self._recent]

    def forget(self) -> None:
        """Start the window of losses and the best parameters anew, for another objective."""
        self._recent, self._best, self._best_median = [], {}, math.inf

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from, in plain types and tensors."""
        state = copy.deepcopy({name: getattr(self, name) for name in _STATE})
        return state | {"interventions": [(i.step, i.reason) for i in self.interventions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of a guard of the same settings and module."""
        for name in _STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self.interventions = [Intervention(*i) for i in state["interventions"]]

    def _limit(self, usual: float, factor: float) -> float:
        """The largest good loss, of either sign, where `usual` is the usual one."""
        return usual + (factor - 1.0) * abs(usual) + self.settings.jump_offset

    def _copy(self) -> dict[str, Any]:
        return {
            "parameters": [parameter.detach().clone() for parameter in self.module.parameters()],
            "optimizer": copy.deepcopy(self.optimizer and self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def _restore(self, snapshot: dict[str, Any]) -> None:
        for own, value in zip(self.module.parameters(), snapshot["parameters"], strict=True):
            own.copy_(value)
        if self.optimizer is not None:
            # A copy: an optimiser goes on in the tensors that it loads.
            self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
