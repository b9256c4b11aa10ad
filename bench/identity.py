"""What a record is of: the same text, and the same file name, for the same job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from bench.case import Case

#: the probe of a record that names none
STEP = {"name": "step"}


def identity(record: Mapping[str, Any]) -> str:
    """Case, seed, probe and files from outside, as text.

    Only what is not at its usual value is in it: records from before a field existed stay those of
    the jobs that leave it alone.
    """
    usual = {f.name: f.default for f in fields(Case) if f.default is not MISSING}
    # Earlier records of direct policies have no network: there was no other than the dense one.
    case = dict(record["case"]) | {"network": record["case"].get("network") or "dense"}
    own = {name: v for name, v in case.items() if name not in usual or v != usual[name]}
    return json.dumps([own, record.get("probe") or STEP, record.get("plugins")], sort_keys=True)


def stem(record: Mapping[str, Any]) -> str:
    """The name of its file, without the suffix. Of a step it is the case's id and the seed."""
    case, probe = record["case"], record.get("probe") or STEP
    if probe == STEP:
        return f"{case['id']}-s{case['seed']}"
    digest = hashlib.sha256(identity(record).encode()).hexdigest()[:8]
    return f"{case['id']}-{probe['name']}-{digest}-s{case['seed']}"
