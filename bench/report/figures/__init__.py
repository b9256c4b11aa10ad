"""The report's figures: each module draws one kind and returns `Drawing`s."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.report.figures.canvas import Drawing, theme
from bench.report.figures.contraction import contraction_figure
from bench.report.figures.convergence import convergence_figures
from bench.report.figures.crossings import crossing_figure
from bench.report.figures.headline import headline_figure
from bench.report.figures.profiles import profile_figures
from bench.report.figures.residuals import residual_figures
from bench.report.figures.roofline import roofline_figures
from bench.report.figures.scaling import agents_figures, memory_iterations_figures
from bench.report.load import Run

__all__ = ["Drawing", "draw_all", "draw_others", "theme"]


def draw_all(cases: pd.DataFrame, curves: pd.DataFrame, gaps: pd.DataFrame) -> list[Drawing]:
    """Every figure the data allow, in the order of the report."""
    with theme():
        return [
            *headline_figure(cases, gaps),
            *memory_iterations_figures(cases),
            *agents_figures(cases),
            *residual_figures(cases),
            *convergence_figures(curves, cases),
            *profile_figures(cases, curves),
            *crossing_figure(cases, curves),
        ]


def draw_others(runs: Sequence[Run]) -> list[Drawing]:
    """Figures of what other commands left: the bias of gradients, the profile of a step."""
    with theme():
        return [*contraction_figure(runs), *roofline_figures(runs)]
