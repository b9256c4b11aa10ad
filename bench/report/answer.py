"""The answer box: which method, when another, at what price, on what; from the records alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bench.report import style
from bench.report.load import Run
from bench.report.ranking import NO_MAP
from bench.report.summary import unrolled_over_jfb
from bench.report.targets import TARGET_INSTANCE

_INSTANCE = list(TARGET_INSTANCE)


def answer(
    runs: Sequence[Run], cases: pd.DataFrame, ranked: pd.DataFrame, gaps: pd.DataFrame
) -> list[tuple[str, str]]:
    """Four lines, each with the word it answers: Which, When another, Price, Measured on."""
    ties = standing(gaps)
    inner = ranked
    if len(ranked):
        inner = ranked[ranked["time"].notna() & (ranked["map"] != NO_MAP)].sort_values("time")
    lines = {
        "Which": _which(inner, ties, trained=len(gaps) > 0),
        "When another": _exceptions(gaps, ties) or _limits_of_service(ranked),
        "Price": _price(cases, inner, ties),
        "Measured on": _measured_on(runs, cases),
    }
    return [(name, line) for name, line in lines.items() if line]


def _best_maps(gaps: pd.DataFrame) -> pd.DataFrame:
    """Per instance and method the range of gaps over seeds, on the map of the smallest median.

    Columns: those of the instance, gradient, min, median, max; `first`, `median_lead` and
    `max_lead`: name, median and greatest gap of the method whose median is the smallest there.
    """
    settings = gaps.groupby([*_INSTANCE, "gradient", "map", "id"], dropna=False)["gap"]
    found = settings.agg(["min", "median", "max"]).reset_index().sort_values("median")
    found = found.drop_duplicates([*_INSTANCE, "gradient"])
    lead = found.drop_duplicates(_INSTANCE).rename(columns={"gradient": "first"})
    lead = lead[[*_INSTANCE, "first", "median", "max"]]
    return found.merge(lead, on=_INSTANCE, suffixes=("", "_lead")).sort_values(_INSTANCE)


def standing(gaps: pd.DataFrame) -> pd.DataFrame:
    """Per method: `tied`, the instances where it is best or its seeds' range meets the best's.

    Of methods that solve an inner problem, where two of them or more were trained. A method enters
    an instance with its map of the smallest median gap there. Columns: gradient, tied, instances,
    best first.
    """
    best = _best_maps(gaps[gaps["map"] != NO_MAP])
    several = best.groupby(_INSTANCE, dropna=False)["gradient"].transform("size") > 1
    tied = (best["min"] <= best["max_lead"]) & np.isfinite(best["median"])
    groups = best.assign(tied=tied)[several].groupby("gradient")["tied"]
    found = groups.agg(tied="sum", instances="size").reset_index()
    found = found.sort_values("gradient", key=lambda names: names.map(style.gradient_rank))
    return found.sort_values("tied", ascending=False, kind="stable").reset_index(drop=True)


def _which(inner: pd.DataFrame, ties: pd.DataFrame, trained: bool) -> str:
    if len(ties):
        top, *others = ties.to_dict("records")
        words = ", ".join(f"{o['gradient']} {o['tied']} of {o['instances']}" for o in others)
        return (
            f"{top['gradient']}: within the same time limit it is the best of those with an inner "
            f"problem, or its seeds overlap the best, on {top['tied']} of {top['instances']} "
            f"problems and sizes{f' ({words})' if words else ''}."
        )
    if inner.empty:
        return ""
    if inner["gradient"].nunique() == 1:
        return f"Of gradients with an inner problem {inner['gradient'].iloc[0]} alone was timed."
    top, count = inner.iloc[0], inner["time_instances"].iloc[0]
    sizes = "one problem and size" if count == 1 else f"{count} problems and sizes"
    return (
        f"{top['gradient']} on the {top['map']} map takes the shortest step of all that solve the "
        f"inner problem ({style.format_factor(top['time'])} the fastest on average over {sizes}). "
        + (
            "No two of them were trained on one problem and size by the same code and machine."
            if trained
            else "Runs this short do not say which gradient trains best."
        )
    )


def _exceptions(gaps: pd.DataFrame, ties: pd.DataFrame) -> str:
    if len(ties) < 2:
        return ""
    top = ties["gradient"].iloc[0]
    own = _best_maps(gaps)
    beaten = own[(own["gradient"] == top) & (own["max_lead"] < own["min"])]
    parts: dict[str, list[str]] = {}
    for row in beaten.to_dict("records"):
        noun = "good" if row["problem"] == "consumption" else row["problem"]
        lead, mine = (style.format_percent(row[name]) for name in ("median_lead", "median"))
        words = f"{style.counted(row['n_agents'], noun)} ({lead}, {top} {mine})"
        parts.setdefault(row["first"], []).append(words)
    if not parts:
        return "Nowhere among the problems trained here."
    words = "; ".join(f"{name} on {', '.join(where)}" for name, where in parts.items())
    return f"All seeds of another are closer to the optimum: {words}."


def _limits_of_service(ranked: pd.DataFrame) -> str:
    """Where nothing was trained: who cannot serve which problem, and what needs no inner solve."""
    rows = ranked.to_dict("records")
    words = [
        f"{row['gradient']} cannot serve {', '.join(row['refused'])}" for row in rows
        if row["refused"]
    ]  # fmt: skip
    direct = [row["time"] for row in rows if row["map"] == NO_MAP and pd.notna(row["time"])]
    if direct:
        time = style.format_factor(direct[0])
        words.append(f"a direct policy takes {time} and maximises no Hamiltonian")
    return f"{'; '.join(words)}." if words else ""


def _price(cases: pd.DataFrame, inner: pd.DataFrame, ties: pd.DataFrame) -> str:
    if inner.empty:
        return ""
    name = (ties if len(ties) else inner)["gradient"].iloc[0]
    own, slow = inner[inner["gradient"] == name], inner.iloc[-1]
    compared = inner["gradient"].nunique() > 1
    parts = [
        f"A step of {name} takes {style.format_factor(time)} the fastest"
        for time in own["time"].head(int(compared))
    ]
    if slow["gradient"] != name:
        parts.append(f"one of {slow['gradient']} {style.format_factor(slow['time'])}")
    line = f"{', '.join(parts)}." if parts else ""
    ratios = unrolled_over_jfb(cases)["saved_tensor_bytes"]
    if len(ratios):
        largest = ratios.index.get_level_values("max_iterations").max()
        there = ratios.xs(largest, level="max_iterations")
        span = " to ".join(dict.fromkeys(map(style.format_factor, (there.min(), there.max()))))
        line += f" At K = {largest} unrolling saves {span} the bytes that jfb saves for backward."
    return line.strip()


def _measured_on(runs: Sequence[Run], cases: pd.DataFrame) -> str:
    if cases.empty:
        return ""
    cpus = {str(run.environment["cpu"]) for run in runs if run.environment.get("cpu")}
    cpus |= set(cases["cpu"].dropna())
    machines = [*sorted(cpus), *sorted(set(cases["gpu"].dropna()))]
    words = [" and ".join(machines) or "a processor that was not recorded"]
    if threads := sorted(set(cases["threads"].dropna())):
        words.append(f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}")
    seeds = cases[cases["status"] == "ok"].groupby("id")["seed"].nunique()
    if len(seeds):
        words.append(style.seeds_in_words(seeds))
    failed = int(cases["status"].isin(list(style.FAILURES)).sum())
    words.append(f"{cases['id'].nunique()} cases, {failed} records did not finish")
    return f"{', '.join(words)}."
