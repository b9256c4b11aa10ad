"""What Slurm starts for one job of a sweep: `python -m bench.cluster_task FOLDER`.

It measures as a sweep on this machine would, in a folder of its own. The record goes to
FOLDER/<task>.json, whole or not at all; only the process that submitted moves it to the others, so
that no record has two writers and none appears after its sweep has ended.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
from dataclasses import replace
from pathlib import Path

from bench.records import write_json


def main(folder: Path, task: int) -> None:
    """Measure order number `task` of those in `folder`."""
    done = folder / f"{task}.json"
    if done.exists() or not (folder / "orders.pickle").exists():
        return  # requeued after it had ended, or after its sweep had
    run_one, orders = pickle.loads((folder / "orders.pickle").read_bytes())
    own = folder / str(task)
    own.mkdir(exist_ok=True)
    order = orders[task]
    run_one(order._replace(settings=replace(order.settings, out=own)))
    (path,) = (own / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    write_json(done, record | {"cluster": {"job": job, "host": socket.gethostname()}})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["SLURM_ARRAY_TASK_ID"]))
