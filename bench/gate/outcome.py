"""What a gate says, and that it could not say anything."""

from __future__ import annotations

import enum


class Outcome(enum.IntEnum):
    """Exit codes of `bench gate`. ERROR: the gate itself failed and says nothing on the code.
    UNDECIDED: of time, where no case is slower but an interval still holds the threshold."""

    PASS = 0
    REGRESSION = 1
    USAGE = 2
    MISSING = 3
    ERROR = 4
    UNDECIDED = 5


class GateError(Exception):
    """The gate could not do its work: a process of its own crashed or hangs."""
