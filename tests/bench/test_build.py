"""When a training run is compiled without being told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.build import compiling_pays
from bench.case import Case
from jfbcore.train import TrainingConfig

CASE = Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=4, n_steps=5)
LONG = TrainingConfig(time_limit=60.0)


@pytest.mark.parametrize("config", [LONG, TrainingConfig(steps=1000)])
def test_a_long_run_is(config):
    assert compiling_pays(CASE, config)


@pytest.mark.parametrize(
    ("case", "config"),
    [
        (CASE, TrainingConfig(steps=999)),
        (CASE, TrainingConfig(time_limit=59.0)),
        (replace(CASE, segment=2), LONG),
        (CASE, replace(LONG, hjb_running=1e-4)),
        (replace(CASE, gradient="supervised"), LONG),
        (replace(CASE, gradient="unrolled-checkpoint", max_iterations=5, tolerance=None), LONG),
    ],
)
def test_a_short_run_or_one_that_cannot_be_is_not(case, config):
    assert not compiling_pays(case, config)


def test_none_is_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiling_pays(CASE, LONG)
