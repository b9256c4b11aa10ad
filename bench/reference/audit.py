"""What the reference files are worth: who converged, from how many starts, how far a bound is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.reference.cache import Reference, StaleReference, load_reference
from jfbcore.problems import PROBLEMS

#: heading of the printed table, key of a row, format
_COLUMNS = (
    ("problem", "problem", ""), ("agents", "n_agents", ""), ("method", "method", ""),
    ("states", "states", ""), ("converged", "converged", ".1%"), ("starts", "starts", ""),
    ("KKT residual", "kkt_residual", ".0e"), ("mean cost", "mean", ".6g"),
    ("lower bound", "lower_bound", ".6g"), ("at most", "widest", ".1%"),
    ("seconds", "seconds", ".6g"),
)  # fmt: skip


def audit(directory: Path) -> list[dict[str, Any]]:
    """One row per reference file of `directory`; a file that cannot be used has a `reason`.

    `converged`: share of states whose solver ended at an optimum. `starts`: the fewest of any
    state, `kkt_residual`: the largest, `lower_bound`: the mean; None where one of the states has
    none. `widest`: the largest (cost - bound) / |cost| of the `bounded_states`, by which the gap of
    a policy can be too small.
    """
    return [_row(name, reference) for name, reference in _references(directory)]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, one line a file; those without figures last."""
    import pandas as pd

    shown = [
        {heading: _shown(row[key], form) for heading, key, form in _COLUMNS}
        for row in rows
        if "reason" not in row
    ]
    lines = [pd.DataFrame(shown).to_string(index=False)] if shown else []
    return "\n".join([*lines, *(f"{r['file']}  {r['reason']}" for r in rows if "reason" in r)])


def _shown(value: Any, form: str) -> str:
    if value is None:
        return "unknown"
    # No minus sign for a rounding.
    return format(round(value, 6) + 0.0 if form == ".1%" else value, form)


def _references(directory: Path) -> Iterator[tuple[str, Reference | str]]:
    """Every file's name with its reference, or the reason why it cannot be used."""
    for path in sorted(directory.glob("*-*.json")):
        name, _, count = path.stem.rpartition("-")
        if name not in PROBLEMS or not count.isdecimal():
            yield path.name, f"{name} is not a problem of the suite"
            continue
        try:
            reference = load_reference(PROBLEMS[name](n_agents=int(count)), directory)
        except (StaleReference, ValueError) as error:
            yield path.name, str(error)
            continue
        assert reference is not None
        yield path.name, reference


def _row(name: str, reference: Reference | str) -> dict[str, Any]:
    if isinstance(reference, str):
        return {"file": name, "reason": reference}
    converged, costs = reference.converged, reference.solved
    pairs = [
        (cost, bound)
        for cost, bound in zip(reference.costs, reference.lower_bounds, strict=False)
        if cost is not None and bound is not None
    ]
    return {
        "file": name,
        "problem": reference.problem,
        "n_agents": reference.n_agents,
        "method": reference.method,
        "states": len(reference.costs),
        "converged": sum(converged) / len(converged),
        "starts": _over_all(min, reference.starts, len(costs)),
        "kkt_residual": _over_all(max, reference.kkt_residuals, len(costs)),
        "mean": sum(costs) / len(costs),
        "bounded_states": len(pairs),
        "lower_bound": _over_all(fmean, reference.lower_bounds, len(costs)),
        "widest": max(((cost - bound) / abs(cost) for cost, bound in pairs), default=None),
        "seconds": round(sum(seconds or 0.0 for seconds in reference.seconds), 1),
    }


def _over_all(summary: Callable[..., float], entries: Sequence[Any], count: int) -> float | None:
    """`summary` of the entries, None unless all of `count` states have one."""
    known = [entry for entry in entries if entry is not None]
    return summary(known) if len(known) == count else None


def run(directory: Path) -> int:
    """Print the table and one JSON line; 0 where every state of every file converged, else 1."""
    if not directory.is_dir():
        raise ValueError(f"`--out` must be a folder of references, got {str(directory)!r}")
    rows = audit(directory)
    if not rows:
        raise ValueError(f"`--out` {str(directory)!r} holds no references; make some first")
    print(table(rows))
    print(json.dumps({"references": rows}, allow_nan=False))
    return 0 if all(row.get("converged") == 1.0 for row in rows) else 1
