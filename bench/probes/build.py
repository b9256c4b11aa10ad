"""Running a compiled case's step once, so that the compiler's caches on disk hold it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from bench.case import Case
from bench.probes.probe import Hooks, Probe


@dataclass(frozen=True, kw_only=True)
class Build(Probe):
    """Measures nothing and leaves nothing in the record."""

    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        from bench import measure
        from bench.build import Unsupported

        with contextlib.suppress(Unsupported):
            measure.Step(case, seed)()
