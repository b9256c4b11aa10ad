"""What a release measures, in the order in which its README shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.case import Case

#: what a case takes besides its training: imports, counts, timed steps, evaluations [s, one core]
_CASE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One folder of a release and the command that fills it.

    A part of a `preset`, narrowed by `filters`, holds one record per case and seed. Any other part
    runs `command`, which takes about `hours` on one core and writes the file `result`.
    """

    name: str
    what: str
    preset: str | None = None
    filters: tuple[str, ...] = ()
    seeds: int = 1
    command: tuple[str, ...] = ()
    result: str = ""
    hours: float = 0.0

    def arguments(self, out: str) -> list[str]:
        """The command line that measures into `out` what is missing of this part."""
        if self.preset is None:
            return [*self.command, "--out", out]
        narrowing = ["--filter", *self.filters] if self.filters else []
        options = ["--preset", self.preset, *narrowing, "--seeds", str(self.seeds)]
        return ["run", *options, "--resume", "--out", out]

    def jobs(self) -> list[tuple[Case, int]]:
        """The cases and seeds of which a record is due; none where the part is no preset's."""
        from bench.presets import select

        if self.preset is None:
            return []
        cases = select(self.preset, list(self.filters))
        return [(case, seed) for seed in range(self.seeds) for case in cases]

    def core_hours(self) -> float:
        """What the part takes on one core, estimated."""
        seconds = sum((case.train_seconds or 0.0) + _CASE_SECONDS for case, _ in self.jobs())
        return self.hours + seconds / 3600


#: five seeds wherever a claim or a ranking rests on the part
PLAN = (
    Part(name="smoke", what="every method on every problem, small", preset="smoke"),
    Part(name="field", what="every method side by side on quadrotors", preset="field"),
    Part(
        name="targets",
        what="training to a gap, five seeds; the ranking rests on it",
        preset="targets",
        # Unrolling has implicit differentiation's gradient at a price that the sweep shows; the
        # rates tuned for one seed are a study of the recipe, not of the methods.
        filters=("gradient=jfb,implicit,direct", "learning_rate=none"),
        seeds=5,
    ),
    Part(
        name="verify",
        what="the paper's claims, each on five seeds",
        command=("verify",),
        result="verify.json",
        hours=4.0,
    ),
    Part(
        name="sweep",
        what="agents, inner iterations and batches against bytes and step time",
        preset="sweep",
    ),
    Part(
        name="selftest",
        what="what the regression gate catches, and its false alarms",
        command=("gate", "--self-test", "--comparisons", "400", "--resume"),
        result="gate_selftest.json",
        hours=1.5,
    ),
    Part(
        name="roofline",
        what="where the time of a step goes",
        command=("roofline", "--resume"),
        result="roofline.json",
        hours=0.2,
    ),
)
