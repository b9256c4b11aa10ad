"""What stands in for a measurement on a node: found there by name, so it has a module."""

import os
import time

from bench.records import empty_record, write_json


def instant(job, *_):
    """A record at once."""
    record = empty_record(job.case, job.seed) | {"status": "ok", "threads": job.threads}
    write_json(job.job.path(job.settings.out), record)
    return record


def sleeping(job, *_):
    """A record after a while."""
    time.sleep(6.0)
    return instant(job)


def unending(job, *_):
    """No record before somebody ends it, but for seed 0."""
    if job.seed:
        time.sleep(600.0)
    return instant(job)


def failing(job, *_):
    """No record: what a broken environment on a node does."""
    raise RuntimeError("the node is broken")


def saying(job, *_):
    """A record that says what the setup commands did."""
    assert os.environ["SET_UP"] == "once twice"
    return instant(job)
