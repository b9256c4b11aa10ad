"""Figures of the questions that the papers leave open."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.canvas import handle
from bench.report.style import Look
from bench.verify.open_questions import LOCAL_FROM, LOCAL_TO
from bench.verify.panels import band, count_axis, panels

_POLICIES = {"initial": Look("#0072B2", "", (4, 1.5)), "trained": Look("#D55E00", "", "")}


def maximiser_figure(table: pd.DataFrame) -> Figure:
    """A panel per run: the largest |kappa| against time, initial and trained."""
    table = table[table["start"] == "cold"]

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        axes.axhspan(LOCAL_FROM, LOCAL_TO, color="0.85", linewidth=0)
        for name, style in _POLICIES.items():
            band(axes, part[part["policy"] == name], "time", "kappa_max", style)
        axes.set_yscale("log")
        axes.set_xlabel("time t")
        axes.set_ylabel("largest |kappa|")

    handles = [handle(style, f"{name} policy") for name, style in _POLICIES.items()]
    return panels(table, ["problem", "n_agents", "variant"], paint, handles, 4)


def mean_field_figure(table: pd.DataFrame) -> Figure:
    """A panel per problem: cost against the number of agents."""
    style = Look("#0072B2", "o", "")
    # Bicycles, goods and assets add up; quadrotors' costs are a mean already.
    per_agent = ~table["problem"].str.endswith("quadrotor")
    table = table[table["n_agents"] > 1].assign(seed=0)
    table["shown"] = table["cost"].where(~per_agent, table["cost"] / table["n_agents"])

    def paint(axes: Axes, part: pd.DataFrame) -> None:
        band(axes, part, "n_agents", "shown", style)
        count_axis(axes, part["n_agents"])
        axes.set_xlabel("agents N")
        axes.set_ylabel("cost" if part["problem"].iloc[0].endswith("quadrotor") else "cost / N")

    return panels(table, ["problem"], paint, [handle(style, "best known")], 3)
