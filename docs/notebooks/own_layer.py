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
# # Compare gradients on your own layer
#
# The gradient estimators work on any problem with a Hamiltonian. We take one minibatch of one
# problem, compute its gradient in several ways at the same converged controls, and compare them
# with the exact one.

# %%
import time

import torch

import jfbcore as jfb
from baselines import Implicit, Unrolled

torch.set_num_threads(1)
problem = jfb.Quadrotor(n_agents=3, n_steps=10, dtype=torch.float64)
states = problem.sample_initial_states(8, torch.Generator().manual_seed(1))
reference = jfb.HamiltonianPolicy(
    problem,
    jfb.ValueNetwork.for_problem(problem, generator=torch.Generator().manual_seed(0)),
    fixed_point_map=jfb.ScaledMap(),
    solver=jfb.Picard(tolerance=1e-10),
    gradient=Implicit(),
)


def gradient(policy):
    """The minibatch gradient as one vector, and the seconds it took."""
    began = time.perf_counter()
    cost = jfb.rollout(policy, states).cost.mean()
    parts = torch.autograd.grad(cost, list(policy.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]), time.perf_counter() - began


# %% [markdown]
# `with_gradient` makes a policy that shares the network and differs in the gradient or the map.

# %%
exact, _ = gradient(reference)
rows = {
    "JFB, scaled map": reference.with_gradient(jfb.JFB()),
    "JFB(3), scaled map": reference.with_gradient(jfb.JFB(tracked=3)),
    "unrolled, scaled map": reference.with_gradient(Unrolled()),
    "JFB, newton map": reference.with_gradient(
        jfb.JFB(), fixed_point_map=jfb.NewtonMap(), solver=jfb.Newton(tolerance=1e-10)
    ),
}
errors = {}
for name, policy in rows.items():
    own, seconds = gradient(policy)
    errors[name] = (torch.linalg.vector_norm(own - exact) / torch.linalg.vector_norm(exact)).item()
    print(f"{name:22s} relative error {errors[name]:8.1e}   {1e3 * seconds:6.0f} ms")

# %% [markdown]
# Three tracked applications are closer than one, and on the Newton map JFB is the exact gradient.

# %%
assert errors["JFB(3), scaled map"] < errors["JFB, scaled map"]
assert errors["JFB, newton map"] < 1e-6
