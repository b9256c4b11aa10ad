"""What can be measured of a case: one probe a file, found by the file's name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from bench.probes.probe import Probe


def names() -> list[str]:
    """The probes there are."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name != "probe"]


def load(name: str, settings: Mapping[str, Any]) -> Probe:
    """The probe `name` with `settings`, what is not given at its default.

    Raises ValueError where there is no such probe, TypeError for a setting that it has not.
    """
    if name not in names():
        raise ValueError(f"`probe` must be one of {', '.join(names())}, got {name!r}")
    make = importlib.import_module(f"bench.probes.{name}").PROBE
    # JSON has no tuples.
    return make(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
