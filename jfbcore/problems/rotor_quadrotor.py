"""Quadrotors driven by the speeds of their rotors, which saturate: a Hamiltonian that is hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from jfbcore._validate import non_negative, parameter, points, positive, positive_int
from jfbcore.kernels.rotor_quadrotor import RotorQuadrotorHamiltonian, curvature_constants
from jfbcore.problems.base import Problem, Time
from jfbcore.problems.interaction import with_interaction
from jfbcore.problems.quadrotor import Quadrotor, at_rest


@dataclass(eq=False, repr=False)
class RotorQuadrotor(Problem):
    """N quadrotors whose control is the command to every rotor; dynamics are not affine in it.

    State, (batch, 12 N), agent-major: position [m], angles (yaw psi, pitch theta, roll phi) [rad],
    velocity [m/s], angular rates [rad/s], as for `Quadrotor`. Control, (batch, 4 N): commands u_i
    of the front, left, rear and right rotor, in units of the speed at which the machine hovers.

    A rotor turns at w_i = 1 + s tanh(u_i / s) times that speed, s = `speed_range`: motors saturate.
    Its thrust and its drag torque grow with w_i^2; torques are differences of these. Flapping
    blades and induced drag resist in proportion to rotor speed and to the velocity across the rotor
    disc (Mahony, Kumar, Corke, IEEE RAM 2012; Kai, Allibert, Hua, Hamel, IFAC 2017). With d the
    thrust direction and means over the four rotors,
        v' = g mean(w^2) d - g e_z - D mean(w) (v - <v, d> d),
        theta'' = A (w_3^2 - w_1^2) + phi' psi' (I_z - I_x) / I_x,
        phi'' = A (w_2^2 - w_4^2) - theta' psi' (I_z - I_x) / I_x,
        psi'' = Y (w_2^2 + w_4^2 - w_1^2 - w_3^2),
    A = `arm` m g / 4 I_x, Y = `torque_ratio` m g / 4 I_z: Euler's equations at small angles
    (Bouabdallah, Noth, Siegwart, IROS 2004). The defaults are the 4 kg X-4 flyer (Pounds, Mahony,
    Corke, Control Engineering Practice 2010), D [1/s] is of the size that Faessler, Franchi and
    Scaramuzza (RA-L 2018) identified. Rotors' gyroscopic torque and their lag are left out.

    L = mean over agents of (effort |u|^2 + supply (sum_i u_i)^2) / 2 + the interaction cost: all
    rotors of an agent draw on one battery, whose loss grows with the square of the total current.

    With a_i and e_i the factors of w_i^2 and w_i in <p, f>, -d2H/du2 is, agent by agent,
    diag(effort / N + a_i (w^2)'' + e_i w'') + supply / N in every entry, and |(w^2)''| <= c_2,
    |w''| <= c_1 (3.57 and 1.54 at s = 1/2). Hence H is strongly concave in u wherever
    x = N max_i (c_2 |a_i| + c_1 |e_i|) / effort < 1; `concavity(z, p)` is 1 - x. Beyond, H may have
    several maxima. The maximiser has no closed form. Along the optima of four held-out states, one
    agent, x < 1 at 97 % of the time steps; from a cold start to 1e-4 `plain` takes 81 iterations
    with |dT/du| = 0.91 to 0.93, `scaled` 26 with 0.69 to 0.76, `newton` 2.
    """

    name = "rotor-quadrotor"
    hamiltonian_class = RotorQuadrotorHamiltonian

    n_agents: int = parameter(1, positive_int)
    _: KW_ONLY
    mass: float = parameter(4.0, positive)
    inertia: Sequence[float] = parameter((0.082, 0.149), points(2))
    arm: float = parameter(0.315, positive)
    torque_ratio: float = parameter(0.0081, positive)
    rotor_drag: float = parameter(0.4, non_negative)
    g: float = parameter(9.81, positive)
    speed_range: float = parameter(0.5, positive)
    effort_weight: float = parameter(100.0, positive)
    supply_weight: float = parameter(100.0, non_negative)
    interaction_weight: float = parameter(0.1, non_negative)
    terminal_weight: float = parameter(1000.0, non_negative)
    settling_time: float = parameter(0.2, non_negative)
    target_position: Sequence[float] = parameter((2.0, 2.0, 1.0), points(3))
    initial_scale: float = parameter(0.1, non_negative)
    t_final: float = 2.0
    n_steps: int = 80

    def __post_init__(self, device: str | torch.device) -> None:
        super().__post_init__(device)
        if min(self.inertia) <= 0:
            raise ValueError(f"`inertia` must be > 0 about both axes [kg m^2], got {self.inertia}")
        if self.speed_range >= 1.0:
            raise ValueError(f"`speed_range` must be < 1, or rotors stop, got {self.speed_range}")
        self.state_dim, self.control_dim = 12 * self.n_agents, 4 * self.n_agents

    @property
    def tilt_gain(self) -> float:
        """A: angular acceleration about an arm by one rotor at hovering speed [rad/s^2]."""
        return self.arm * self.mass * self.g / (4.0 * self.inertia[0])

    @property
    def yaw_gain(self) -> float:
        """Y: angular acceleration about the axis by one rotor at hovering speed [rad/s^2]."""
        return self.torque_ratio * self.mass * self.g / (4.0 * self.inertia[1])

    def rotor_speed(self, u: Tensor) -> Tensor:
        """w = 1 + s tanh(u / s), over the hovering speed, in the shape of the commands `u`."""
        return 1.0 + self.speed_range * torch.tanh(u / self.speed_range)

    def dynamics(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """f(t, z, u): (batch, 12 N), (batch, 4 N) -> (batch, 12 N)."""
        self.check(z=z, u=u)
        return self.rate(z, u, *self.air(self.agents(z)))

    def rate(self, z: Tensor, u: Tensor, direction: Tensor, across: Tensor) -> Tensor:
        """f for the directions and velocities that `air` finds: (batch, 12 N)."""
        agents = self.agents(z)
        w = self.rotor_speed(u).view(*agents.shape[:2], 4)
        squared = w.square()
        front, left, rear, right = squared.unbind(-1)
        lift = self.g * squared.mean(-1, keepdim=True) * direction
        force = lift - self.rotor_drag * w.mean(-1, keepdim=True) * across
        yaw_rate, pitch_rate, roll_rate = agents[..., 9:].unbind(-1)
        precession = self.inertia[1] / self.inertia[0] - 1.0
        yaw = self.yaw_gain * (left + right - front - rear)
        pitch = self.tilt_gain * (rear - front) + precession * roll_rate * yaw_rate
        roll = self.tilt_gain * (left - right) - precession * pitch_rate * yaw_rate
        turn = torch.stack((yaw, pitch, roll), -1)
        rate = (agents[..., 6:], force[..., :2], force[..., 2:] - self.g, turn)
        return torch.cat(rate, -1).view_as(z)

    def air(self, agents: Tensor) -> tuple[Tensor, Tensor]:
        """Thrust direction d and velocity across the rotor discs [m/s]: (batch, N, 12) -> two
        (batch, N, 3)."""
        direction, velocity = Quadrotor.thrust_direction(agents), agents[..., 6:9]
        along = torch.linalg.vecdot(velocity, direction).unsqueeze(-1)
        return direction, velocity - along * direction

    def running_cost(self, t: Time, z: Tensor, u: Tensor) -> Tensor:
        """L, (batch,): effort and supply as a mean over agents, and the interaction cost."""
        self.check(z=z, u=u)
        total = u.view(u.shape[0], self.n_agents, 4).sum(-1)
        cost = self.effort_weight * torch.linalg.vecdot(u, u)
        cost = (cost + self.supply_weight * torch.linalg.vecdot(total, total)) * 0.5 / self.n_agents
        return with_interaction(cost, self.interaction_weight, self.agents(z), 3)

    def terminal_cost(self, z: Tensor) -> Tensor:
        """G, (batch,): terminal_weight / (4N) times what misses the target, at rest and upright.

        That is the sum of squares of distances and angles and of what velocities and rates cover
        of them in `settling_time`.
        """
        self.check(z=z)
        agents = self.agents(z)
        place = [agents[..., i] - x for i, x in enumerate(self.target_position)]
        miss = torch.stack(place, -1).square().sum(-1) + agents[..., 3:6].square().sum(-1)
        miss = miss + self.settling_time**2 * agents[..., 6:].square().sum(-1)
        return miss.sum(1) * (0.25 * self.terminal_weight / self.n_agents)

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions and angles, zero velocities and rates: (batch, 12 N)."""
        draw = self._normal(batch, 6 * self.n_agents, generator)
        return at_rest(self.initial_scale * draw)

    def concavity(self, z: Tensor, p: Tensor) -> Tensor:
        """1 - x of the class's docstring, (batch,): above zero H is strongly concave in u."""
        self.check(z=z, p=p)
        c_2, c_1 = curvature_constants(self.speed_range)
        h = RotorQuadrotorHamiltonian(self, 0.0, z, p)
        bent = c_2 * h.squared.abs() + c_1 * h.linear.abs()
        margin: Tensor = 1.0 - bent.amax(1) * self.n_agents / self.effort_weight
        return margin

    @property
    def gradient_scale(self) -> float:
        """The effort's gradient where every rotor is commanded to a fifth of its range."""
        return 0.2 * self.speed_range * 2.0 * self.effort_weight / math.sqrt(self.n_agents)

    def agents(self, z: Tensor) -> Tensor:
        """States or costates by agent: (batch, 12 N) -> (batch, N, 12)."""
        return z.reshape(z.shape[0], self.n_agents, 12)
