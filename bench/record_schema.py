"""What the declared fields decide: faults of a record, its JSON Schema, the documentation's table.

`python -m bench.record_schema` writes the schema file again, `python -m bench.documents` the table.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.record import SCHEMA_VERSION, parts
from bench.record_field import Field, Type

#: shipped with the package
SCHEMA_FILE = Path(__file__).with_name("record.schema.json")
#: what a table's column of whole numbers holds
_LARGEST = 2**63 - 1
_WORDS: dict[Type, str] = {
    "integer": "a whole number",
    "number": "a finite number",
    "string": "text",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
}


def faults(record: Any) -> Iterator[str]:
    """What is wrong with `record`: per fault a line that names the field and what is allowed.

    Fields that are not declared are no fault: a later version may have them.
    """
    if not isinstance(record, Mapping):
        yield f"{_shown(record)} is not a record, which is an object"
        return
    version = record.get("schema_version", 1)
    if wrong := list(_at(parts()[0], version, "schema_version", 1)):
        yield from wrong  # nobody knows what such a record should hold
    else:
        # What a probe other than a training step leaves out is no fault.
        yield from _inside("", record, "", 1 if record.get("probe") else version)


def _inside(path: str, value: Any, place: str, version: int) -> Iterator[str]:
    """The faults of the fields declared below `path` in the object `value`, found at `place`."""
    lacking = [f.name for f in parts(path) if f.since <= version and f.name not in value]
    if lacking:
        yield f"{place or 'the record'} lacks {', '.join(lacking)}"
    for field in parts(path):
        if field.name in value:
            where = f"{place}.{field.name}" if place else field.name
            yield from _at(field, value[field.name], where, version)


def _at(field: Field, value: Any, place: str, version: int) -> Iterator[str]:
    if value is None and field.nullable:
        return
    if not _allows(field, value):
        yield f"{place} is {_shown(value)}, must be {allowed(field)}"
    elif field.type == "object":
        yield from _inside(field.path, value, place, version)
        if kind := field.values:
            for key, inner in value.items():
                if inner is not None and not _is(inner, kind):
                    yield f"{place}.{key} is {_shown(inner)}, must be {_WORDS[kind]} or null"
    elif field.type == "array":
        for i, inner in enumerate(value):
            yield from _at(parts(field.path)[0], inner, f"{place}[{i}]", version)


def _is(value: Any, kind: Type) -> bool:
    """Whether a value read from JSON is of this type; one in a table's column has its limits."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer":
        return number and abs(value) <= _LARGEST and float(value).is_integer()
    if kind == "number":
        return number and abs(value) <= sys.float_info.max
    if kind == "string":
        # A lone surrogate can be written in JSON and in no file of text.
        return isinstance(value, str) and value == value.encode(errors="ignore").decode()
    return isinstance(value, {"boolean": bool, "object": Mapping, "array": list}[kind])


def _allows(field: Field, value: Any) -> bool:
    if not _is(value, field.type):
        return False
    if field.choices:
        return value in field.choices
    return not (
        (field.minimum is not None and value < field.minimum)
        or (field.maximum is not None and value > field.maximum)
        or (field.above is not None and value <= field.above)
    )


def allowed(field: Field) -> str:
    """What a field may hold, in words."""
    words = f"one of {', '.join(field.choices)}" if field.choices else _WORDS[field.type]
    bounds = ((">=", field.minimum), (">", field.above), ("<=", field.maximum))
    limits = [f"{sign} {bound:.7g}" for sign, bound in bounds if bound is not None]
    text = " ".join([words, " and ".join(limits)]).strip()
    return f"{text} or null" if field.nullable else text


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    try:
        text = json.dumps(value)
    except ValueError:  # a whole number of too many digits to be written
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:37]}…"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record of any version up to this one."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Record of one case and seed of jfbbench",
        "description": "Generated from bench/record.py. Unknown is null, never 0.",
        "type": "object",
        "properties": {field.name: _node(field) for field in parts()},
        "allOf": [
            _required("", 1),
            *(
                {"if": _from_version(version), "then": _required("", version)}
                for version in range(2, SCHEMA_VERSION + 1)
            ),
        ],
    }


def _node(field: Field) -> dict[str, Any]:
    node: dict[str, Any] = {"type": [field.type, "null"] if field.nullable else field.type}
    if field.meaning:
        node["description"] = field.meaning
    if field.unit:
        node["unit"] = field.unit
    if field.choices:
        node["enum"] = [*field.choices, *([None] if field.nullable else [])]
    bounds = {"minimum": field.minimum, "exclusiveMinimum": field.above, "maximum": field.maximum}
    node |= {name: bound for name, bound in bounds.items() if bound is not None}
    if field.type == "object" and parts(field.path):
        node["properties"] = {part.name: _node(part) for part in parts(field.path)}
    if field.values:
        node["additionalProperties"] = {"type": [field.values, "null"]}
    if field.type == "array":
        node["items"] = _node(parts(field.path)[0])
    return node


def _from_version(version: int) -> dict[str, Any]:
    allowed = {"schema_version": {"type": "integer", "minimum": version}, "probe": {"type": "null"}}
    return {"properties": allowed, "required": ["schema_version"]}


def _required(path: str, version: int) -> dict[str, Any]:
    """What the fields below `path` that came with `version` make obligatory."""
    node: dict[str, Any] = {}
    if own := [field.name for field in parts(path) if field.since == version]:
        node["required"] = own
    below = {field: _required(field.path, version) for field in parts(path)}
    properties = {field.name: inner for field, inner in below.items() if inner}
    if list(properties) == ["[]"]:
        return {"items": properties["[]"]}
    return node | ({"properties": properties} if properties else {})


def record_table() -> str:
    """The documentation's table: a row for each field of the record itself, with its parts."""
    rows = ["| field | meaning |", "|---|---|"]
    for field in parts():
        entry = field if field.type != "array" else parts(field.path)[0]
        inner = "; ".join(f"`{part.name}` {part.meaning}".strip() for part in parts(entry.path))
        text = ": ".join(filter(None, [field.meaning, inner, ", ".join(field.choices)]))
        gates = [part.gate for part in (field, *parts(field.path)) if part.gate is not None]
        exact = all(gate.relative == gate.absolute == 0 for gate in gates)
        gated = f"; gated {'exactly' if exact else 'with a tolerance'}" if gates else ""
        rows.append(f"| `{field.path}` | {text}{gated} |")
    return "\n".join(rows)


def schema_text() -> str:
    """The schema file's content."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
