"""How long training steps take, and how much of a run is done."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Counts the training steps of a run and their seconds.

    The run ends after `steps` training steps or `time_limit` seconds, whichever comes first; one of
    them may be None. Where it is `compiling`, the first training step's seconds count as compiling,
    and the time limit is divided without them.
    """

    steps: int | None
    time_limit: float | None
    compiling: bool = False
    seconds: float = 0.0
    compiling_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)

    def count(self, elapsed: float) -> None:
        """Note the seconds of a training step."""
        self.seconds += elapsed
        self.step_seconds.append(elapsed)
        if self.compiling:
            self.compiling_seconds, self.compiling = self.compiling_seconds + elapsed, False

    def fraction(self, step: int) -> float:
        """The fraction of the run that is done after `step` training steps: 1 ends it."""
        return max(self.scheduled(step), self._spent())

    def scheduled(self, step: int) -> float:
        """The fraction of the schedules that is done: of the steps, where they are given."""
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
