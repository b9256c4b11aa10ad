"""The paper's claims, and what it leaves open: one claim a file, found by being here.

A claim's module has

- NUMBER, the paper's, or None for a question that goes beyond it; CLAIM, in words, and where it has
  a number CRITERION, set before measuring; TABLE, the one it cannot be judged without; FIGURE, the
  stem of its figure's file; CAPTION;
- `jobs(quick)`: what is measured;
- `judge(tables)`: the `Judgement`, a pure function of the tables of `bench.claims.tables`, one for
  each probe among the jobs, that have any rows;
- `figure(tables)`: drawn from the same, or None where there is nothing to draw;
- where the quick check must hold on every machine, `failures(tables)`: a line for what does not.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def discover() -> list[ModuleType]:
    """The claims by number, then the open questions by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"bench.claims.{name}") for name in sorted(names)]
    claims = [module for module in modules if hasattr(module, "CLAIM")]
    return sorted(claims, key=lambda claim: claim.NUMBER or len(claims))
