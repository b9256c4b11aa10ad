"""What the self-test found: rows with their requirements, as a table, files and a figure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gate.statistics import exact_bounds
from bench.gate.time import Settings, Verdict
from bench.records import write_csv, write_json

#: the file that `bench report` shows as a table, and the version of its form
FILE, SCHEMA_VERSION = "gate_selftest.json", 2
COLUMNS = (
    *("injected", "what it is", "gate", "runs", "caught", "rate, exact 95 % bounds"),
    *("asked", "met", "what moved"),
)
#: what the comparison is called in which nothing was injected
SAME = "nothing (A/A)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of injection over all its runs. `asked` says the requirement in words."""

    name: str
    what: str
    gate: str
    runs: int
    caught: int
    asked: str
    met: bool
    moved: str

    @property
    def cells(self) -> list[Any]:
        """The row under COLUMNS."""
        rate = "-"
        # A deterministic gate says the same of the same source however often it is asked.
        if self.gate == "time" and self.runs:
            low, high = exact_bounds(self.caught, self.runs)
            rate = f"{self.caught / self.runs:.1%} [{low:.1%}, {high:.1%}]"
        met = "yes" if self.met else "NO"
        lead = [self.name, self.what, self.gate, self.runs, self.caught]
        return [*lead, rate, self.asked, met, self.moved]


def time_row(
    name: str,
    what: str,
    found: Sequence[Mapping[str, Any]],
    *,
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """The row of one kind of time comparison, of which a share of at most `most`, or at least
    `least`, is to be reported as slower."""
    alarms = sum(one["verdict"] in (Verdict.SLOWER.value, Verdict.VANISHED.value) for one in found)
    # Shares of counts are whole numbers, but for rounding.
    share = alarms / len(found) if found else None
    asked, met = "", True
    if most is not None:
        asked, met = f"at most {most:.0%}", share is not None and share <= most + 1e-9
    if least is not None:
        asked, met = f"at least {least:.0%}", share is not None and share >= least - 1e-9
    ratios = [one["ratio"] for one in found if one["ratio"] is not None]
    moved = "nothing timed"
    if ratios:
        words = Counter(one["verdict"] for one in found).most_common()
        moved = f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        moved += ", ".join(f"{count} {verdict}" for verdict, count in words)
    return Row(
        name=name, what=what, gate="time", runs=len(found), caught=alarms, asked=asked, met=met,
        moved=moved,
    )  # fmt: skip


def write_results(
    out: Path,
    rows: Sequence[Row],
    comparisons: Sequence[Mapping[str, Any]],
    settings: Settings,
    source: str,
) -> None:
    """gate_selftest.json with the table and every comparison, and both as CSV, under `out`."""
    limit = 1 + settings.threshold
    notes = [
        "Every injection is an edit of a copy of the source. The deterministic gate compares the "
        "copy's records with those of the unedited source and has caught it when it exits 1 and "
        "names every case listed; the time gate compares processes of both copies.",
        f"Time has regressed when the {settings.confidence:.0%} interval of head/base, from a "
        f"bootstrap over pairs of processes and blocks of steps, lies above {limit:g}. The six "
        "timed cases are compared in the same processes, every six in new ones.",
        "The bounds of a rate are Clopper and Pearson's, for runs that are independent.",
    ]
    write_json(
        out / FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "title": "Proof of the regression gate: known regressions, injected",
            "columns": list(COLUMNS),
            "rows": [row.cells for row in rows],
            "notes": notes,
            "met": all(row.met for row in rows),
            "settings": asdict(settings),
            "source": source,
            "deterministic": [asdict(row) for row in rows if row.gate != "time"],
            "comparisons": list(comparisons),
        },
    )
    write_csv(out / "gate_selftest.csv", list(COLUMNS), [row.cells for row in rows])
    if comparisons:
        columns = [name for name in comparisons[0] if name != "pair_ratios"]
        lines = [[one[name] for name in columns] for one in comparisons]
        write_csv(out / "gate_comparisons.csv", columns, lines)


def write_power(content: Mapping[str, Any], path: Path) -> None:
    """The figure of the power: the share reported as slower, with its exact 95 % bounds, against
    the slowdown injected, as SVG. `content`: that of FILE."""
    import matplotlib.pyplot as plt

    from bench.report.figures.canvas import theme
    from bench.report.figures.hover import hover, titled

    points = []
    for name, _, gate, runs, caught, *_ in content["rows"]:
        percent = "0" if name == SAME else name.partition(" % slower")[0]
        if gate == "time" and runs and percent.isdigit():
            points.append((int(percent), caught / runs, *exact_bounds(caught, runs), runs))
    x, rate, low, high, runs = (list(column) for column in zip(*sorted(points), strict=True))
    with theme():
        figure, ax = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
        ends = [[r - a for r, a in zip(rate, low, strict=True)],
                [b - r for r, b in zip(rate, high, strict=True)]]  # fmt: skip
        ax.errorbar(x, rate, yerr=ends, fmt="o-", color="#0072B2", capsize=3, linewidth=1.5)
        ax.plot([10, 20], [0.80, 0.95], "v", color="#D55E00", label="asked, at least")
        ax.plot([0], [0.01], "^", color="#009E73", label="asked, at most")
        ax.axvline(100 * content["settings"]["threshold"], color="#767676", linewidth=1)
        words = [f"{a} %: {r:.1%} of {n}" for a, r, n in zip(x, rate, runs, strict=True)]
        hover(ax, x, rate, words)
        ax.set(xlabel="slowdown injected [% of a step's processor time]",
               ylabel="share reported as slower", ylim=(-0.03, 1.03))  # fmt: skip
        ax.legend(loc="center right", frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    titled(path)
