"""Files of people who use the suite from outside: a problem, a method, a policy."""

from __future__ import annotations

from pathlib import Path

from bench.environment import ROOT

#: A problem in a file, four formulas and its sizes: the one that the documentation shows.
DOUBLE_INTEGRATOR = (ROOT / "docs" / "examples" / "mine.py").read_text(encoding="utf-8")
#: A Hamiltonian of its own for that problem, to append: the derived one with something changed.
OVERRIDE = """
    def hamiltonian(self, t, z, p):
        return Changed(self, t, z, p)


from jfbcore.hamiltonian import DerivedHamiltonian


class Changed(DerivedHamiltonian):
"""

#: A method in a file: a gradient estimator, a setting of it, a policy, and a whole method.
METHODS = '''"""Methods of one's own."""

from dataclasses import dataclass

import torch

from baselines import EstimatorMethod
from jfbcore.jfb import GradientEstimator
from jfbcore.policy import Decision, Policy
from jfbcore.solvers import Solution


@dataclass(frozen=True)
class Blend(GradientEstimator):
    """JFB and its two-step form, mixed."""

    share: float = 0.5

    def attach(self, fixed_point_map, solver, initial):
        solved = solver.solve(fixed_point_map, initial)
        if not torch.is_grad_enabled():
            return solved
        one = fixed_point_map(solved.control)
        control = one + self.share * (fixed_point_map(one) - one)
        return Solution(control, solved.residual, solved.iterations, solved.tolerance)


quarter = Blend(0.25)
method = EstimatorMethod(Blend(0.75))


class Linear(Policy):
    """u = A z + b, without a Hamiltonian."""

    def __init__(self, problem):
        super().__init__()
        self.problem = problem
        self.gain = torch.nn.Linear(problem.state_dim, problem.control_dim, dtype=problem.dtype)

    def forward(self, t, z, warm_start=None):
        return Decision(self.gain(z))
'''


def write(folder: Path, name: str, content: str) -> Path:
    """`content` in the file `name` of `folder`."""
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def install(folder: Path) -> None:
    """A package with an entry point in every group, as an installer would leave it there."""
    package = folder / "swarm_extras"
    package.mkdir()
    write(package, "__init__.py", "")
    write(package, "problems.py", DOUBLE_INTEGRATOR)
    write(package, "methods.py", METHODS)
    write(
        package,
        "inner.py",
        "from jfbcore.maps import ScaledMap\nfrom jfbcore.solvers import Picard\n\n"
        "careful = ScaledMap(damping=0.9)\nPatient = Picard\n",
    )
    info = folder / "swarm_extras-1.2.dist-info"
    info.mkdir()
    write(info, "METADATA", "Metadata-Version: 2.1\nName: swarm-extras\nVersion: 1.2\n")
    write(
        info,
        "entry_points.txt",
        "[jfbbench.problems]\ndouble-integrator = swarm_extras.problems:DoubleIntegrator\n"
        "broken = swarm_extras.nowhere:Missing\n"
        "[jfbbench.methods]\nblend = swarm_extras.methods:Blend\n"
        "[jfbbench.maps]\ncareful = swarm_extras.inner:careful\n"
        "[jfbbench.solvers]\npatient = swarm_extras.inner:Patient\n",
    )
