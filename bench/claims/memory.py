"""Claim 5: memory against the number of inner iterations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.case import DEFAULT_BATCH, DEFAULT_STEPS
from bench.claims.cases import SMALL, case
from bench.claims.claim import SIZE, Judgement, Numbers, Tables, size_name, spread, verdict
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.memory import Memory
from bench.probes.prediction import Prediction
from bench.report.style import look

NUMBER = 5
TABLE = "memory"
CLAIM = "JFB's memory does not depend on K; unrolling's grows with it, 10-100x above"
#: what the papers promise at least; and what must hold on every machine, at this K
_PROMISED, _RATIO_AT = 10.0, 500
CRITERION = (
    f"Holds at a size where JFB saves the same bytes at every K, and unrolling at least "
    f"{_PROMISED:.0f} times as many at the largest K."
)
FIGURE = "claim-5-memory"
CAPTION = (
    "Bytes saved for backward against exact iterations K: jfb, unrolled with the costate "
    "evaluated once per time step, and unrolled with the value network inside the map."
)
#: unrolling with the network inside the map
NETWORK = "unrolled-network"
GRADIENTS = ("jfb", "unrolled", NETWORK)
_LABELS = {"unrolled": "unrolled", NETWORK: "network inside"}
#: device memories in bytes, by what is printed on the box
MACHINES = {24e9: "24 GB", 141e9: "141 GB"}
#: sizes, the largest because the claim is about scale; those measured at the tolerance, too
_SIZES = (*((p, n) for p, _ in SMALL for n in (20, 100)), ("quadrotor", 1), ("consumption", 5))
_AT_TOLERANCE = (*SMALL, ("quadrotor", 20), ("rotor-quadrotor", 1))
#: ratios are shown from this K on
_LEAST = 50


def jobs(quick: bool) -> list[Job]:
    sizes = [(p, 5 if p == "consumption" else 6) for p, _ in SMALL] if quick else _SIZES
    steps = 1 if quick else 4
    cases = [
        case(p, n, gradient=g, batch_size=2, n_steps=steps) for p, n in sizes for g in GRADIENTS
    ]
    found = [Job(case=each, probe=Memory()) for each in cases]
    if not quick:
        last = Memory(iterations=())
        cases = [
            case(p, n, gradient=g, train_steps=50) for p, n in _AT_TOLERANCE for g in GRADIENTS
        ]
        found += [Job(case=each, probe=last) for each in cases]
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


def _stopped(data: Tables, by: str) -> pd.DataFrame:
    """The rows whose iteration stopped `by` its count, as all of earlier records, or tolerance."""
    stops = data["memory"].get("stop", pd.Series(None, data["memory"].index, dtype=object))
    return data["memory"][stops.fillna("count") == by]


def _over_jfb(table: pd.DataFrame, column: str, keys: list[str]) -> pd.DataFrame:
    """`column` of every gradient over that of jfb, by `keys`; NaN for what is not measured."""
    wide = table.pivot_table(index=keys, columns="gradient", values=column)
    names = dict.fromkeys([*GRADIENTS, *wide.columns])
    return wide.reindex(columns=list(names)).div(wide["jfb"], axis=0)


def judge(data: Tables) -> Judgement:
    table = _stopped(data, "count")
    jfb = table[table["gradient"] == "jfb"].groupby(SIZE)["saved_bytes"]
    flat = jfb.nunique().eq(1)
    over = _over_jfb(table, "saved_bytes", [*SIZE, "K"])
    most = int(table["K"].max())
    last = over.xs(most, level="K")
    fits = memory_fits(table)
    growing = fits[fits["gradient"] != "jfb"]
    small = last["unrolled"][last["unrolled"] < _PROMISED]
    return Judgement(
        f"at K = {most} unrolling saves {spread(last['unrolled'])} times jfb's bytes, "
        f"{spread(last[NETWORK])} times with the value network inside the map",
        verdict(flat & (last["unrolled"] >= _PROMISED)),
        f"bytes of a training step, exact; batch {_values(table, 'batch_size')}, "
        f"{_values(table, 'n_steps')} time steps; jfb identical to the byte for every K: "
        f"{'yes' if bool(flat.all()) else 'no'}. The verdict is on unrolling with the costate "
        "evaluated once per time step; unrolling is linear in K to within "
        f"{100 * growing['misfit'].max():.2g} %. With the network inside the map, as released, "
        "the ratio is what any unrolling costs (the method) times what evaluating the network in "
        "every iteration costs (the implementation); shares are of its logarithm",
        tuple(
            f"{size_name(key)}: unrolling alone saves {ratio:.3g} times jfb's bytes at K = {most}, "
            f"less than {_PROMISED:.0f}."
            for key, ratio in small.items()
        ),
        (
            _ratios(over, most, _over_jfb(table, "peak_bytes", [*SIZE, "K"]).reindex(over.index)),
            *_at_tolerance(_stopped(data, "tolerance")),
            _slopes(fits),
            *_crossovers(data),
        ),
    )


def _values(table: pd.DataFrame, column: str) -> str:
    return " or ".join(str(value) for value in sorted(table[column].unique()))


def _ratios(over: pd.DataFrame, most: int, peaks: pd.DataFrame) -> Numbers:
    counts = [k for k in over.index.unique("K") if k >= _LEAST]
    rows = []
    for key, part in over.groupby(level=SIZE, sort=False):
        part, peak = part.droplevel(SIZE), peaks.loc[key]
        method, whole = part.loc[most, "unrolled"], part.loc[most, NETWORK]
        rows.append((
            size_name(key),
            *(f"{part.loc[k, name]:.3g}x" for name in _LABELS for k in counts),
            *(f"{peak.loc[most, name]:.3g}x" for name in _LABELS),
            f"{whole / method:.3g}x",
            f"{100 * math.log(method) / math.log(whole):.0f} %",
        ))  # fmt: skip
    return Numbers.of(
        "Bytes saved for backward, and most alive at the largest K, over jfb's",
        (
            "size",
            *(f"{label}, K = {k}" for label in _LABELS.values() for k in counts),
            *(f"{label}, peak" for label in _LABELS.values()),
            f"implementation, K = {most}",
            "the method's share",
        ),
        rows,
    )


def _at_tolerance(table: pd.DataFrame) -> list[Numbers]:
    """The same where the iteration stops at its tolerance, at parameters that were trained."""
    if table.empty:
        return []
    saved, peak = (_over_jfb(table, name, SIZE) for name in ("saved_bytes", "peak_bytes"))
    counts = table[table["gradient"] == "unrolled"].set_index(SIZE)["K"]
    rows = [
        (size_name(key), f"{counts[key]:.0f}",
         *(f"{ratios.loc[key, name]:.3g}x" for ratios in (saved, peak) for name in _LABELS))
        for key in saved.index
    ]  # fmt: skip
    kinds = (f"{label}, {kind}" for kind in ("saved", "peak") for label in _LABELS.values())
    return [Numbers.of(
        "Bytes at the inner tolerance over jfb's, after 50 training steps; batch "
        f"{_values(table, 'batch_size')}, {_values(table, 'n_steps')} time steps",
        ("size", "most iterations", *kinds),
        rows,
    )]  # fmt: skip


def _slopes(fits: pd.DataFrame) -> Numbers:
    wide = fits.pivot(index=SIZE, columns="gradient", values="slope_per_sample").round(6).abs()
    rows = [(size_name(k), *(f"{row[g]:,.0f}" for g in GRADIENTS)) for k, row in wide.iterrows()]
    columns = ("size", "jfb", *_LABELS.values())
    return Numbers.of("Bytes per iteration, sample and time step", columns, rows)


def _crossovers(data: Tables) -> list[Numbers]:
    """The K from which each gradient outgrows each machine."""
    if "prediction" not in data:
        return []
    table = data["prediction"].assign(machine=data["prediction"]["memory"].map(MACHINES))
    columns = [(g, m) for g in table["gradient"].unique() for m in table["machine"].unique()]
    rows = []
    for key, part in table.groupby(SIZE, sort=False):
        at = part.set_index(["gradient", "machine"])["crossover"]
        cells = ("" if c not in at.index else "never" if pd.isna(at[c]) else f"{at[c]:,.0f}"
                 for c in columns)  # fmt: skip
        rows.append((size_name(key), *cells))
    error = 100 * table["model_error"].max()
    return [Numbers.of(
        "K from which the full batch and horizon do not fit (predicted, model error at most "
        f"{error:.2g} %)",
        ("size", *(f"{g}, {m}" for g, m in columns)),
        rows,
    )]  # fmt: skip


def figure(data: Tables) -> Figure | None:
    table = _stopped(data, "count")
    names = {name: name for name in table["gradient"].unique()}
    return series_figure(
        table.assign(mebibytes=table["saved_bytes"] / 2**20), "K", "mebibytes", "gradient",
        {name: look(name) for name in names}, names,
        "exact iterations K", "saved for backward [MiB]", log_x=True,
    )  # fmt: skip


def failures(data: Tables) -> list[str]:
    """What does not hold of what must on every machine; data that is not there does not hold."""
    if "memory" not in data:
        return ["memory: not measured"]
    found = []
    for key, rows in _stopped(data, "count").groupby(SIZE, sort=False):
        sizes = rows.pivot_table(index="K", columns="gradient", values="saved_bytes")
        jfb, unrolled = sizes["jfb"], sizes["unrolled"]
        if jfb.nunique() != 1:
            listed = ", ".join(f"{size:.0f} at K={k}" for k, size in jfb.items())
            found.append(
                f"memory: {size_name(key)}: jfb's saved bytes must not depend on K: {listed}"
            )
        ratio = unrolled.get(_RATIO_AT, 0.0) / jfb.get(_RATIO_AT, math.inf)
        if not ratio >= _PROMISED:
            found.append(
                f"memory: {size_name(key)}: unrolled over jfb at K={_RATIO_AT} must be >= "
                f"{_PROMISED:g}, is {ratio:.3g}"
            )
    return found
