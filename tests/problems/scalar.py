"""The problems' formulas once more, as loops over agents on Python floats.

Written from the mathematics, one sample at a time, so that nothing is shared with the tensor
code they are compared with: no broadcasting, no reshaping, no vectorised sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]


def interaction(positions: Sequence[Vector]) -> float:
    """Q = 1/(2N) sum over pairs closer than 2 of exp(-d^2/2)."""
    n_agents, terms = len(positions), []
    for i in range(n_agents):
        for j in range(i + 1, n_agents):
            squared = math.fsum(
                (a - b) ** 2 for a, b in zip(positions[i], positions[j], strict=True)
            )
            if squared < 4.0:
                terms.append(math.exp(-squared / 2.0))
    return math.fsum(terms) / (2.0 * n_agents)


def split(flat: Vector, width: int) -> list[list[float]]:
    """One list per agent."""
    return [list(flat[i : i + width]) for i in range(0, len(flat), width)]


def hamiltonian(
    p: Vector, dynamics: Callable[[], Vector], running_cost: Callable[[], float]
) -> float:
    """H = -<p, f> - L."""
    return -math.fsum(a * b for a, b in zip(p, dynamics(), strict=True)) - running_cost()


def quadrotor_dynamics(z: Vector, u: Vector, mass: float = 0.5, g: float = 1.0) -> list[float]:
    rate = []
    for state, control in zip(split(z, 12), split(u, 4), strict=True):
        psi, theta, phi = state[3], state[4], state[5]
        push = control[0] / mass
        rate += state[6:12]
        rate.append(
            push * (math.sin(psi) * math.sin(phi) + math.cos(psi) * math.sin(theta) * math.cos(phi))
        )
        rate.append(
            push
            * (-math.cos(psi) * math.sin(phi) + math.sin(psi) * math.sin(theta) * math.cos(phi))
        )
        rate.append(push * math.cos(theta) * math.cos(phi) - g)
        rate += control[1:4]
    return rate


def quadrotor_running_cost(z: Vector, u: Vector, interaction_weight: float = 0.1) -> float:
    n_agents = len(u) // 4
    control_cost = math.exp(math.fsum(x * x for x in u) / (2.0 * n_agents))
    return control_cost + interaction_weight * interaction([s[:3] for s in split(z, 12)])


def quadrotor_terminal_cost(
    z: Vector, weight: float = 1000.0, target: Vector = (2.0, 2.0, 2.0)
) -> float:
    agents = split(z, 12)
    terms = []
    for state in agents:
        for k in range(12):
            wanted = target[k] if k < 3 else 0.0
            terms.append((state[k] - wanted) ** 2)
    return weight / (4.0 * len(agents)) * math.fsum(terms)


def quadrotor_control_coefficient(z: Vector, p: Vector, mass: float = 0.5) -> list[float]:
    """(df/du)^T p, from the dynamics: f is affine in u, so differences are derivatives."""
    n_controls = len(z) // 3
    rest = quadrotor_dynamics(z, [0.0] * n_controls, mass)
    found = []
    for k in range(n_controls):
        unit = [0.0] * n_controls
        unit[k] = 1.0
        moved = quadrotor_dynamics(z, unit, mass)
        found.append(math.fsum(c * (a - b) for c, a, b in zip(p, moved, rest, strict=True)))
    return found


def quadrotor_optimal_control(c: Vector) -> list[float]:
    """argmax of -<c, u> - exp(|u|^2/2N): u = -s c/|c| with the length s found by bisection.

    The length solves |c| = exp(s^2/2N) s/N; its right-hand side grows with s.
    """
    n_agents = len(c) // 4
    norm = math.sqrt(math.fsum(x * x for x in c))
    low, high = 0.0, n_agents * norm + 1e-300
    for _ in range(400):
        middle = 0.5 * (low + high)
        # compared as logarithms, which do not overflow
        slope = middle * middle / (2.0 * n_agents) + math.log(max(middle, 1e-300) / n_agents)
        if slope < math.log(max(norm, 1e-300)):
            low = middle
        else:
            high = middle
    return [-low * x / norm if norm > 0.0 else 0.0 for x in c]


def bicycle_dynamics(z: Vector, u: Vector, wheelbase: float = 0.05) -> list[float]:
    rate = []
    for (_, _, heading, speed), (steering, acceleration) in zip(
        split(z, 4), split(u, 2), strict=True
    ):
        rate.append(speed * math.cos(heading))
        rate.append(speed * math.sin(heading))
        rate.append(speed / wheelbase * math.tan(steering))
        rate.append(acceleration)
    return rate


def bicycle_running_cost(z: Vector, u: Vector, interaction_weight: float = 5.0) -> float:
    control_cost = 0.5 * math.fsum(x * x for x in u)
    return control_cost + interaction_weight * interaction([s[:2] for s in split(z, 4)])


def bicycle_terminal_cost(z: Vector, weight: float = 250.0, target: Vector = (1.0, 1.0)) -> float:
    return weight * math.fsum(
        (x - target[0]) ** 2 + (y - target[1]) ** 2 for x, y, _, _ in split(z, 4)
    )


def consumption_dynamics(
    z: Vector,
    u: Vector,
    r: float = 0.3,
    eta: float = 0.9,
    theta: float = 0.9,
    A: Sequence[Vector] | None = None,
    B: Sequence[Vector] | None = None,
) -> list[float]:
    wealth, habits = z[0], z[1:]
    rate = [r * wealth - math.fsum(u)]
    goods = range(len(habits))
    identity = [[float(i == j) for j in goods] for i in goods]
    A, B = A or identity, B or identity
    for i in goods:
        formed = math.fsum(A[i][j] * u[j] ** eta for j in goods)
        worn = math.fsum(B[i][j] * habits[j] ** theta for j in goods)
        rate.append(formed - worn)
    return rate


def consumption_running_cost(
    t: float, z: Vector, u: Vector, delta: float = 0.01, gamma: float = 2.0
) -> float:
    utility = math.fsum(
        (rate_of_use - habit) ** (1.0 - gamma) / (1.0 - gamma)
        for rate_of_use, habit in zip(u, z[1:], strict=True)
    )
    return -math.exp(-delta * t) * utility


def consumption_terminal_cost(z: Vector, epsilon: float = 5.0, gamma: float = 2.0) -> float:
    return -epsilon * z[0] ** (1.0 - gamma) / (1.0 - gamma)


def rotor_quadrotor_dynamics(z: Vector, u: Vector) -> list[float]:
    """At the default parameters."""
    rate, ratio, hover = [], (0.149 - 0.082) / 0.082, 4.0 * 9.81 / 4.0
    for state, command in zip(split(z, 12), split(u, 4), strict=True):
        yaw, pitch, roll, *velocity = state[3:9]
        yaw_rate, pitch_rate, roll_rate = state[9:12]
        d = (
            math.sin(yaw) * math.sin(roll) + math.cos(yaw) * math.sin(pitch) * math.cos(roll),
            math.sin(yaw) * math.sin(pitch) * math.cos(roll) - math.cos(yaw) * math.sin(roll),
            math.cos(pitch) * math.cos(roll),
        )
        w = [1.0 + 0.5 * math.tanh(x / 0.5) for x in command]
        along = math.fsum(a * b for a, b in zip(velocity, d, strict=True))
        lift, drag = 9.81 * math.fsum(x * x for x in w) / 4.0, 0.4 * math.fsum(w) / 4.0
        rate += state[6:12]
        rate += [lift * a - drag * (v - along * a) for a, v in zip(d, velocity, strict=True)]
        rate[-1] -= 9.81
        turn = w[1] ** 2 + w[3] ** 2 - w[0] ** 2 - w[2] ** 2
        lever = 0.315 * hover / 0.082
        rate.append(0.0081 * hover / 0.149 * turn)
        rate.append(lever * (w[2] ** 2 - w[0] ** 2) + ratio * roll_rate * yaw_rate)
        rate.append(lever * (w[1] ** 2 - w[3] ** 2) - ratio * pitch_rate * yaw_rate)
    return rate


def rotor_quadrotor_running_cost(
    z: Vector, u: Vector, effort: float = 100.0, supply: float = 100.0
) -> float:
    agents = split(u, 4)
    costs = [0.5 * (effort * math.fsum(x * x for x in v) + supply * sum(v) ** 2) for v in agents]
    return math.fsum(costs) / len(agents) + 0.1 * interaction([s[:3] for s in split(z, 12)])


def rotor_quadrotor_terminal_cost(
    z: Vector, target: Vector = (2.0, 2.0, 1.0), settling_time: float = 0.2
) -> float:
    agents, terms = split(z, 12), []
    for state in agents:
        terms += [(state[k] - target[k]) ** 2 for k in range(3)]
        terms += [x * x for x in state[3:6]]
        terms += [(settling_time * x) ** 2 for x in state[6:12]]
    return 1000.0 / (4.0 * len(agents)) * math.fsum(terms)


def liquidation_dynamics(z: Vector, u: Vector) -> list[float]:
    return [-x for x in u]


def liquidation_running_cost(z: Vector, u: Vector) -> float:
    return _mixed(u, 2.5, 0.05) + _mixed(z, 0.95**2, 0.3)


def liquidation_terminal_cost(z: Vector) -> float:
    return 20.0 * _mixed(z, 2.5, 0.05)


def _mixed(x: Vector, size: float, share: float) -> float:
    """sum_ij size (share + (1 - share) [i = j]) x_i x_j."""
    return size * math.fsum(
        a * b * (1.0 if i == j else share) for i, a in enumerate(x) for j, b in enumerate(x)
    )
