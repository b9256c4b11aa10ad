"""Ctrl-C during a training run: it ends between two training steps, saved."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def interruptible(
    checkpoint: Path | None, arguments: Sequence[str]
) -> Iterator[Callable[[Any], None] | None]:
    """With a checkpoint, Ctrl-C ends the run between training steps, saved; a second one at once.

    Yields what to call after every training step.
    """
    if checkpoint is None:
        yield None
        return
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    def stop(training: Any) -> None:
        if not asked:
            return
        training.save(checkpoint)
        again = [word for word in arguments if word != "--resume"]
        print(
            f"\nsaved at step {training.step}; continue with: python -m bench "
            f"{shlex.join([*again, '--resume'])}",
            file=sys.stderr,
        )
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
