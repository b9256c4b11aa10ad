"""The proof of the gate: known regressions injected into a copy of the source, and detected."""
