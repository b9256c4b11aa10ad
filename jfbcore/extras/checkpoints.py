"""Policies and training runs in files, read without running code that the file brings along."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jfbcore import _validate
from jfbcore.extras.clock import Clock
from jfbcore.extras.description import describe, one_line, rebuild
from jfbcore.extras.guard import GuardSettings
from jfbcore.extras.results import Evaluation
from jfbcore.extras.training_config import TrainingConfig
from jfbcore.policy import Policy

if TYPE_CHECKING:
    from jfbcore.train import Training

CHECKPOINT_VERSION = 7
#: version of the part of a checkpoint that `load` reads, and the whole of what `save` writes
POLICY_VERSION = 1

#: of a configuration, how long the run is: a checkpoint may be continued to another end
_LENGTH = ("steps", "time_limit")
#: what of a run has a state_dict, besides its policy
_PARTS = ("optimizer", "guard", "schedules")


def save(policy: Policy, file: str | Path) -> None:
    """Write `policy` to `file`: a plain description of how it is built, and its parameters.

    Raises ValueError where the policy cannot be built again from what its objects keep of their
    constructors' arguments, and OSError where the file cannot be written.
    """
    _validate.instance("policy", policy, Policy, "HamiltonianPolicy(problem, network, …)")
    content = _described(policy)
    if content["not_described"] is not None:
        raise ValueError(f"`policy` cannot be saved: {content['not_described']}")
    _write(content | {"policy": policy.state_dict()}, Path(file))


def load(file: str | Path, *, device: str | torch.device = "cpu") -> Policy:
    """The policy in `file`, which `save` or a training run with a checkpoint has written.

    It comes with its problem, network, map, solver and gradient, on `device`. Classes from outside
    the suite have to be imported before. Raises ValueError where the file holds no such policy.
    """
    path = Path(file)
    content = _read("file", path)
    if not isinstance(content, dict) or content.get("policy_version") != POLICY_VERSION:
        raise ValueError(
            f"`file` {path} holds no policy of version {POLICY_VERSION}; write one with "
            "jfbcore.save(policy, file) or train with a checkpoint"
        )
    if content.get("not_described") is not None:
        raise ValueError(f"`file` {path} cannot be rebuilt: {content['not_described']}")
    try:
        policy = _rebuilt(content["description"], torch.device(device))
        policy.load_state_dict(content["policy"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`file` {path} cannot be rebuilt: {_first_line(error)}") from error
    return policy


def identity(policy: Policy) -> str:
    """A line that names what is trained: problem, policy and the shapes of the parameters."""
    shapes = ", ".join(str(tuple(p.shape)) for p in policy.parameters())
    return f"{policy.problem.name}: {one_line(policy, longest=10**6)} with {shapes}"


class Saver:
    """Saves a training run to `path` every `interval` training steps and in the end, if given."""

    def __init__(self, path: Path | None, interval: int) -> None:
        self.path = path
        self.interval = _validate.positive_int("checkpoint_interval", interval)
        #: how the policy is built, from the first time that it is saved
        self.described: dict[str, Any] | None = None

    def __call__(self, training: Training) -> None:
        if training.step % self.interval == 0:
            self.finish(training)

    def finish(self, training: Training) -> None:
        """Save whatever the training step."""
        if self.path is not None:
            training.save(self.path)


def save_training(training: Training, path: Path) -> None:
    """Write everything that `training` needs to go on, and its policy as `save` would."""
    if training.saver.described is None:
        training.saver.described = _described(training.policy)
    parts = {name: getattr(training, name).state_dict() for name in ("policy", *_PARTS)}
    state = {
        "version": CHECKPOINT_VERSION,
        "config": asdict(training.config),
        "identity": training.identity,
        "clock": asdict(training.clock),
        "generator": training.generator.get_state(),
        "minibatch": training.minibatch,
        "progress": (training.step, training.loss),
        "curve": [asdict(point) for point in training.curve],
    }
    _write(training.saver.described | parts | state, path)


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint says of its run: how it was configured, and how far it has come."""

    config: TrainingConfig
    step: int
    seconds: float


def saved_run(path: Path) -> SavedRun:
    """The run in the checkpoint `path`; ValueError where the file is no checkpoint of a run."""
    state = _training_state(path)
    settings = state["config"] | {"guard": GuardSettings(**state["config"]["guard"])}
    return SavedRun(TrainingConfig(**settings), state["progress"][0], state["clock"]["seconds"])


def _training_state(path: Path) -> dict[str, Any]:
    state = _read("checkpoint", path)
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise ValueError(f"`checkpoint` {path} is not a version {CHECKPOINT_VERSION} checkpoint")
    if missing := {"config", "identity", "policy", "optimizer", "guard", "progress"} - set(state):
        raise ValueError(f"`checkpoint` {path} is incomplete: no {', '.join(sorted(missing))}")
    return state


def load_training(training: Training, path: Path) -> None:
    """Continue `training` where the run in the file was; ValueError where it is another run.

    It may end later than the run in the file would have; schedules then run to the new end.
    """
    state = _training_state(path)
    expected, saved = asdict(training.config), state["config"]
    changed = [x for x in saved if x not in _LENGTH and expected[x] != saved[x]]
    if changed:
        what = f"was written with another configuration; different: {', '.join(changed)}"
        raise ValueError(f"`checkpoint` {path} {what}")
    if state["identity"] != training.identity:
        what = f"belongs to another run: {state['identity']}, not {training.identity}"
        raise ValueError(f"`checkpoint` {path} {what}")
    training.policy.load_state_dict(state["policy"])
    for part in _PARTS:
        getattr(training, part).load_state_dict(state[part])
    # Whether the first training step compiles is a question of this process.
    own = {name: getattr(training.clock, name) for name in (*_LENGTH, "compiling")}
    training.clock = Clock(**(state["clock"] | own))
    training.generator.set_state(state["generator"])
    minibatch = state["minibatch"]
    training.minibatch = None if minibatch is None else minibatch.to(training.problem.device)
    training.step, training.loss = state["progress"]
    training.curve = [Evaluation(**point) for point in state["curve"]]


def _described(policy: Policy) -> dict[str, Any]:
    """How `load` builds `policy`, or why it cannot: a training run goes on all the same."""
    description, reason = None, None
    try:
        description = describe(policy)
        again = _rebuilt(description, torch.device("cpu"))
        if describe(again) != description:
            raise ValueError(f"built again it would be {one_line(again)}")
        again.load_state_dict(policy.state_dict())
    except Exception as error:  # constructors from outside may raise anything
        reason = _first_line(error)
    return {"policy_version": POLICY_VERSION, "description": description, "not_described": reason}


def _rebuilt(description: Any, device: torch.device) -> Policy:
    # Modules draw their first parameters from torch's global generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        policy = rebuild(description, device)
    if not isinstance(policy, Policy):
        raise ValueError(f"it describes a {type(policy).__name__}, not a policy")
    return policy


def _write(content: dict[str, Any], path: Path) -> None:
    """Write atomically: a killed process leaves the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    except RuntimeError as error:  # torch's word for a disk that is full
        raise OSError(errno.EIO, str(error).splitlines()[0], str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def _read(argument: str, path: Path) -> Any:
    try:
        # To the host, where Adam's step counts belong; what is loaded copies to the device.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise ValueError(f"`{argument}` {path} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]
