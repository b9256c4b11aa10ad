"""The case: what is measured. One definition feeds the sweep, asv and pytest-benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench import plugins
from bench.registry import (
    DEFAULT_BATCH,
    DEFAULT_STEPS,
    GRADIENT_NAMES,
    KINDS,
    MAP_NAMES,
    PROBLEM_NAMES,
    SOLVER_NAMES,
    has_inner_problem,
)
from jfbcore import _validate

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_STEPS",
    "DEVICES",
    "DTYPES",
    "GRADIENT_NAMES",
    "MAP_NAMES",
    "NETWORK_NAMES",
    "PROBLEM_NAMES",
    "RECIPES",
    "REPEATS",
    "SOLVER_NAMES",
    "VARIANTS",
    "Case",
]

#: timed repeats of a step
REPEATS = 10
#: "concave" is consumption with eta = 1; "released" its released parameters
VARIANTS = ("default", "concave", "released")
#: see bench.recipes
RECIPES = ("recommended", "released")
NETWORK_NAMES = ("dense", "shared", "indexed", "assigned", "branched")
DTYPES = ("float32", "float64")
DEVICES = ("cpu", "cuda")
#: fields that are checked alone: how, and whether null is allowed
_CHECKS = (
    *((n, _validate.positive_int, False) for n in ("n_agents", "max_iterations")),
    *((n, _validate.positive_int, False) for n in ("batch_size", "n_steps")),
    ("segment", _validate.positive_int, True),
    *((n, _validate.positive, True) for n in ("tolerance", "step_size")),
    *((n, _validate.positive, True) for n in ("train_seconds", "learning_rate")),
)
_CHOICES = {"dtype": DTYPES, "device": DEVICES, "variant": VARIANTS, "network": NETWORK_NAMES}
#: what a method without an inner problem has no use for
_INNER_FIELDS = ("map", "solver", "max_iterations", "tolerance", "step_size")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, fully specified; `id` is stable and independent of the seed.

    `tolerance` None runs exactly `max_iterations` inner iterations; otherwise the inner
    residual asked for, in units of the problem's gradient scale. `train_steps` optimiser steps
    give the record its curve (0: none). `timed` False takes memory only. `step_size` overrides
    the plain map's. `compile` passes the time step through torch.compile. `network` "shared"
    gives all agents one network, "indexed" one that is told which agent it serves, "assigned" one
    that is told the place an agent was assigned to at the start, "branched" one that is told the
    agent and which of two kinds of flight to fly. `segment` checkpoints the rollout
    every so many steps. `capture` replays whole rollouts as CUDA graphs. `recipe` trains for
    `train_seconds` as `bench train` would, at `learning_rate` in place of its own if one is
    given. Raises ValueError or TypeError naming the field.
    """

    problem: str
    n_agents: int
    gradient: str
    map: str = "scaled"
    solver: str = "picard"
    max_iterations: int = 500
    tolerance: float | None = 1e-4
    batch_size: int
    n_steps: int
    dtype: str = "float32"
    device: str = "cpu"
    variant: str = "default"
    step_size: float | None = None
    train_steps: int = 0
    timed: bool = True
    compile: bool = False
    capture: bool = False
    network: str = "dense"
    segment: int | None = None
    recipe: str | None = None
    train_seconds: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for kind in KINDS:
            # A file's path is made absolute: the case is also built elsewhere.
            object.__setattr__(self, kind.field, kind.check(getattr(self, kind.field)))
        for name, check, optional in _CHECKS:
            if not optional or getattr(self, name) is not None:
                check(name, getattr(self, name))
        for name, allowed in _CHOICES.items():
            _validate.one_of(name, getattr(self, name), allowed)
        if self.variant != "default" and self.problem != "consumption":
            name = plugins.shown(self.problem)
            raise ValueError(f"`variant` must be default for {name}, got {self.variant!r}")
        if self.step_size is not None and self.map != "plain":
            raise ValueError(
                f"`step_size` {self.step_size:g} belongs to the plain map, got map "
                f"{self.map!r}; use map plain"
            )
        if self.train_steps != 0:
            _validate.positive_int("train_steps", self.train_steps)
        if (self.recipe is None) != (self.train_seconds is None):
            raise ValueError(
                f"`recipe` and `train_seconds` come together, got {self.recipe!r} and "
                f"{self.train_seconds}"
            )
        if self.recipe is not None:
            _validate.one_of("recipe", self.recipe, RECIPES)
            if self.train_steps:
                raise ValueError(f"`train_steps` must be 0 with a recipe, got {self.train_steps}")
        elif self.learning_rate is not None:
            raise ValueError(
                f"`learning_rate` {self.learning_rate:g} replaces that of a `recipe`, got none"
            )
        for name in ("timed", "compile", "capture"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}")
        if self.capture and not (self.compile and self.device == "cuda" and self.segment is None):
            raise ValueError(
                "`capture` needs compile True, device cuda and no segment, got compile "
                f"{self.compile}, device {self.device!r} and segment {self.segment}"
            )

    @property
    def inner_problem(self) -> bool:
        """Whether the method solves an inner problem; without one map, solver and K are unused."""
        return has_inner_problem(self.gradient)

    @property
    def id(self) -> str:
        """A name for files and tables: every field that is not at its usual value is in it."""
        parts = [plugins.in_file_name(self.problem)]
        if self.variant != "default":
            parts.append(self.variant)
        parts += [f"n{self.n_agents}", plugins.in_file_name(self.gradient)]
        if self.network != "dense":
            parts.append(self.network)
        if self.inner_problem:
            parts += [plugins.in_file_name(self.map), plugins.in_file_name(self.solver)]
            if self.step_size is not None:
                parts.append(f"a{self.step_size:g}")
            mode = "k" if self.tolerance is None else "max"
            parts.append(f"{mode}{self.max_iterations}")
            if self.tolerance is not None and not math.isclose(self.tolerance, 1e-4):
                parts.append(f"tol{self.tolerance:g}")
        parts += [f"b{self.batch_size}", f"t{self.n_steps}", self.dtype, self.device]
        if self.compile:
            parts.append("captured" if self.capture else "compiled")
        if self.segment is not None:
            parts.append(f"segment{self.segment}")
        if self.recipe is not None:
            parts.append(f"{self.recipe}{self.train_seconds:g}s")
        if self.learning_rate is not None:
            parts.append(f"lr{self.learning_rate:g}")
        return "-".join(parts)

    def to_dict(self, seed: int) -> dict[str, Any]:
        """The record's `case` object: id, seed and every field; null where it plays no part.

        A problem or method from a file goes by the file's base name.
        """
        content = {"id": self.id, **asdict(self), "seed": seed}
        for kind in KINDS:
            content[kind.field] = plugins.shown(content[kind.field])
        if not self.inner_problem:
            content |= dict.fromkeys(_INNER_FIELDS)
        return content

    @property
    def named(self) -> dict[str, str]:
        """The names of problem, method, map and solver, files by their whole path; by field, those
        that play a part."""
        used = [k for k in KINDS if self.inner_problem or k.field not in _INNER_FIELDS]
        return {kind.field: getattr(self, kind.field) for kind in used}

    @property
    def from_outside(self) -> dict[str, dict[str, str | None]] | None:
        """Name, source and hash of what is not the suite's own, by field; None without any."""
        named = self.named
        outside = {k.field: k.plugin(named[k.field]) for k in KINDS if k.field in named}
        return {name: p.describe() for name, p in outside.items() if p is not None} or None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Case:
        """The inverse of `to_dict` where nothing comes from a file.

        Raises TypeError for an unknown field.
        """
        known = {field.name for field in fields(cls)}
        unknown = set(content) - known - {"id", "seed"}
        if unknown:
            raise TypeError(f"unknown case fields {sorted(unknown)}; allowed: {sorted(known)}")
        kept = {name: value for name, value in content.items() if name in known}
        if kept.get("map", "") is None:  # no inner problem
            for name in _INNER_FIELDS:
                kept.pop(name, None)
            # Earlier records of direct policies have null: there was no other than the dense one.
            kept["network"] = kept.get("network") or "dense"
        return cls(**kept)
