"""What is declared of a field of a record; `bench.record` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["integer", "number", "string", "boolean", "object", "array"]


@dataclass(frozen=True)
class Gate:
    """How far `bench gate` lets a field move for the worse: `relative` and `absolute` add up.

    Both 0 is exact, in both directions. `name` is what the baseline and the gate's table say.
    """

    name: str
    relative: float = 0.0
    absolute: float = 0.0
    larger_is_worse: bool = True


@dataclass(frozen=True)
class Field:
    """One field of a record.

    `path`: dotted, "[]" for the entries of a list. `column`: its name in tables of records;
    None makes one of the path. `heading`: its name above a column that people read.
    `minimum`, `maximum`, `above` (an excluded minimum), `choices`: what is allowed. `values`: the
    type of the values of an object with free keys. `since`: the schema version from
    which on every record has it; those of earlier versions may lack it.
    """

    path: str
    meaning: str = ""
    type: Type = "object"
    unit: str = ""
    heading: str = ""
    column: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    values: Type | None = None
    nullable: bool = True
    since: int = 2
    gate: Gate | None = None

    @property
    def name(self) -> str:
        """The last part of the path; "[]" for the entries of a list."""
        return "[]" if self.path.endswith("[]") else self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The path of what holds it, "" for the record itself."""
        return self.path[:-2] if self.name == "[]" else self.path.rpartition(".")[0]

    @property
    def in_tables(self) -> bool:
        """Whether it is a column of the table with one row per record."""
        return self.type not in ("object", "array") and "[]" not in self.path

    @property
    def column_name(self) -> str:
        """Its column where it has one: the path without `case.` and with underscores for dots."""
        return self.column or self.path.removeprefix("case.").replace(".", "_")
