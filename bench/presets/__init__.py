"""The case grids: which cases each preset measures, in order of priority."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.case import Case
from bench.presets.field import field
from bench.presets.gpu_headline import gpu_headline
from bench.presets.names import MAIN_GRADIENTS
from bench.presets.released import released
from bench.presets.smoke import smoke
from bench.presets.sweep import cpu, gpu
from bench.presets.targets import growth, rates, scale, targets
from bench.presets.tracked import gate, quick
from bench.release.sweep import sweep
from bench.selection import narrowed

__all__ = ["MAIN_GRADIENTS", "PRESETS", "TIMEOUTS", "quick", "select", "smoke"]

#: presets by the name used on the command line
PRESETS: dict[str, Callable[[], Iterator[Case]]] = {
    "smoke": smoke,
    "quick": quick,
    "gate": gate,
    "field": field,
    "cpu": cpu,
    "gpu": gpu,
    "gpu-headline": gpu_headline,
    "released": released,
    "targets": targets,
    "scale": scale,
    "growth": growth,
    "rates": rates,
    "sweep": sweep,
}
#: seconds one case may take before it is recorded as timed out
TIMEOUTS = {
    "smoke": 120.0,
    "quick": 120.0,
    "gate": 120.0,
    "field": 300.0,
    "cpu": 900.0,
    "gpu": 300.0,
    "gpu-headline": 200.0,
    "released": 1800.0,
    "targets": 3600.0,
    "scale": 3600.0,
    "growth": 3600.0,
    "rates": 3600.0,
    "sweep": 900.0,
}


def select(preset: str, filters: list[str], device: str | None = None) -> list[Case]:
    """The cases of `preset` that match every KEY=VALUE filter, on `device` if one is given.

    ValueError for an unknown preset, and as `bench.selection.narrowed` says.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    cases = list(PRESETS[preset]())
    if device is not None:
        cases = [replace(case, device=device) for case in cases]
    return narrowed(cases, filters, f"preset {preset}")
