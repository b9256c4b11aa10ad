"""Inner solvers. A new solver is one file here and one line in `SOLVERS`."""

from __future__ import annotations

from jfbcore.solvers.anderson import Anderson
from jfbcore.solvers.base import IterativeSolver, Solution, Solver, Status
from jfbcore.solvers.closed_form import ClosedForm
from jfbcore.solvers.newton import Newton
from jfbcore.solvers.picard import Picard

#: solvers by the name used on the command line
SOLVERS: dict[str, type[Solver]] = {
    "picard": Picard,
    "anderson": Anderson,
    "newton": Newton,
    "closed-form": ClosedForm,
}

__all__ = [
    "SOLVERS",
    "Anderson",
    "ClosedForm",
    "IterativeSolver",
    "Newton",
    "Picard",
    "Solution",
    "Solver",
    "Status",
]
