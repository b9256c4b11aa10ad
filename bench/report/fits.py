"""Power laws: the slope of a straight line through points in log-log coordinates."""

from __future__ import annotations

import numpy as np
import pandas as pd


def power_law_slope(x: pd.Series, y: pd.Series) -> float | None:
    """Exponent b of the least-squares fit y = a·x^b through the median y at every x.

    Medians first, so that an x measured with more seeds weighs no more than the others. None with
    fewer than two distinct positive x, where there is no slope.
    """
    points = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)}).dropna()
    points = points[(points["x"] > 0) & (points["y"] > 0)]
    medians = points.groupby("x")["y"].median()
    if len(medians) < 2:
        return None
    log_x = np.log(medians.index.to_numpy(dtype=float))
    log_y = np.log(medians.to_numpy(dtype=float))
    centred = log_x - log_x.mean()
    return float(centred @ (log_y - log_y.mean()) / (centred @ centred))
