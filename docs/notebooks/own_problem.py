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
# # Bring your own problem
#
# A problem is four formulas and its sizes. Here carts are pushed to the origin, at a cost of
# exp(|u|²/2), whose maximiser of the Hamiltonian has no elementary closed form.

# %%
import torch

import jfbcore as jfb


class Carts(jfb.Problem):
    """Position and speed of each cart; the control is its acceleration."""

    name = "carts"

    def __init__(self, n_agents=1, *, n_steps=20, dtype=torch.float32, device="cpu"):
        super().__init__(t_final=1.0, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents, self.state_dim, self.control_dim = n_agents, 2 * n_agents, n_agents

    def dynamics(self, t, z, u):
        return torch.cat([z[:, self.n_agents :], u], dim=1)

    def running_cost(self, t, z, u):
        return torch.exp(0.5 * u.square().sum(1))

    def terminal_cost(self, z):
        return 5.0 * z.square().sum(1)

    def sample_initial_states(self, batch, generator):
        return 1.0 + 0.1 * self._normal(batch, self.state_dim, generator)


# %% [markdown]
# Gradient, curvature and Newton step of the Hamiltonian are derived from these formulas. Any method
# can train on them:

# %%
torch.set_num_threads(1)
problem = Carts(n_agents=2, n_steps=10)
policy = jfb.HamiltonianPolicy(
    problem,
    jfb.ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0)),
    fixed_point_map=jfb.NewtonMap(),
    solver=jfb.Newton(tolerance=1e-4),
    gradient=jfb.JFB(),
)
config = jfb.TrainingConfig(steps=30, batch_size=8, learning_rate=1e-2)
result = jfb.Training(policy, config).run()
first, last = result.curve[0].evaluation_cost, result.curve[-1].evaluation_cost
print(f"held-out cost {first:.2f} before training, {last:.2f} after")
assert last < first

# %% [markdown]
# From a file, the command line measures it beside the built-in problems:
#
# ```sh
# python -m bench check carts.py:Carts
# python -m bench run --problem quadrotor,carts.py:Carts --gradient jfb,implicit,direct
# ```
