"""Reference optima on disk: <problem>-<n_agents>.json, in a folder that `bench where` names.

A cache is good for one discretisation of one problem only. The file carries a hash of everything
that defines it, and a file whose hash differs is refused, never silently used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from bench import places
from bench.records import RecordError, read_object, write_json
from bench.reference.agent import parameters
from bench.reference.solution import Solution
from jfbcore import held_out
from jfbcore.problems import Consumption, Liquidation, Problem

SCHEMA_VERSION = 1
#: raise it whenever a formula of a problem changes while its parameters do not
FORMULA_VERSION = 1
#: solvers' own words for having ended at an optimum
CONVERGED = ("Solve_Succeeded", "no agent gains", "converged", "closed form")


class StaleReference(RuntimeError):  # noqa: N818 -- named for what it says, not for its base
    """A cached reference belongs to another discretisation or another schema."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Costs of the first held-out states; None where the solver found none.

    `starts`: starting points each state's best was chosen from. `kkt_residuals`: violation of the
    first-order conditions, see `Program`; `lower_bounds`: of the optimal cost, see `bound`. Their
    entries are None where nothing is known; files of before have none of the three.
    """

    problem: str
    n_agents: int
    #: ipopt, transcription, best-response, closed-form, policy; joined by + where states differ
    method: str
    label: str  # optimal, locally optimal or best known
    discretisation: str  # sha256, see `discretisation_hash`
    costs: tuple[float | None, ...]
    statuses: tuple[str, ...]
    seconds: tuple[float, ...]
    versions: dict[str, str]
    starts: tuple[int | None, ...] = ()
    kkt_residuals: tuple[float | None, ...] = ()
    lower_bounds: tuple[float | None, ...] = ()

    @property
    def solved(self) -> list[float]:
        """The costs that exist."""
        return [cost for cost in self.costs if cost is not None]

    @property
    def converged(self) -> list[bool]:
        """Of every state, whether its solver ended at an optimum and not at a limit."""
        return [
            cost is not None and status in CONVERGED
            for cost, status in zip(self.costs, self.statuses, strict=True)
        ]

    def better(self, other: Reference) -> Reference:
        """The better of both in every state; states that one lacks are the other's.

        A lower cost is better, and at equal cost the one that converged and whose KKT residual is
        known. Lower bounds hold whatever they were found with, and the greater one counts.
        """
        rows: list[tuple] = []
        methods: list[str] = []
        nothing = (None,) * len(_ROWS)
        for ours, theirs in zip_longest(self._rows(), other._rows(), fillvalue=nothing):
            own = _rank(ours) <= _rank(theirs)
            bounds = [bound for bound in (ours[-1], theirs[-1]) if bound is not None]
            rows.append((*(ours if own else theirs)[:-1], max(bounds, default=None)))
            methods += (self if own else other).method.split("+")
        while rows and rows[-1][0] is None:
            rows.pop()  # nothing is known of it, and nobody looks for it
        chosen: dict[str, Any] = dict(zip(_ROWS, map(tuple, zip(*rows, strict=True)), strict=True))
        method = "+".join(dict.fromkeys(methods))
        labels = {ref.label for ref in (self, other) if set(ref.method.split("+")) & set(methods)}
        chosen |= {
            "method": method,
            "label": "best known" if "best known" in labels else max(labels, key=len),
            "versions": self.versions | other.versions,
        }
        return replace(self, **chosen)

    def _rows(self) -> zip_longest[tuple]:
        """Of each state the entries in the order of `_ROWS`; None where there are none."""
        return zip_longest(*(getattr(self, name) for name in _ROWS))


#: fields of a reference that have one entry a state
_ROWS = ("costs", "statuses", "seconds", "starts", "kkt_residuals", "lower_bounds")


def _rank(row: tuple) -> tuple:
    """Order of one state's entries, the best first; costs equal to eight digits are equal."""
    cost, status, residual = row[0], row[1], row[_ROWS.index("kkt_residuals")]
    digits = math.inf if cost is None else float(f"{cost:.8g}")
    return (digits, status not in CONVERGED, residual is None, status is None)


def discretisation_hash(problem: Problem) -> str:
    """sha256 over the class, size, every parameter, the grid, the held-out seed and formulas."""
    content = {
        "class": type(problem).__name__,
        "n_agents": problem.n_agents,
        "parameters": parameters(problem),  # t_final and n_steps are among them
        "held_out_seed": held_out.SEED,
        "formula_version": FORMULA_VERSION,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def label_of(problem: Problem, method: str) -> str:
    """What the method's answer may be called: optimal, locally optimal or best known."""
    # Beyond one bicycle IPOPT sees the interaction without its cutoff: what it finds is optimal
    # for a neighbouring problem, and its cost in this one is a bound.
    if method == "closed-form":
        return "optimal"
    if method != "ipopt" or (problem.name == "bicycle" and problem.n_agents > 1):
        return "best known"
    # Linear habits and a concave utility make a convex program, and so does a liquidation.
    linear = isinstance(problem, Consumption) and problem.eta == problem.theta == 1.0
    return "optimal" if linear or isinstance(problem, Liquidation) else "locally optimal"


def reference_path(problem: Problem, directory: Path | str | None = None) -> Path:
    """The file with the reference of `problem` in `directory`; by default where it is read."""
    name = f"{problem.name}-{problem.n_agents}.json"
    return (places.references(name) if directory is None else Path(directory)) / name


def make_reference(
    problem: Problem, method: str, solutions: Sequence[Solution], first: int = 0
) -> Reference:
    """Solutions of held-out states in order, from number `first` on, as a reference.

    Nothing is known of the states before.
    """
    unknown = Solution(status="unknown", solved=False)
    solutions = [unknown] * first + list(solutions)
    packages = ("torch",) if method in ("transcription", "closed-form") else ("torch", "casadi")
    return Reference(
        problem=problem.name,
        n_agents=problem.n_agents,
        method=method,
        label=label_of(problem, method),
        discretisation=discretisation_hash(problem),
        costs=tuple(s.cost if s.solved and math.isfinite(s.cost) else None for s in solutions),
        statuses=tuple(s.status for s in solutions),
        seconds=tuple(round(s.seconds, 4) for s in solutions),
        starts=tuple(s.starts for s in solutions),
        kkt_residuals=tuple(s.kkt_residual for s in solutions),
        lower_bounds=tuple(s.lower_bound for s in solutions),
        versions={name: importlib.metadata.version(name) for name in packages},
    )


def save_reference(reference: Reference, problem: Problem, directory: Path | str) -> Path:
    """Write the file whole or not at all, and return its path."""
    path = reference_path(problem, directory)
    write_json(path, {"schema_version": SCHEMA_VERSION} | asdict(reference))
    return path


def load_reference(problem: Problem, directory: Path | str | None = None) -> Reference | None:
    """The cached reference of `problem`; None without a file.

    Raises StaleReference when the file belongs to other parameters or another schema, ValueError
    when it is damaged.
    """
    path = reference_path(problem, directory)
    try:
        content = read_object(path)
    except RecordError as error:
        raise ValueError(
            f"{path} is not a reference: {error.faults[0]}; delete it or make it anew"
        ) from error
    if content is None:
        return None
    checks = (
        ("schema version", content.pop("schema_version", None), SCHEMA_VERSION),
        ("discretisation hash", content.get("discretisation"), discretisation_hash(problem)),
    )
    for what, found, wanted in checks:
        if found != wanted:
            raise StaleReference(
                f"{path} is stale: its {what} is {found}, this problem's is {wanted}; renew it "
                f"with `python -m bench reference --problem {problem.name} "
                f"--agents {problem.n_agents}`"
            )
    try:
        for name in _ROWS:
            content[name] = tuple(content.get(name) or ())
        reference = Reference(**content)
        usable = [abs(float(cost)) for cost in reference.solved]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is incomplete: {error}; delete it or make it anew") from error
    if not usable or not all(0 < cost < math.inf for cost in usable):
        raise ValueError(f"{path} has no costs to compare with; delete it or make it anew")
    return reference


def optimality_gap(policy_costs: Tensor | Sequence[float], reference: Reference) -> float:
    """Mean over held-out states of (J_policy - J_ref) / |J_ref|.

    `policy_costs` belong to the first held-out states, in order; states beyond the shorter of
    the two, and states without a reference, are left out. NaN and infinity in a policy's cost
    carry over. Raises ValueError when no state is left.
    """
    costs = policy_costs.tolist() if isinstance(policy_costs, Tensor) else list(policy_costs)
    gaps = [
        (cost - best) / abs(best)
        for cost, best in zip(costs, reference.costs, strict=False)
        if best is not None
    ]
    if not gaps:
        raise ValueError(
            f"`policy_costs` has {len(costs)} states and the reference for {reference.problem} "
            f"with {reference.n_agents} agents {len(reference.solved)} solved ones: none in common"
        )
    return math.fsum(gaps) / len(gaps)
