"""What the time gate times: steps of 10 to 40 ms, so that a hundred fit into seconds."""

from __future__ import annotations

from bench.case import Case

#: one of each kind of work: one agent and many, iteration and linear solve, each problem
TIMED_CASES = (
    Case(problem="quadrotor", n_agents=1, gradient="jfb", batch_size=16, n_steps=20),
    Case(problem="quadrotor", n_agents=20, gradient="jfb", batch_size=16, n_steps=12),
    Case(problem="quadrotor", n_agents=1, gradient="unrolled", batch_size=16, n_steps=16),
    Case(problem="bicycle", n_agents=1, gradient="jfb", batch_size=16, n_steps=20),
    Case(problem="consumption", n_agents=5, gradient="implicit", batch_size=16, n_steps=12),
    Case(problem="consumption", n_agents=5, gradient="jfb", batch_size=16, n_steps=20),
)
