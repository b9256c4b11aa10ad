"""What the papers leave open: whether inner iterations stop at local maximisers."""

from __future__ import annotations

from matplotlib.figure import Figure

from bench.claims.cases import traced
from bench.claims.claim import Judgement, Numbers, Tables, number
from bench.claims.panels import series_figure
from bench.jobs import Job
from bench.probes.maximisers import Maximisers
from bench.probes.trace import Trace
from bench.report.style import Look, counted

NUMBER = None
TABLE = "maximisers"
CLAIM = "Does the inner iteration stop at local maximisers of the bicycle's H?"
#: |kappa| from which an interior local maximiser stands beside the global one, and up to which
LOCAL_FROM, LOCAL_TO = 0.23, 0.41
FIGURE = "beyond-local-maximisers"
CAPTION = (
    "Largest |kappa| over states and bicycles against time along held-out rollouts. Local "
    f"maximisers exist from the dotted line on, up to {LOCAL_TO:g}. Median and quartiles over the "
    "seeds."
)
_POLICIES = {"initial": Look("#0072B2", "", (4, 1.5)), "trained": Look("#D55E00", "", "")}


def jobs(quick: bool) -> list[Job]:
    """The traced runs of bicycles on the scaled map and on the released recipe; none quickly."""
    found = []
    for job in [] if quick else traced(quick):
        assert isinstance(job.probe, Trace)
        asked = job.case.map == "scaled" or job.probe.recipe == "released"
        if job.case.problem == "bicycle" and asked:
            probe = Maximisers(recipe=job.probe.recipe)
            found.append(Job(case=job.case, probe=probe, seed=job.seed))
    return found


def judge(data: Tables) -> Judgement:
    table = data["maximisers"]
    groups = table.groupby(["run", "policy", "start"], sort=False)
    local = groups["local_share"].mean()
    found = local[local > 0.0]
    flown = table[(table["policy"] == "trained") & (table["start"] == "cold")]
    kappas = flown.groupby("run", sort=False)["kappa_max"].max()
    seeds = counted(table["seed"].nunique(), "seed")
    return Judgement(
        f"at most {number(100 * local.max())} % of the steering angles; largest |kappa| of the "
        f"trained policies: {'; '.join(f'{run} {number(k)}' for run, k in kappas.items())}",
        "no" if found.empty else f"in {len(found)} of {len(local)} measurements",
        f"median over {seeds}; kappa = p_psi v / l. An interior "
        f"local maximiser stands beside a global one on the steering bound for |kappa| between "
        f"{LOCAL_FROM:g} and {LOCAL_TO:g}. Every steering angle that met its tolerance is held "
        "against the best of a grid over the whole range, at the initial and the trained policy, "
        "from a cold and from a warm start. An angle that did not is no maximiser of any kind. "
        "The last column flies the same costates with the global maximiser",
        tables=(
            Numbers.of(
                "Steering angles against the global maximiser",
                ("run", "policy", "start", "largest |kappa|", "local maximisers [%]",
                 "above tolerance [%]", "cost", "with the global maximiser"),
                (
                    (*key, number(part["kappa_max"].max()),
                     number(100 * part["local_share"].mean()),
                     number(100 * part["unconverged_share"].mean()),
                     number(part["cost"].median(), 4), number(part["global_cost"].median(), 4))
                    for key, part in groups
                ),
            ),
        ),
    )  # fmt: skip


def figure(data: Tables) -> Figure | None:
    """A panel per run: the largest |kappa| against time, initial and trained."""
    table = data["maximisers"]
    return series_figure(
        table[table["start"] == "cold"], "time", "kappa_max", "policy", _POLICIES,
        {name: f"{name} policy" for name in _POLICIES}, "time t", "largest |kappa|",
        keys=["problem", "n_agents", "variant"], limit=LOCAL_FROM,
    )  # fmt: skip
