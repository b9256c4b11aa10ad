"""The answer box: which method, when another, at what price, on what; from the records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.report.load import Run
from bench.report.ranking import at_fixed_iterations
from bench.report.style import FAILURES, format_factor, format_percent, gradient_rank
from bench.report.targets import TARGET_INSTANCE

#: a run whose curves are shorter than this says nothing about training
_DECIDES = "Runs this short do not say which gradient trains best"


def answer(
    runs: Sequence[Run], cases: pd.DataFrame, ranked: pd.DataFrame, gaps: pd.DataFrame
) -> list[tuple[str, str]]:
    """Four lines, each with the word it answers: Which, When another, Price, Measured on."""
    ties = standing(gaps)
    lines = [
        ("Which", _which(ranked, ties)),
        ("When another", _exceptions(gaps, ties) or _limits_of_service(ranked)),
        ("Price", _price(cases, ranked, ties)),
        ("Measured on", _measured_on(runs, cases)),
    ]
    return [(name, line) for name, line in lines if line]


def standing(gaps: pd.DataFrame) -> pd.DataFrame:
    """Per method: `tied`, the instances where it is best or its seeds' range meets the best's.

    Of methods that solve an inner problem, where two of them or more were trained. A method enters
    an instance with its map of the smallest median gap there. Columns: gradient,
    tied, instances, ahead (names of the instances where it is tied), best first.
    """
    rows: dict[str, dict[str, Any]] = {}
    inner = gaps[gaps["map"] != "none"]
    for key, instance in inner.groupby(list(TARGET_INSTANCE), dropna=False):
        if instance["gradient"].nunique() < 2:
            continue
        by_map = instance.groupby(["gradient", "map", "id"])["gap"].agg(["min", "median", "max"])
        best = by_map.sort_values("median").groupby(level="gradient").first()
        lead = best.loc[best["median"].idxmin()]
        name = _instance_name(dict(zip(TARGET_INSTANCE, key, strict=True)))
        for gradient, own in best.iterrows():
            row = rows.setdefault(
                str(gradient), {"gradient": str(gradient), "tied": 0, "instances": 0, "ahead": []}
            )
            row["instances"] += 1
            if own["min"] <= lead["max"] and math.isfinite(own["median"]):
                row["tied"] += 1
                row["ahead"].append(name)
    found = pd.DataFrame(rows.values(), columns=["gradient", "tied", "instances", "ahead"])
    order = found["gradient"].map(gradient_rank)
    return (
        found.assign(order=order)
        .sort_values(["tied", "order"], ascending=[False, True])
        .drop(columns="order")
        .reset_index(drop=True)
    )


def _which(ranked: pd.DataFrame, ties: pd.DataFrame) -> str:
    if len(ties):
        top = ties.iloc[0]
        others = ", ".join(
            f"{row['gradient']} {row['tied']} of {row['instances']}"
            for row in ties.iloc[1:].to_dict("records")
        )
        rest = f" ({others})" if others else ""
        return (
            f"{top['gradient']}: after equal training time it is the best of those with an inner "
            f"problem, or its seeds overlap the best, on {top['tied']} of {top['instances']} "
            f"problems and sizes{rest}."
        )
    if ranked.empty:
        return ""
    inner = ranked[ranked["time"].notna() & (ranked["map"] != "none")].sort_values("time")
    if inner.empty:
        return ""
    top = inner.iloc[0]
    return (
        f"{top['gradient']} on the {top['map']} map takes the shortest step of all that solve the "
        f"inner problem ({format_factor(top['time'])} the fastest on average over "
        f"{_sizes(top['time_instances'])}). {_DECIDES}."
    )


def _exceptions(gaps: pd.DataFrame, ties: pd.DataFrame) -> str:
    if len(ties) < 2:
        return ""
    top = ties.iloc[0]
    parts: dict[str, list[str]] = {}
    for key, instance in gaps.groupby(list(TARGET_INSTANCE), dropna=False):
        runs = instance.groupby(["gradient", "map", "id"])["gap"].agg(["min", "median", "max"])
        best = runs.sort_values("median").groupby(level="gradient").first()
        if top["gradient"] not in best.index:
            continue
        own, lead = best.loc[top["gradient"]], best.loc[best["median"].idxmin()]
        if lead["max"] < own["min"]:
            name = _instance_name(dict(zip(TARGET_INSTANCE, key, strict=True)))
            parts.setdefault(str(lead.name), []).append(
                f"{name} ({format_percent(lead['median'])}, {top['gradient']} "
                f"{format_percent(own['median'])})"
            )
    if not parts:
        return "Nowhere among the problems trained here."
    words = "; ".join(f"{name} on {', '.join(where)}" for name, where in parts.items())
    return f"All seeds of another are closer to the optimum: {words}."


def _limits_of_service(ranked: pd.DataFrame) -> str:
    """Where nothing was trained: who cannot serve which problem, and what needs no inner solve."""
    if ranked.empty:
        return ""
    refused = [
        f"{row['gradient']} cannot serve {', '.join(row['refused'])}"
        for row in ranked.to_dict("records")
        if row["refused"]
    ]
    direct = ranked[(ranked["map"] == "none") & ranked["time"].notna()]
    if len(direct):
        time = format_factor(direct.iloc[0]["time"])
        refused.append(f"a direct policy takes {time} and maximises no Hamiltonian")
    words = "; ".join(refused)
    return f"{words}." if words else ""


def _price(cases: pd.DataFrame, ranked: pd.DataFrame, ties: pd.DataFrame) -> str:
    if ranked.empty:
        return ""
    inner = ranked[ranked["time"].notna() & (ranked["map"] != "none")]
    if inner.empty:
        return ""
    name = ties.iloc[0]["gradient"] if len(ties) else inner.sort_values("time").iloc[0]["gradient"]
    own = inner[inner["gradient"] == name].sort_values("time")
    parts = []
    if len(own):
        parts.append(f"A step of {name} takes {format_factor(own.iloc[0]['time'])} the fastest")
    slow = inner.sort_values("time").iloc[-1]
    if slow["gradient"] != name:
        parts.append(f"one of {slow['gradient']} {format_factor(slow['time'])}")
    line = f"{', '.join(parts)}." if parts else ""
    ratio = at_fixed_iterations(cases)
    if ratio is not None:
        iterations, low, high = ratio
        span = (
            format_factor(low) if low == high else f"{format_factor(low)} to {format_factor(high)}"
        )
        line += (
            f" At K = {iterations} unrolling saves {span} the bytes that jfb saves for backward."
        )
    return line.strip()


def _measured_on(runs: Sequence[Run], cases: pd.DataFrame) -> str:
    if cases.empty:
        return ""
    cpus = sorted(
        {str(run.environment.get("cpu")) for run in runs if run.environment.get("cpu")}
        | set(cases["cpu"].dropna())
    )
    devices = sorted(set(cases["gpu"].dropna()))
    threads = sorted(set(cases["threads"].dropna()))
    seeds = cases[cases["status"] == "ok"].groupby("id")["seed"].nunique()
    failed = int(cases["status"].isin(list(FAILURES)).sum())
    words = [" and ".join([*cpus, *devices]) or "a processor that was not recorded"]
    if threads:
        words.append(f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}")
    if len(seeds):
        low, high = int(seeds.min()), int(seeds.max())
        words.append(
            f"{low} seed{'s' if low > 1 else ''}" if low == high else f"{low} to {high} seeds"
        )
    words.append(f"{cases['id'].nunique()} cases, {failed} records did not finish")
    return f"{', '.join(words)}."


def _instance_name(instance: dict[str, Any]) -> str:
    agents, problem = instance["n_agents"], instance["problem"]
    if problem == "consumption":
        return f"{agents} good{'s' if agents > 1 else ''}"
    return f"{agents} {problem}{'s' if agents > 1 else ''}"


def _sizes(count: int) -> str:
    return "one problem and size" if count == 1 else f"{count} problems and sizes"
