"""Claim 5: memory against the number of inner iterations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS
from bench.claims.cases import FULL_SIZES, SMALL, case
from bench.claims.claim import SIZE, Judgement, Numbers, Tables, size_name, spread, verdict
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.memory import Memory
from bench.probes.prediction import Prediction
from bench.report.style import look

NUMBER = 5
TABLE = "memory"
CLAIM = "JFB's memory does not depend on K; unrolling's grows with it, 10-100x above"
CRITERION = (
    "Holds at a size where JFB saves the same bytes at every K, and unrolling at least 10 "
    "times as many at the largest K."
)
FIGURE = "claim-5-memory"
CAPTION = (
    "Bytes saved for backward against exact iterations K: jfb, unrolled with the costate "
    "evaluated once per time step, and unrolled with the value network inside the map."
)
#: unrolling with the network inside the map
NETWORK = "unrolled-network"
GRADIENTS = ("jfb", "unrolled", NETWORK)
#: device memories in bytes, by what is printed on the box
MACHINES = {24e9: "24 GB", 141e9: "141 GB"}
#: what must hold on every machine: unrolling over jfb, at this K
_RATIO, _RATIO_AT = 10.0, 500

#: what the papers promise at least
_PROMISED = 10.0
#: ratios are shown from this K on
_LEAST = 50


def jobs(quick: bool) -> list[Job]:
    sizes = [(p, max(n, 5)) if p == "consumption" else (p, 6) for p, n in SMALL]
    sizes, steps = (sizes, 1) if quick else (list(FULL_SIZES), 4)
    found = [
        Job(case=case(p, n, gradient=g, batch_size=2, n_steps=steps), probe=Memory())
        for p, n in sizes
        for g in GRADIENTS
    ]
    # At full batch and horizon; the model is fitted to exact iterations.
    exact = {"tolerance": None, "max_iterations": 1}
    return found + [
        Job(
            case=case(p, n, gradient=g, batch_size=DEFAULT_BATCH[p], n_steps=DEFAULT_STEPS[p],
                      **exact),
            probe=Prediction(memory=tuple(MACHINES)),
        )
        for p, n in (sizes[:1] if quick else sizes)
        for g in (GRADIENTS[1:2] if quick else GRADIENTS)
    ]  # fmt: skip


def memory_fits(table: pd.DataFrame) -> pd.DataFrame:
    """Saved bytes = a + slope K by least squares, per size and gradient.

    `misfit`: the largest relative distance of a measurement from its line. `slope_per_sample`:
    the slope for one sample at one time step.
    """
    rows = []
    for (problem, n, gradient), part in table.groupby([*SIZE, "gradient"], sort=False):
        slope, intercept = np.polyfit(part["K"], part["saved_bytes"], 1)
        line = intercept + slope * part["K"]
        units = part["batch_size"].iloc[0] * part["n_steps"].iloc[0]
        misfit = ((line - part["saved_bytes"]).abs() / part["saved_bytes"]).max()
        rows.append({"problem": problem, "n_agents": n, "gradient": gradient, "slope": slope,
                     "slope_per_sample": slope / units, "intercept": intercept,
                     "misfit": misfit})  # fmt: skip
    return pd.DataFrame(rows)


def judge(data: Tables) -> Judgement:
    table = data["memory"]
    wide = table.pivot_table(index=[*SIZE, "K"], columns="gradient", values="saved_bytes")
    flat = wide["jfb"].groupby(level=SIZE).nunique().eq(1)
    over = wide.div(wide["jfb"], axis=0)
    most = int(table["K"].max())
    last = over.xs(most, level="K")
    fits = memory_fits(table)
    growing = fits[fits["gradient"] != "jfb"]
    return Judgement(
        f"at K = {most} unrolling saves {spread(last['unrolled'])} times jfb's bytes, "
        f"{spread(last[NETWORK])} times with the value network inside the map",
        verdict(flat & (last["unrolled"] >= _PROMISED)),
        f"bytes saved for backward, exact; jfb identical to the byte for every K: "
        f"{'yes' if bool(flat.all()) else 'no'}. The verdict is on unrolling with the costate "
        "evaluated once per time step; unrolling is linear in K to within "
        f"{100 * growing['misfit'].max():.2g} %. With the network inside the map, as released, "
        "the ratio is what any unrolling costs (the method) times what evaluating the network in "
        "every iteration costs (the implementation); shares are of its logarithm",
        tuple(_below_promise(last["unrolled"], most)),
        (_ratios(over, last, most), _slopes(fits), *_crossovers(data)),
    )


def _ratios(over: pd.DataFrame, last: pd.DataFrame, most: int) -> Numbers:
    counts = [k for k in over.index.unique("K") if k >= _LEAST]
    kinds = (("unrolled", "unrolled"), (NETWORK, "network inside"))
    rows = []
    for key, part in over.groupby(level=SIZE, sort=False):
        part = part.droplevel(SIZE)
        method, whole = last.loc[key, "unrolled"], last.loc[key, NETWORK]
        share = math.log(method) / math.log(whole)
        rows.append((
            size_name(key),
            *(f"{part.loc[k, name]:.3g}x" for name, _ in kinds for k in counts),
            f"{whole / method:.3g}x",
            f"{100 * share:.0f} %",
        ))  # fmt: skip
    return Numbers.of(
        "Bytes saved for backward, over jfb's",
        (
            "size",
            *(f"{label}, K = {k}" for _, label in kinds for k in counts),
            f"implementation, K = {most}",
            "the method's share",
        ),
        rows,
    )


def _below_promise(ratios: pd.Series, most: int) -> list[str]:
    return [
        f"{size_name(key)}: unrolling alone saves {ratio:.3g} times jfb's bytes at K = {most}, "
        f"less than {_PROMISED:.0f}."
        for key, ratio in ratios.items()
        if ratio < _PROMISED
    ]


def _slopes(fits: pd.DataFrame) -> Numbers:
    rows = []
    for key, part in fits.groupby(SIZE, sort=False):
        by = part.set_index("gradient")["slope_per_sample"].round(6).abs()
        rows.append((size_name(key), *(f"{by[name]:,.0f}" for name in GRADIENTS)))
    return Numbers.of(
        "Bytes per iteration, sample and time step",
        ("size", "jfb", "unrolled", "network inside"),
        rows,
    )


def _crossovers(data: Tables) -> list[Numbers]:
    """The K from which each gradient outgrows each machine."""
    if "prediction" not in data:
        return []
    table = data["prediction"].assign(machine=data["prediction"]["memory"].map(MACHINES))
    machines = list(table["machine"].unique())
    gradients = list(table["gradient"].unique())
    at = table.set_index([*SIZE, "gradient", "machine"])["crossover"]
    rows = []
    for key, part in table.groupby(SIZE, sort=False):
        have = set(zip(part["gradient"], part["machine"], strict=True))
        cells = [
            (
                ""
                if (g, m) not in have
                else "never"
                if pd.isna(k := at[(*key, g, m)])
                else f"{k:,.0f}"
            )
            for g in gradients
            for m in machines
        ]
        rows.append((size_name(key), *cells))
    error = 100 * table["model_error"].max()
    return [
        Numbers.of(
            "K from which the full batch and horizon do not fit (predicted, model error at most "
            f"{error:.2g} %)",
            ("size", *(f"{g}, {m}" for g in gradients for m in machines)),
            rows,
        )
    ]


def figure(data: Tables) -> Figure | None:
    table = data["memory"].assign(mebibytes=data["memory"]["saved_bytes"] / 2**20)
    names = {name: name for name in table["gradient"].unique()}
    return series_figure(
        table, "K", "mebibytes", "gradient", {name: look(name) for name in names}, names,
        "exact iterations K", "saved for backward [MiB]", log_x=True,
    )  # fmt: skip


def failures(data: Tables) -> list[str]:
    """What does not hold of what must on every machine; data that is not there does not hold."""
    if "memory" not in data:
        return ["memory: not measured"]
    found = []
    for (problem, n), rows in data["memory"].groupby(SIZE, sort=False):
        jfb = rows[rows["gradient"] == "jfb"].set_index("K")["saved_bytes"]
        unrolled = rows[rows["gradient"] == "unrolled"].set_index("K")["saved_bytes"]
        if jfb.nunique() != 1:
            sizes = ", ".join(f"{size:.0f} at K={k}" for k, size in jfb.items())
            found.append(
                f"memory: {problem} n={n}: jfb's saved bytes must not depend on K: {sizes}"
            )
        ratio = unrolled.get(_RATIO_AT, 0.0) / jfb.get(_RATIO_AT, float("inf"))
        if not ratio >= _RATIO:
            found.append(
                f"memory: {problem} n={n}: unrolled over jfb at K={_RATIO_AT} must be >= "
                f"{_RATIO:g}, is {ratio:.3g}"
            )
    return found
