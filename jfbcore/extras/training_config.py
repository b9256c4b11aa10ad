"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from jfbcore import _validate
from jfbcore._validate import non_negative, optional, parameter, positive, positive_int
from jfbcore.extras.guard import GuardSettings
from jfbcore.extras.optimizers import OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that shapes a training run besides the problem and the policy.

    The run ends after `steps` training steps or as many as cost what `full_steps` on the problem's
    own grid would (one on a grid `factor` times coarser counts 1/`factor`), or after `time_limit`
    seconds of training (evaluation and compiling excluded), whichever comes first. Schedules run
    over the steps where they are given: a time limit then cuts a run short and changes nothing
    before. Otherwise they are stretched over the time limit.

    `optimizer`: "adam", or "muon", which takes Muon for the matrices and Adam for the vectors.
    `schedule`: "cosine" (down to `final_learning_rate_fraction`), "plateau" (halved after
    `plateau_patience` training steps without a better loss) or "constant"; before that the rate
    grows linearly over `warmup_steps`. `clip_norm`: largest norm of the gradient.
    `coarsening`: pairs (until, factor); up to the fraction `until` of the run, rollouts take
    `factor` times fewer time steps. `terminal_ramp`: (multiple, until, full); in what is minimised
    and in `loss` the terminal cost counts `multiple` times up to the fraction `until` of the run,
    then its weight grows geometrically to the full one at the fraction `full`. `fixed_minibatch`
    draws one minibatch and keeps it. `warm_start` starts each inner solve at the control of the
    time step before. `hjb_running` and `hjb_final` weigh the HJB penalties (1e-4 and 1e-2 in the
    released code). `evaluations` on `held_out` states are evenly spaced in training steps or in
    time, whichever is further on its way to the end.
    """

    steps: int | None = parameter(None, optional(positive_int))
    full_steps: float | None = parameter(None, optional(positive))
    time_limit: float | None = parameter(None, optional(positive))
    batch_size: int = parameter(50, positive_int)
    optimizer: str = "adam"
    learning_rate: float = parameter(2e-3, positive)
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_learning_rate_fraction: float = parameter(0.01, non_negative)
    plateau_patience: int = parameter(100, positive_int)
    clip_norm: float = parameter(20.0, positive)
    coarsening: tuple[tuple[float, int], ...] = ()
    terminal_ramp: tuple[float, float, float] | None = None
    fixed_minibatch: bool = False
    warm_start: bool = False
    hjb_running: float = parameter(0.0, non_negative)
    hjb_final: float = parameter(0.0, non_negative)
    evaluations: int = parameter(10, positive_int)
    held_out: int = parameter(64, positive_int)
    guard: GuardSettings = field(default_factory=GuardSettings)
    seed: int = parameter(0, _validate.integer)

    def __post_init__(self) -> None:
        _validate.parameters(self)
        if self.steps is None and self.full_steps is None and self.time_limit is None:
            raise ValueError("give `steps`, `full_steps` or `time_limit`, got none; try steps=100")
        if self.steps is not None and self.full_steps is not None:
            raise ValueError(
                f"give `steps` or `full_steps`, got both: {self.steps} and {self.full_steps}"
            )
        if self.warmup_steps != 0:
            _validate.positive_int("warmup_steps", self.warmup_steps, "0 for no warm-up")
        _validate.one_of("optimizer", self.optimizer, OPTIMIZERS)
        _validate.one_of("schedule", self.schedule, ("cosine", "plateau", "constant"))
        _validate.instance("guard", self.guard, GuardSettings, "GuardSettings(patience=20)")
        self._check_coarsening()
        self._check_ramp()

    def _check_coarsening(self) -> None:
        last = 0.0
        for stage in self.coarsening:
            until, _ = _validate.point("coarsening stage", stage, 2)
            _validate.positive_int("coarsening factor", stage[1])
            if not last < until <= 1.0:
                raise ValueError(
                    f"`coarsening` stages (until, factor) must have 0 < until <= 1, each later "
                    f"than the one before, got {self.coarsening}"
                )
            last = until

    def _check_ramp(self) -> None:
        if self.terminal_ramp is None:
            return
        multiple, until, full = _validate.point("terminal_ramp", self.terminal_ramp, 3)
        _validate.positive("terminal_ramp multiple", multiple)
        if not 0.0 <= until < full <= 1.0:
            raise ValueError(
                f"`terminal_ramp` must have 0 <= until < full <= 1, got {until} and {full}"
            )
        if self.hjb_final > 0:
            raise ValueError(
                f"`hjb_final` must be 0 with a `terminal_ramp`, got {self.hjb_final}: it compares "
                f"the value network with the full terminal cost"
            )
