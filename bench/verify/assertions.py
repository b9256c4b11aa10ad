"""The deterministic parts of the quick scope, which must hold on every machine."""

from __future__ import annotations

from bench.verify.claim import Tables

#: the steps of the quick traces at which every angle is looked at
STEPS = (0, 50)
_CONTRACTING = ("quadrotor", "consumption")
_RATIO, _RATIO_AT = 10.0, 500


def failures(data: Tables) -> list[str]:
    """One line for each assertion that does not hold; data that is not there does not hold."""
    return [*_contractivity(data), *_alignment(data), *_memory(data)]


def _contractivity(data: Tables) -> list[str]:
    if "traces" not in data:
        return ["contractivity: no traces"]
    traces = data["traces"]
    found = []
    for problem in _CONTRACTING:
        rates = traces[(traces["problem"] == problem) & (traces["variant"] == "scaled")]["rate_max"]
        # Written so that what is not a number fails.
        if not (len(rates) and bool((rates < 1.0).all())):
            worst = f"{rates.max():.4g}" if len(rates) else "not measured"
            found.append(f"contractivity: {problem}, scaled map: |dT/du| must be < 1, is {worst}")
    return found


def _alignment(data: Tables) -> list[str]:
    if "traces" not in data:
        return ["alignment: no traces"]
    traces = data["traces"][data["traces"]["variant"] != "released"]
    found = []
    for run, rows in traces.groupby("run", sort=False):
        for step in STEPS:
            angles = rows[rows["step"] == step]["angle_max"]
            if not (len(angles) and bool((angles < 90.0).all())):
                worst = f"{angles.max():.4g}" if len(angles) else "not measured"
                found.append(
                    f"alignment: {run}, step {step}: the angle on every minibatch must be < 90 "
                    f"degrees, is {worst}"
                )
    return found


def _memory(data: Tables) -> list[str]:
    if "memory" not in data:
        return ["memory: not measured"]
    found = []
    for (problem, n), rows in data["memory"].groupby(["problem", "n_agents"], sort=False):
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
