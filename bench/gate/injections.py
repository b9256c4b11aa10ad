"""The regressions that the self-test injects, as edits of the source text.

Each is the smallest honest version of a mistake that someone makes: it runs, it computes the same
or nearly the same cost, and only the gate is there to object. An edit whose anchor is not found
exactly once fails loudly; a test applies all of them, so that one drifting away fails there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Edit:
    """In `file` (from the tree's root), `old`, found exactly once, becomes `new`."""

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Edit the copy under `tree`; ValueError where the anchor is not there exactly once."""
        path = tree / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"injection anchor must be in {self.file} once, found {found} times: "
                f"{self.old.strip().splitlines()[0]!r}; adapt bench/gate/injections.py"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A known regression. `quantities`: the gated ones of which it must move one; none for what
    shows in time alone. `cases`: beginnings of the ids in the gate preset that must each show it.
    """

    name: str
    what: str
    edits: tuple[Edit, ...]
    quantities: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()

    def apply(self, tree: Path) -> None:
        for edit in self.edits:
            edit.apply(tree)


_BYTES = ("peak live bytes", "saved bytes")
_RATE = (
    "    rate = problem.dynamics(t, z, control) if hamiltonian is None "
    "else hamiltonian.dynamics(control)\n"
)


def _sleep(share: float) -> Edit:
    """Sleep `share` of what every step computes, on this machine at this moment.

    Of its processor time: a share of the wall-clock would grow with a neighbour's load, and the
    slowdown to be found with it.
    """
    return Edit(
        file="bench/measure.py",
        old="""        cost.backward()
        self.synchronise()
        return cost.item()
""",
        new=f"""        cost.backward()
        self.synchronise()
        time.sleep({share} * (time.thread_time() - began))
        return cost.item()
""",
    )


_CLOCK = Edit(
    file="bench/measure.py",
    old="""        self.clear()
        cost = self.forward()
        cost.backward()
""",
    new="""        began = time.thread_time()
        self.clear()
        cost = self.forward()
        cost.backward()
""",
)

_FIXED = "quadrotor-n6-jfb-scaled-picard-k50-"
_TO_TOLERANCE = "quadrotor-n6-jfb-scaled-picard-max500-"
_CONSUMPTION = "consumption-n5-jfb-scaled-picard-max500-"

DETERMINISTIC = (
    Injection(
        name="retain",
        what="an intermediate of every time step kept in the graph",
        edits=(
            Edit(
                file="jfbcore/rollout.py",
                old=_RATE,
                new="    control = control * control.exp() / control.exp().detach()\n" + _RATE,
            ),
        ),
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="tracked",
        what="one more tracked iteration in jfb",
        edits=(
            Edit(
                file="jfbcore/jfb.py",
                old="for _ in range(self.tracked):",
                new="for _ in range(self.tracked + 1):",
            ),
        ),
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="dense",
        what="a dense (n, n) Jacobian per sample, built and kept",
        edits=(
            Edit(
                file="jfbcore/rollout.py",
                old=_RATE,
                new=_RATE
                + """    jacobian = torch.eye(z.shape[1], dtype=z.dtype).expand(z.shape[0], -1, -1)
    rate = torch.einsum("bij,bj->bi", jacobian.clone(), rate)
""",
            ),
        ),
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="tolerance",
        what="an inner tolerance looser by a factor of 100",
        edits=(
            Edit(
                file="bench/build.py",
                old="case.tolerance * problem.gradient_scale",
                new="100 * case.tolerance * problem.gradient_scale",
            ),
        ),
        quantities=("residual",),
        # Not the consumption case: its map lands within the tolerance in one step either way.
        cases=(_TO_TOLERANCE,),
    ),
    Injection(
        name="iterations",
        what="a damped map: the same fixed point, reached in more iterations",
        edits=(
            Edit(
                file="jfbcore/maps.py",
                old="step = hamiltonian.curvature_scaling(u) * r\n",
                new="step = 0.7 * hamiltonian.curvature_scaling(u) * r\n",
            ),
        ),
        quantities=("mean iterations",),
        cases=(_TO_TOLERANCE, _CONSUMPTION),
    ),
    Injection(
        name="biased",
        what="a gradient without half of the control's derivative",
        edits=(
            Edit(
                file="jfbcore/jfb.py",
                old="            control = fixed_point_map(control)\n",
                new="            applied = fixed_point_map(control)\n"
                "            control = applied.detach() + 0.5 * (applied - applied.detach())\n",
            ),
        ),
        quantities=("gradient cosine",),
        cases=(_FIXED, _TO_TOLERANCE),
    ),
)
#: shows in time, at the case with many agents
LOOP = Injection(
    name="loop",
    what="a Python loop over agents around the dynamics",
    edits=(
        Edit(
            file="jfbcore/rollout.py",
            old=_RATE,
            new="""    parts = [
        problem.dynamics(t, z, control).chunk(problem.n_agents, 1)[agent]
        for agent in range(problem.n_agents)
    ]
    rate = torch.cat(parts, 1)
""",
        ),
    ),
)
SLEEP_10 = Injection(
    name="sleep 10 %", what="a sleep of 10 % of a step", edits=(_sleep(0.1), _CLOCK)
)
SLEEP_20 = Injection(
    name="sleep 20 %", what="a sleep of 20 % of a step", edits=(_sleep(0.2), _CLOCK)
)
TIMED = (LOOP, SLEEP_10, SLEEP_20)
INJECTIONS = (*DETERMINISTIC, *TIMED)
