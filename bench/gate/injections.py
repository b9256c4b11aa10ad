"""The regressions that the self-test injects, as edits of the source text.

Each is the smallest honest version of a mistake that someone makes: it runs, it computes the same
or nearly the same cost, and only the gate is there to object. An edit whose anchor is not found
exactly once fails loudly; a test applies all of them, so that one drifting away fails there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A known regression: in `file` (from the tree's root), `old`, found exactly once, becomes
    `new`. `quantities`: the gated ones of which it must move one; none for what shows in time
    alone. `cases`: beginnings of the ids in the gate preset that must each show it.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    quantities: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()

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


_BYTES = ("peak live bytes", "saved bytes")
_RATE = (
    "    rate = problem.dynamics(t, z, control) if hamiltonian is None "
    "else hamiltonian.dynamics(control)\n"
)
_STEP = """        self.clear()
        cost = self.forward()
        cost.backward()
        self.synchronise()
"""


def _slower(percent: int) -> Injection:
    """Every step computes for `percent` of its own processor time more.

    Of processor time: a share of the wall-clock would grow with a neighbour's load. By a loop: a
    sleep of a tenth of a millisecond takes half as long again.
    """
    return Injection(
        name=f"{percent} % slower",
        what=f"a loop of {percent} % of a step's processor time",
        file="bench/measure.py",
        old=_STEP,
        new="        began = time.thread_time()\n"
        + _STEP
        + f"        end = time.thread_time() + {percent / 100} * (time.thread_time() - began)\n"
        + "        while time.thread_time() < end:\n            pass\n",
    )


_FIXED = "quadrotor-n6-jfb-scaled-picard-k50-"
_TO_TOLERANCE = "quadrotor-n6-jfb-scaled-picard-max500-"
_CONSUMPTION = "consumption-n5-jfb-scaled-picard-max500-"

DETERMINISTIC = (
    Injection(
        name="retain",
        what="an intermediate of every time step kept in the graph",
        file="jfbcore/rollout.py",
        old=_RATE,
        new="    control = control * control.exp() / control.exp().detach()\n" + _RATE,
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="tracked",
        what="one more tracked iteration in jfb",
        file="jfbcore/jfb.py",
        old="for _ in range(self.tracked):",
        new="for _ in range(self.tracked + 1):",
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="dense",
        what="a dense (n, n) Jacobian per sample, built and kept",
        file="jfbcore/rollout.py",
        old=_RATE,
        new=_RATE
        + """    jacobian = torch.eye(z.shape[1], dtype=z.dtype).expand(z.shape[0], -1, -1)
    rate = torch.einsum("bij,bj->bi", jacobian.clone(), rate)
""",
        quantities=_BYTES,
        cases=(_FIXED, _TO_TOLERANCE),
    ),
    Injection(
        name="tolerance",
        what="an inner tolerance looser by a factor of 100",
        file="bench/build.py",
        old="case.tolerance * problem.gradient_scale",
        new="100 * case.tolerance * problem.gradient_scale",
        quantities=("residual",),
        # Not the consumption case: its map lands within the tolerance in one step either way.
        cases=(_TO_TOLERANCE,),
    ),
    Injection(
        name="iterations",
        what="a damped map: the same fixed point, reached in more iterations",
        file="jfbcore/maps.py",
        old="step = hamiltonian.curvature_scaling(u) * r\n",
        new="step = 0.7 * hamiltonian.curvature_scaling(u) * r\n",
        quantities=("mean iterations",),
        cases=(_TO_TOLERANCE, _CONSUMPTION),
    ),
    Injection(
        name="biased",
        what="a gradient without half of the control's derivative",
        file="jfbcore/jfb.py",
        old="            control = fixed_point_map(control)\n",
        new="            applied = fixed_point_map(control)\n"
        "            control = applied.detach() + 0.5 * (applied - applied.detach())\n",
        quantities=("gradient cosine",),
        cases=(_FIXED, _TO_TOLERANCE),
    ),
)
#: shows in time, at the case with many agents
LOOP = Injection(
    name="loop",
    what="a Python loop over agents around the dynamics",
    file="jfbcore/rollout.py",
    old=_RATE,
    new="""    parts = [
        problem.dynamics(t, z, control).chunk(problem.n_agents, 1)[agent]
        for agent in range(problem.n_agents)
    ]
    rate = torch.cat(parts, 1)
""",
)
SLOWER = {percent: _slower(percent) for percent in (3, 5, 7, 10, 20)}
INJECTIONS = (*DETERMINISTIC, LOOP, *SLOWER.values())
