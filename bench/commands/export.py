"""Records as one table, a row each, for pandas, polars, DuckDB or a spreadsheet.

`--pack` keeps the records of a finished run as one file of lines, records.jsonl, in place of one
file each; every verb reads both.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from bench import csv_cells

HELP = "write the records of runs as one table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="run directory, as `run` writes it"
    )
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="needs pyarrow")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument(
        "--curves", action="store_true", help="a row for each point of the training curves instead"
    )
    parser.add_argument(
        "--pack", action="store_true", help="keep each DIR's records as one file, DIR/records.jsonl"
    )


def run(args: argparse.Namespace) -> int:
    """Write what is asked for; ValueError where that is nothing, or there are no records."""
    files = [path for path in (args.parquet, args.csv) if path]
    if not args.pack and not files:
        raise ValueError("nothing to write: give --parquet FILE, --csv FILE or --pack")
    if args.parquet and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("`parquet` needs pyarrow; pip install jfbbench[export]")
    for directory in args.directories:
        if not directory.is_dir():
            raise ValueError(f"{directory} is not a directory; pass one that `bench run` wrote")
    if files:
        # pandas takes a second to import: only once the arguments are good
        from bench.report.frames import case_frame, curve_frame
        from bench.report.load import load_runs

        runs = load_runs(args.directories)
        frame = case_frame(runs)
        if args.curves:
            frame = curve_frame(runs, frame)
        if args.parquet:
            frame.to_parquet(args.parquet, index=False)
        if args.csv:
            csv_cells.table(frame).to_csv(args.csv, index=False)
        for path in files:
            print(f"{path}: {len(frame)} rows, {len(frame.columns)} columns")
    if args.pack:
        from bench.records import PACKED, pack

        for directory in args.directories:
            print(f"{directory / PACKED}: {pack(directory)} records")
    return 0
