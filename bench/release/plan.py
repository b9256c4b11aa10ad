"""What a release measures, in the order in which its README shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.case import Case

#: share of its limit that a compiled recipe takes with jfb, at one agent and at more: measured, on
#: one core of a Zen 5, 61 s of 300 at one quadrotor, 105 of 215 at 20 and 320 of 600 at 100
_ONE, _MANY = 0.25, 0.5
#: seconds of a training over those
_DIRECT, _IMPLICIT, _PLAIN = 0.6, 1.1, 2.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One folder of a release and the command that fills it.

    A part of a `preset`, narrowed by `filters`, holds one record per case and seed. Any other part
    runs `command`, which takes about `hours` on one core and writes the file `result`. `overhead`:
    what a case takes besides its training, imports, compiling, counts and timed steps [s, one
    core]. `divisible`: whether several processes may share its jobs.
    """

    name: str
    what: str
    preset: str | None = None
    filters: tuple[str, ...] = ()
    seeds: int = 1
    overhead: float = 20.0
    command: tuple[str, ...] = ()
    result: str = ""
    hours: float = 0.0
    divisible: bool = True

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
        seconds = sum(_training_seconds(case) + self.overhead for case, _ in self.jobs())
        return self.hours + seconds / 3600


def planned(plan: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """The cases and seeds of every preset's part, as `release.json` keeps them."""
    return {
        part.name: {"seeds": part.seeds, "cases": list(dict.fromkeys(c.id for c, _ in part.jobs()))}
        for part in plan
        if part.preset is not None
    }


def _training_seconds(case: Case) -> float:
    """The limit, or less where the steps of a compiled recipe end before it."""
    from bench.recipes import LENGTHS

    limit = case.train_seconds or 0.0
    if case.recipe != "recommended" or case.problem not in LENGTHS:
        return limit
    factor = {"direct": _DIRECT, "implicit": _IMPLICIT}.get(case.gradient, 1.0)
    if case.map == "plain":
        factor = _PLAIN
    return limit * min(1.0, factor * (_ONE if case.n_agents == 1 else _MANY))


#: the ranking and the claims of gaps rest on it
TARGETS = Part(
    name="targets",
    what="training to a gap, five seeds; the ranking and two claims rest on it",
    preset="targets",
    seeds=5,
)
#: the claim of scale rests on it, and on the quadrotors of the targets
SCALE = Part(
    name="scale",
    what="training 100 goods, assets or bicycles, five seeds; a claim rests on it",
    preset="scale",
    seeds=5,
    overhead=150.0,
)
#: five seeds wherever a claim or a ranking rests on the part
PLAN = (
    # Nine minutes on two cores.
    Part(
        name="smoke",
        what="every method on every problem, small",
        preset="smoke",
        overhead=7.0,
    ),
    Part(
        name="field",
        what="every method side by side on quadrotors",
        preset="field",
        overhead=10.0,
    ),
    TARGETS,
    SCALE,
    Part(
        name="verify",
        what="the paper's claims, each on five seeds",
        command=("verify",),
        result="verify.json",
        hours=2.0,
    ),
    Part(
        name="sweep",
        what="agents, inner iterations and batches against bytes and step time",
        preset="sweep",
        overhead=12.0,
    ),
    Part(
        name="selftest",
        what="what the regression gate catches, and its false alarms",
        command=("gate", "--self-test", "--comparisons", "6", "--resume"),
        result="gate_selftest.json",
        hours=0.12,
        divisible=False,
    ),
    Part(
        name="roofline",
        what="where the time of a step goes",
        command=(*("roofline", "--problem", "quadrotor", "--agents", "1", "100"), "--resume"),
        result="roofline.json",
        hours=0.05,
        divisible=False,
    ),
)
