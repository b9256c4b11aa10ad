# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Train and plot a quadrotor
#
# A quadrotor starts near the origin and has to come to rest at (2, 2, 2) m. We train a value
# network with JFB on a coarse grid of 16 time steps, which takes seconds, and look at the flight.

# %%
import torch

import jfbcore as jfb
from bench.flights import draw, fly

torch.set_num_threads(1)
problem = jfb.Quadrotor(n_agents=1, n_steps=16)
policy = jfb.HamiltonianPolicy(
    problem,
    jfb.ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0)),
    fixed_point_map=jfb.NewtonMap(),
    solver=jfb.Newton(tolerance=1e-4),
    gradient=jfb.JFB(),
)

# %% [markdown]
# Training draws a minibatch of starts in each step, simulates them, and follows JFB's gradient. The
# cost on 64 starts that are never trained on tells how far it is.

# %%
config = jfb.TrainingConfig(steps=150, batch_size=16, optimizer="muon", learning_rate=1e-2)
result = jfb.Training(policy, config).run()
for point in result.curve:
    print(f"step {point.step:4d}  held-out cost {point.evaluation_cost:9.2f}")
assert result.curve[-1].evaluation_cost < 0.05 * result.curve[0].evaluation_cost

# %% [markdown]
# The same start, flown by the trained policy and by the policy before training:

# %%
state = jfb.held_out_states(problem, 1)
flights = [
    fly.flight(fly.TRAINED, fly.fly(policy, state)),
    fly.flight(fly.UNTRAINED, fly.fly(fly.untrained(policy), state)),
]
paths, controls = draw.flight_figures(problem, flights)
paths

# %%
controls
