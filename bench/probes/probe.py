"""What every probe has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from bench.case import Case

Row = dict[str, Any]


class Hooks(NamedTuple):
    """What a probe calls as it goes.

    `measured`: when the memory on the device has been measured, because what follows has a memory
    of its own. `context`: creates the CUDA context of a CUDA case; its bytes, or None and why.
    """

    measured: Callable[[], object] = lambda: None
    context: Callable[[], tuple[int | None, str | None]] = lambda: (None, "no sampler")


#: of a job that is measured in this process, without a sampler
NO_HOOKS = Hooks()


@dataclass(frozen=True, kw_only=True)
class Probe(ABC):
    """One kind of measurement; its fields are settings, each with a default.

    `measure` writes into the record what it finds, or raises: `bench.worker` turns whatever it
    raises into a status and a reason. `record_fields`: those it fills, besides what every record
    has; `rows` is a list of flat objects, for what no field of the schema holds.
    """

    record_fields: ClassVar[tuple[str, ...]] = ("rows",)

    @property
    def name(self) -> str:
        """That of the file it is in."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """What is not at its default; a setting that is added later changes no job there is."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def timed(self, case: Case) -> bool:
        """Whether seconds are measured, which nothing may run beside."""
        return False

    @abstractmethod
    def measure(self, record: dict[str, Any], case: Case, seed: int, hooks: Hooks) -> None:
        """Measure `case` into `record`; leave `status` alone where all went well."""


def explain_column(record: dict[str, Any], column: str, reason: str) -> None:
    """Say why `column` is null in those of the record's rows in which it is, or will be because
    it is not finite.
    """
    values = [row[column] for row in record["rows"] if column in row]
    if any(value is None or not math.isfinite(value) for value in values):
        record["null_reasons"][f"rows.{column}"] = reason
