"""Where a training step's time and bytes go, and what the machine could do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.case import REPEATS, Case
from bench.probes.probe import Hooks, Probe


@dataclass(frozen=True, kw_only=True)
class Roofline(Probe):
    """Fills `profile`, from which `bench.roofline` makes floors and ratios; steps are timed
    `repeats` times.
    """

    repeats: int = REPEATS
    record_fields: ClassVar[tuple[str, ...]] = ("profile",)

    def timed(self, case: Case) -> bool:
        return True

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench.roofline.case import profile_case

        record["profile"] = profile_case(case, repeats=self.repeats, seed=seed)
