"""Reference optima: what the best open-loop control costs from each held-out initial state.

`cache` needs neither CasADi nor a solver; `ipopt` imports CasADi.
"""

from __future__ import annotations

from bench.reference.cache import (
    Reference,
    StaleReference,
    discretisation_hash,
    load_reference,
    optimality_gap,
    save_reference,
)

__all__ = [
    "Reference",
    "StaleReference",
    "discretisation_hash",
    "load_reference",
    "optimality_gap",
    "save_reference",
]
