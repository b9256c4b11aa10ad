"""Claim 5: memory against the number of inner iterations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench.verify.claim import SIZE, Claim, Numbers, Tables, size_name, spread, verdict
from bench.verify.resources import NETWORK

#: what the papers promise at least
_PROMISED = 10.0
#: ratios are shown from this K on
_LEAST = 50


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


def memory(data: Tables) -> Claim:
    table = data["memory"]
    wide = table.pivot_table(index=[*SIZE, "K"], columns="gradient", values="saved_bytes")
    flat = wide["jfb"].groupby(level=SIZE).nunique().eq(1)
    over = wide.div(wide["jfb"], axis=0)
    most = int(table["K"].max())
    last = over.xs(most, level="K")
    fits = memory_fits(table)
    growing = fits[fits["gradient"] != "jfb"]
    return Claim(
        5,
        "JFB's memory does not depend on K; unrolling's grows with it, 10-100x above",
        f"at K = {most} unrolling saves {spread(last['unrolled'])} times jfb's bytes, "
        f"{spread(last[NETWORK])} times with the value network inside the map",
        verdict(flat & (last["unrolled"] >= _PROMISED)),
        f"bytes saved for backward, exact; jfb identical to the byte for every K: "
        f"{'yes' if bool(flat.all()) else 'no'}. The verdict is on unrolling with the costate "
        "evaluated once per time step; unrolling is linear in K to within "
        f"{100 * growing['misfit'].max():.2g} %. With the network inside the map, as released, "
        "the ratio is what any unrolling costs (the method) times what evaluating the network in "
        "every iteration costs (the implementation); shares are of its logarithm",
        "figures/claim-5-memory.png",
        "Bytes saved for backward against exact iterations K: jfb, unrolled with the costate "
        "evaluated once per time step, and unrolled with the value network inside the map.",
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
    names = ("jfb", "unrolled", NETWORK)
    rows = []
    for key, part in fits.groupby(SIZE, sort=False):
        by = part.set_index("gradient")["slope_per_sample"].round(6).abs()
        rows.append((size_name(key), *(f"{by[name]:,.0f}" for name in names)))
    return Numbers.of(
        "Bytes per iteration, sample and time step",
        ("size", "jfb", "unrolled", "network inside"),
        rows,
    )


def _crossovers(data: Tables) -> list[Numbers]:
    """The K from which each gradient outgrows each machine."""
    table = data.get("crossovers")
    if table is None:
        return []
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
