"""What the papers leave open: whether inner iterations stop at local maximisers."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims.cases import traced
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import band, panels
from bench.jobs import Job
from bench.probes.maximisers import Maximisers
from bench.probes.trace import Trace
from bench.report.figures.canvas import handle
from bench.report.style import Look

NUMBER = None
TABLE = "maximisers"
CLAIM = "Does the inner iteration stop at local maximisers of the bicycle's H?"
FIGURE = "beyond-local-maximisers"
CAPTION = (
    "Largest |kappa| over states and bicycles against time along held-out rollouts. Shaded: "
    "where local maximisers exist. Median and quartiles over the seeds."
)
#: |kappa| from which an interior local maximiser stands beside the global one, and up to which
LOCAL_FROM, LOCAL_TO = 0.23, 0.41
_POLICIES = {"initial": Look("#0072B2", "", (4, 1.5)), "trained": Look("#D55E00", "", "")}
#: costs further apart than this are told apart in a finding
_APART = 0.05


def jobs(quick: bool) -> list[Job]:
    """The traced runs of bicycles on the scaled map and on the released recipe; none quickly."""
    found = []
    for job in [] if quick else traced(quick):
        assert isinstance(job.probe, Trace)
        kind = job.probe.recipe if job.probe.recipe == "released" else job.case.map
        if job.case.problem == "bicycle" and kind in ("scaled", "released"):
            probe = Maximisers(recipe=job.probe.recipe, states=job.probe.states)
            found.append(Job(case=job.case, probe=probe, seed=job.seed))
    return found


def judge(data: Tables) -> Judgement:
    table = data["maximisers"]
    trained = table[table["policy"] == "trained"]
    local = table.groupby(["run", "policy", "start"], sort=False)["local_share"].mean()
    found = local[local > 0.0]
    kappas = trained[trained["start"] == "cold"].groupby("run", sort=False)["kappa_max"].max()
    seeds = table["seed"].nunique()
    return Judgement(
        f"at most {number(100 * local.max())} % of the steering angles; largest |kappa| of the "
        f"trained policies: {'; '.join(f'{run} {number(k)}' for run, k in kappas.items())}",
        "no" if found.empty else f"in {len(found)} of {len(local)} measurements",
        f"median over {seeds} seed{'s' if seeds > 1 else ''}; kappa = p_psi v / l. An interior "
        f"local maximiser stands beside a global one on the steering bound for |kappa| between "
        f"{LOCAL_FROM:g} and {LOCAL_TO:g}. Every steering angle that met its tolerance is held "
        "against the best of a grid over the whole range, at the initial and the trained policy, "
        "from a cold and from a warm start",
        (*_unconverged(trained), *_costs(trained)),
        (
            Numbers.of(
                "Steering angles against the global maximiser",
                ("run", "policy", "start", "largest |kappa|", "local maximisers [%]",
                 "above tolerance [%]", "cost", "with the global maximiser"),
                _rows(table),
            ),
        ),
    )  # fmt: skip


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    for (run, policy, start), part in table.groupby(["run", "policy", "start"], sort=False):
        yield (
            run, policy, start,
            number(part["kappa_max"].max()),
            number(100 * part["local_share"].mean()),
            number(100 * part["unconverged_share"].mean()),
            number(part["cost"].median(), 4),
            number(part["global_cost"].median(), 4),
        )  # fmt: skip


def _unconverged(trained: pd.DataFrame) -> Iterable[str]:
    cold = trained[trained["start"] == "cold"]
    for run, share in cold.groupby("run", sort=False)["unconverged_share"].mean().items():
        if share > 0.0:
            yield (
                f"{run}: {number(100 * share)} % of the trained policy's steering angles did not "
                "meet their tolerance and are no maximisers of any kind."
            )


def _costs(trained: pd.DataFrame) -> Iterable[str]:
    costs = trained.groupby(["run", "start"], sort=False)[["cost", "global_cost"]].median()
    for (run, start), (flown, best) in costs.iterrows():
        if abs(flown - best) > _APART * abs(best):
            yield (
                f"{run}, {start} start: the trained policy flies at cost {number(flown)}; with the "
                f"global maximiser of the same H it would be {number(best)}."
            )


def figure(data: Tables) -> Figure | None:
    """A panel per run: the largest |kappa| against time, initial and trained."""
    table = data["maximisers"]
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
