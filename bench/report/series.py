"""Cutting the case table into panels of equal settings and series of one gradient each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report.frames import WORKLOAD
from bench.report.style import Look, gradient_rank, look, tint

#: the settings that get a gradient's full colour where several are drawn
_USUAL = {"ascent": "scaled map", "solver": "picard", "recipe": "default"}
_TINTS = (0.0, 0.4, 0.62, 0.75)


@dataclass(frozen=True)
class Panel:
    """Rows measured under the same settings, and those settings."""

    settings: Mapping[str, Any]
    rows: pd.DataFrame


@dataclass(frozen=True)
class Series:
    """The rows of one gradient with one choice of the settings that vary inside a panel."""

    label: str
    gradient: str
    look: Look
    rows: pd.DataFrame


def panels(frame: pd.DataFrame, strict: Sequence[str], loose: Sequence[str] = ()) -> list[Panel]:
    """`frame` cut by the columns `strict` and `loose`.

    A row whose `loose` column is null has no such setting (a direct policy has no map), so it
    joins every panel that agrees with it on the rest instead of standing alone.
    """
    found: list[Panel] = []
    for key, group in frame.groupby(list(strict), dropna=False, sort=True):
        settings = dict(zip(strict, key if isinstance(key, tuple) else (key,), strict=True))
        found += [
            Panel(settings | choice, rows) for choice, rows in _loose_groups(group, list(loose))
        ]
    return found


def _loose_groups(
    group: pd.DataFrame, loose: list[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    if not loose:
        yield {}, group
        return
    choices = group[loose].drop_duplicates()
    # what has most settings opens the panels; rows with fewer join those they agree with
    complete = choices[choices.notna().sum(axis=1) == choices.notna().sum(axis=1).max()]
    for choice in complete.to_dict("records"):
        fits = pd.Series(True, index=group.index)
        for column, value in choice.items():
            if not pd.isna(value):
                fits &= group[column].isna() | (group[column] == value)
        yield choice, group[fits]
    if len(complete) < len(choices) and (lone := _unmatched(group, complete, loose)) is not None:
        yield dict.fromkeys(loose), lone


def _unmatched(
    group: pd.DataFrame, complete: pd.DataFrame, loose: list[str]
) -> pd.DataFrame | None:
    """Rows that agree with no complete choice; they get a panel of their own."""
    matched = pd.Series(False, index=group.index)
    for choice in complete.to_dict("records"):
        fits = pd.Series(True, index=group.index)
        for column, value in choice.items():
            fits &= group[column].isna() | (group[column] == value)
        matched |= fits
    return None if matched.all() else group[~matched]


def series_of(rows: pd.DataFrame, variants: Sequence[str]) -> list[Series]:
    """One series per gradient and per combination of those `variants` that vary for it."""
    found = []
    for gradient in sorted(rows["gradient"].unique(), key=gradient_rank):
        own = rows[rows["gradient"] == gradient]
        varying = [name for name in variants if own[name].nunique(dropna=False) > 1]
        if not varying:
            found.append(Series(gradient, gradient, look(gradient), own))
            continue
        groups = sorted(
            own.groupby(varying, dropna=False, sort=True),
            key=lambda item: [
                value != _USUAL.get(name) for name, value in zip(varying, item[0], strict=True)
            ],
        )
        # as many settings as tell them apart
        told = next(n for n in range(1, len(varying) + 1)
                    if len({key[:n] for key, _ in groups}) == len(groups))  # fmt: skip
        for rank, (key, group) in enumerate(groups):
            words = [
                describe(name, value) for name, value in zip(varying[:told], key, strict=False)
            ]
            base = look(gradient)
            shade = tint(base.color, _TINTS[min(rank, len(_TINTS) - 1)])
            label = f"{gradient}, {', '.join(word for word in words if word)}"
            found.append(Series(label, gradient, Look(shade, base.marker, base.dashes), group))
    return found


def describe(column: str, value: Any) -> str:
    """A setting in words, empty where it is null."""
    if value is None or pd.isna(value):
        return ""
    return {
        "n_agents": f"{value} agent{'s' if value != 1 else ''}",
        "variant": "" if value == "default" else f"{value} variant",
        "batch_size": f"batch {value}",
        "n_steps": f"{value} time steps",
        "max_iterations": f"K ≤ {value}",
        "environment": f"environment {value}",
        "recipe": f"recipe {value}",
        "learning_rate": f"learning rate {value:g}" if isinstance(value, float) else "",
        "execution": "" if value == "eager" else value,
    }.get(column, str(value))


def title(settings: Mapping[str, Any], constant: Mapping[str, Any]) -> str:
    """A panel's title on two lines: the problem and size, then settings not `constant`."""
    size = describe("n_agents", settings.get("n_agents"))
    if settings["problem"] == "consumption":
        size = size.replace("agent", "good")
    first = [settings["problem"], size]
    rest = [
        describe(name, settings[name])
        for name in ("ascent", "budget", *WORKLOAD, "environment")
        if name in settings and name not in constant
    ]
    lines = [", ".join(word for word in words if word) for words in (first, rest)]
    return "\n".join(line for line in lines if line)


def constant_settings(frame: pd.DataFrame) -> dict[str, Any]:
    """Settings that are the same in all rows: said once in a caption, not in every title."""
    names = ("ascent", "budget", *WORKLOAD, "environment")
    return {name: frame[name].iloc[0] for name in names if frame[name].nunique(dropna=False) == 1}
