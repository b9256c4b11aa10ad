"""Argument types whose errors say what was found and what is allowed."""

from __future__ import annotations

import argparse


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


#: the largest integer that torch takes for a seed, a size or a number of threads
_LARGEST = 2**31 - 1


def integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if abs(value) > _LARGEST:
        raise argparse.ArgumentTypeError(f"must be between -{_LARGEST} and {_LARGEST}, got {value}")
    return value


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def texts(text: str) -> tuple[str, ...]:
    """The parts between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def integers(text: str) -> tuple[int, ...]:
    return tuple(map(integer, texts(text)))


#: what system calls take for a time [s] and for an address space [GiB], with room to spare
LONGEST, LARGEST_SPACE = 1e6, 2.0**20


def at_most(name: str, value: float, most: float, unit: str) -> float:
    """`value`, or ValueError where it is above `most`."""
    if value > most:
        raise ValueError(f"`{name}` must be at most {most:,.0f} {unit}, got {value:g}")
    return value
