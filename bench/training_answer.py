"""What `bench train` says at the end: a few lines to read, and one JSON object; and at Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.gap import Gaps
from bench.measure import peak_rss_bytes
from bench.report.style import format_percent, format_seconds
from bench.training import evaluation
from jfbcore.extras.results import Evaluation, TrainingResult
from jfbcore.policy import Policy


def answer(policy: Policy, result: TrainingResult, gap: Gaps, seed: int) -> dict[str, Any]:
    """The JSON object: first and final costs, steps, times, memory, status, interventions."""

    costs = ("loss", "running_cost", "terminal_cost", "evaluation_cost")

    def describe(point: Evaluation) -> dict[str, float | None]:
        own = {name: getattr(point, name) for name in costs}
        return own | {"optimality_gap": gap.of(point.costs)}

    return {
        "final": describe(result.curve[-1]),
        "first": describe(result.curve[0]),
        "steps": result.steps,
        "seconds": result.seconds,
        "step_seconds": {"median": result.median_step_seconds},
        "peak_rss_bytes": peak_rss_bytes(),
        "seed": seed,
        "status": result.status,
        "reason": result.reason,
        "interventions": len(result.interventions),
        "evaluation": evaluation(policy, result.curve[-1], gap),
    }


def summary(
    content: dict[str, Any], gap: Gaps, checkpoint: Path | None, outside: Sequence[str] = ()
) -> list[str]:
    """The same for a reader: what was trained, how far the cost fell, what to do next.

    `outside` names what the checkpoint needs from files of the reader's own.
    """
    first, final = content["first"], content["final"]
    speed = content["step_seconds"]["median"]
    pace = "" if speed is None else f", {format_seconds(speed)} a step"
    lines = [
        f"{content['steps']} steps in {format_seconds(content['seconds'])}{pace}",
        f"held-out cost: {first['evaluation_cost']:.5g} before training, "
        f"{final['evaluation_cost']:.5g} after (running {final['running_cost']:.4g}, terminal "
        f"{final['terminal_cost']:.4g})",
    ]
    if final["optimality_gap"] is not None:
        lines.append(
            f"above the reference optimum: {format_percent(first['optimality_gap'])} before, "
            f"{format_percent(final['optimality_gap'])} after"
        )
    else:
        lines.append(f"no optimality gap: {gap.reason or 'the final cost is not finite'}")
    if content["interventions"]:
        lines.append(f"{content['interventions']} training steps were rejected and rolled back")
    if content["status"] != "ok":
        lines.append(f"{content['status']}: {content['reason']}")
    scored = content["evaluation"]
    if scored["tolerance_reached"] is False:
        lines.append(
            f"inner tolerance missed: after training the residual is up to "
            f"{scored['residual']['max']:.3g} on the held-out states"
        )
    if checkpoint is not None:
        words = shlex.join([str(checkpoint), *(part for o in outside for part in ("--plugin", o))])
        lines.append(f"saved in {checkpoint}; look at it: python -m bench plot {words}")
    return lines


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
