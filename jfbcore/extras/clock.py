"""How long training steps take, and how much of a run is done."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts the training steps of a run and their seconds.

    The run ends after `steps` training steps or `full_steps` whole ones, of which one is None, or
    after `time_limit` seconds, whichever comes first. `taken` counts whole steps: one on a grid of
    an eighth of the problem's time steps is an eighth of a step. Where the run is `compiling`, the
    first training step's seconds count as compiling, and the time limit is divided without them.
    """

    steps: int | None
    time_limit: float | None
    compiling: bool = False
    seconds: float = 0.0
    compiling_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    full_steps: float | None = None
    taken: float = 0.0

    def count(self, elapsed: float, share: float = 1.0) -> None:
        """Note the seconds of a training step, and its share of a whole one."""
        self.seconds += elapsed
        self.taken += share
        self.step_seconds.append(elapsed)
        if self.compiling:
            self.compiling_seconds, self.compiling = self.compiling_seconds + elapsed, False

    def fraction(self, step: int) -> float:
        """The fraction of the run that is done after `step` training steps: 1 ends it."""
        return max(self.scheduled(step), self._spent())

    def scheduled(self, step: int) -> float:
        """The fraction of the schedules that is done: of the steps, where they are given."""
        if self.full_steps is not None:
            # Short of the end by less than a rounding of the sum, it is the end.
            return (self.taken + 1e-9) / self.full_steps
        return self._spent() if self.steps is None else step / self.steps

    def _spent(self) -> float:
        """The fraction of the time limit that is over; 0 without one."""
        if self.time_limit is None:
            return 0.0
        left = self.time_limit - self.compiling_seconds
        return (self.seconds - self.compiling_seconds) / left if left > 0.0 else 1.0


def crossed(before: float, now: float, parts: int) -> bool:
    """Whether a run that is not over has come to another one of its `parts` equal parts."""
    return int(now * parts) > int(before * parts) and now < 1.0
