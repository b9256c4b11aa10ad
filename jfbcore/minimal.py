"""The method (arXiv 2602.00921) on one page: the specification that the library is held against.

Minimise E[integral_0^T L(z, u) dt + G(z(T))] subject to dz/dt = f(z, u). A network learns the value
function phi(t, z); u maximises H(u) = -<p, f(z, u)> - L(z, u) with p = grad_z phi. A fixed-point
iteration finds u; only its last step is differentiated: Jacobian-free backpropagation, JFB.
"""

import torch
from torch import Tensor, nn


def dynamics(z: Tensor, u: Tensor) -> Tensor:
    """f; z: position, (yaw, pitch, roll), their rates; u: thrust, three angular accelerations."""
    (s4, s5, s6), (c4, c5, c6) = (g(z[..., 3:6]).unbind(-1) for g in (torch.sin, torch.cos))
    direction = torch.stack((s4 * s6 + c4 * s5 * c6, s4 * s5 * c6 - c4 * s6, c5 * c6), -1)
    mass, gravity = 0.5, z.new_tensor([0.0, 0.0, 1.0])
    return torch.cat((z[..., 6:], u[..., :1] / mass * direction - gravity, u[..., 1:]), -1)


def running_cost(z: Tensor, u: Tensor) -> Tensor:
    """L = exp(|u|^2 / 2N) + 0.1 Q, (batch,), where Q charges pairs of agents closer than 2 m."""
    N, d2 = z.shape[1], (z[:, None, :, :3] - z[:, :, None, :3]).square().sum(-1)
    pairs = torch.where(d2 < 4, (-d2 / 2).exp(), 0).triu(1)
    return (u.square().sum((1, 2)) / (2 * N)).exp() + 0.1 * pairs.sum((1, 2)) / (2 * N)


def terminal_cost(z: Tensor) -> Tensor:
    """G = 1000/4N |z - target|^2, (batch,): every agent upright and at rest at (2, 2, 2) m."""
    return 250 * (z - z.new_tensor([2.0] * 3 + [0.0] * 9)).square().sum(2).mean(1)


def initial_states(batch: int, n_agents: int, generator: torch.Generator) -> Tensor:
    """Positions and angles 0.1 N(0, 1), everything at rest."""
    x = torch.randn(batch, n_agents, 6, generator=generator, dtype=torch.float64)
    return nn.functional.pad(0.1 * x, (0, 6))


class ValueNetwork(nn.Module):
    """phi(t, z) = w.x(y) + |A y|^2 / 2 + b.y, with y = (z, t) and x a residual network."""

    def __init__(self, n: int, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.opening = nn.Linear(n + 1, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.readout = nn.Parameter((0.2 * torch.rand(width) - 0.1) / width**0.5)
        self.quadratic = nn.Parameter((2 * torch.rand(10, n + 1) - 1) / (10 * (n + 1)) ** 0.5)
        self.linear = nn.Parameter(torch.zeros(n + 1))

    def forward(self, t: float, z: Tensor) -> Tensor:
        """phi, (batch,), at one time and states (batch, N, 12)."""
        y = nn.functional.pad(z.flatten(1), (0, 1), value=t)
        x: Tensor = (2 * self.opening(y).cosh()).log()  # the derivative of log(2 cosh a) is tanh a
        for layer in self.layers:
            x = x + (2 * layer(x).cosh()).log() / len(self.layers)
        return x @ self.readout + (y @ self.quadratic.T).square().sum(1) / 2 + y @ self.linear


def fixed_point_map(c: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """T(u) = u + D grad_u H and the residual |grad_u H| (batch,), where c = (df/du)^T p."""
    N, s = u.shape[1], u.square().sum((1, 2), keepdim=True) / (2 * u.shape[1])
    gradient = -c - s.exp() * u / N
    # D inverts the mean of -Hessian's extreme eigenvalues, e^s / N and e^s (1 + 2s) / N. No step is
    # longer than sqrt(N log(1 + x)), a bound of |u*|, or e^s would overflow. No derivative of D.
    x = (N * c.detach().square().sum((1, 2), keepdim=True)).clamp_min(1e-300)
    D = torch.minimum(N / s.exp(), N * (x.log1p() / x).sqrt()) / (1 + s)
    return u + D * gradient, gradient.flatten(1).norm(dim=1)


def rollout(
    phi: nn.Module, z: Tensor, n_steps: int, t_final: float, tolerance: float, max_iterations: int
) -> Tensor:
    """Cost (batch,) of left-endpoint Euler steps from z, differentiable in phi's parameters."""
    h, cost = t_final / n_steps, z.new_zeros(len(z))
    for i in range(n_steps):
        p, u = torch.func.grad(lambda z, t: phi(t, z).sum())(z, i * h), torch.zeros_like(z[..., :4])
        _, c = torch.func.vjp(dynamics, z, u)[1](p)  # f is affine in u: the same c at every u
        for _ in range(max_iterations + 1):
            # JFB drops one derivative, that of T by its argument: T(u*) has a graph through c only.
            u, residual = fixed_point_map(c, u.detach())
            if residual.max() <= tolerance:
                break
        cost, z = cost + h * running_cost(z, u), z + h * dynamics(z, u)
    return cost + terminal_cost(z)


def main(steps: int = 60, batch: int = 50, n_agents: int = 1) -> float:
    """Train with Adam; print the mean cost of every minibatch and return the last."""
    generator, phi = torch.manual_seed(0), ValueNetwork(12 * n_agents).double()
    optimizer = torch.optim.Adam(phi.parameters(), lr=1e-2)
    for step in range(steps):
        cost = rollout(phi, initial_states(batch, n_agents, generator), 160, 4.5, 1e-4, 500).mean()
        print(f"step {step:4d}  cost {cost.item():9.2f}", flush=True)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return cost.item()


if __name__ == "__main__":
    main()
