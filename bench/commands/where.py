"""Say which files are read and written, and where."""

from __future__ import annotations

import argparse

HELP = "say which files are read and written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: there is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    """One line for each kind of file: what it is, a tab, where it is."""
    from bench.places import table

    for name, path in table().items():
        print(f"{name}\t{path}")
    return 0
