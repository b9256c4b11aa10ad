"""Quadrotors driven by the speeds of their rotors, which saturate: a Hamiltonian that is hard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jfbcore import _validate
from jfbcore.kernels.rotor_quadrotor import (
    STATES_PER_AGENT,
    RotorQuadrotorHamiltonian,
    curvature_constants,
)
from jfbcore.problems.base import Hamiltonian, Problem, Time
from jfbcore.problems.interaction import interaction_cost
from jfbcore.problems.quadrotor import Quadrotor

ROTORS = 4


class RotorQuadrotor(Problem):
    """N quadrotors whose control is the command to every rotor; dynamics are not affine in it.

    State, (batch, 12 N), agent-major: position [m], angles (yaw psi, pitch theta, roll phi) [rad],
    velocity [m/s], angular rates [rad/s], as for `Quadrotor`. Control, (batch, 4 N): commands u_i
    of the front, left, rear and right rotor, in units of the speed at which the machine hovers.

    A rotor turns at w_i = 1 + s tanh(u_i / s) times that speed, with s = `speed_range`: motors
    saturate at both ends (at s = 1/2 thrust lies between 1/4 and 9/4 of hovering). Its thrust and
    its drag torque grow with w_i^2; torques are differences of these. Flapping blades and induced
    drag resist in proportion to rotor speed and to the velocity across the rotor disc (Mahony,
    Kumar, Corke, Multirotor Aerial Vehicles, IEEE RAM 2012; Kai, Allibert, Hua, Hamel, IFAC 2017).
    With d the thrust direction and means over the four rotors,
        v' = g mean(w^2) d - g e_z - D mean(w) (v - <v, d> d),
        theta'' = A (w_3^2 - w_1^2) + phi' psi' (I_z - I_x) / I_x,
        phi'' = A (w_2^2 - w_4^2) - theta' psi' (I_z - I_x) / I_x,
        psi'' = Y (w_2^2 + w_4^2 - w_1^2 - w_3^2),
    A = `arm` m g / 4 I_x, Y = `torque_ratio` m g / 4 I_z: Euler's equations where angles are small
    enough that their rates are the body's (Bouabdallah, Noth, Siegwart, IROS 2004). The defaults
    are the 4 kg X-4 flyer (Pounds, Mahony, Corke, Control Engineering Practice 2010), D [1/s] is
    of the size that Faessler, Franchi and Scaramuzza (RA-L 2018) identified. Rotors' gyroscopic
    torque and their lag are left out.

    L = mean over agents of (effort |u|^2 + supply (sum_i u_i)^2) / 2 + the interaction cost: all
    rotors of an agent draw on one battery, whose loss grows with the square of the total current.

    With a_i and e_i the factors of w_i^2 and w_i in <p, f>, -d2H/du2 is, agent by agent,
    diag(effort / N + a_i (w^2)'' + e_i w'') + supply / N in every entry, and the derivatives are
    bounded: |(w^2)''| <= c_2, |w''| <= c_1 (3.57 and 1.54 at s = 1/2). Hence H is strongly
    concave in u, with modulus (effort / N)(1 - x), wherever x = N max_i (c_2 |a_i| + c_1 |e_i|) /
    effort < 1, for every u; `concavity(z, p)` is 1 - x. Beyond, H may have several maxima. The
    maximiser has no closed form.

    Along the optima of four held-out states, one agent, the range holds at 97 % of the time steps;
    from a cold start to 1e-4 `plain` takes 81 iterations (at most 111) with |dT/du| = 0.91 to 0.93,
    `scaled` 26 (29) with 0.69 to 0.76, `newton` 2 (4).
    """

    name = "rotor-quadrotor"

    def __init__(
        self,
        n_agents: int = 1,
        *,
        mass: float = 4.0,
        inertia: Sequence[float] = (0.082, 0.149),
        arm: float = 0.315,
        torque_ratio: float = 0.0081,
        rotor_drag: float = 0.4,
        g: float = 9.81,
        speed_range: float = 0.5,
        effort_weight: float = 100.0,
        supply_weight: float = 100.0,
        interaction_weight: float = 0.1,
        terminal_weight: float = 1000.0,
        settling_time: float = 0.2,
        target_position: Sequence[float] = (2.0, 2.0, 1.0),
        initial_scale: float = 0.1,
        t_final: float = 2.0,
        n_steps: int = 80,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(t_final=t_final, n_steps=n_steps, dtype=dtype, device=device)
        self.n_agents = _validate.positive_int("n_agents", n_agents)
        self.mass = _validate.positive("mass", mass)
        self.inertia = _validate.point("inertia", inertia, 2)
        if min(self.inertia) <= 0:
            raise ValueError(f"`inertia` must be > 0 about both axes [kg m^2], got {inertia}")
        self.arm = _validate.positive("arm", arm)
        self.torque_ratio = _validate.positive("torque_ratio", torque_ratio)
        self.rotor_drag = _validate.non_negative("rotor_drag", rotor_drag)
        self.g = _validate.positive("g", g)
        self.speed_range = _validate.positive("speed_range", speed_range)
        if self.speed_range >= 1.0:
            raise ValueError(f"`speed_range` must be < 1, or rotors stop, got {speed_range}")
        self.effort_weight = _validate.positive("effort_weight", effort_weight)
        self.supply_weight = _validate.non_negative("supply_weight", supply_weight)
        self.interaction_weight = _validate.non_negative("interaction_weight", interaction_weight)
        self.terminal_weight = _validate.non_negative("terminal_weight", terminal_weight)
        self.settling_time = _validate.non_negative("settling_time", settling_time)
        self.target_position = _validate.point("target_position", target_position, 3)
        self.initial_scale = _validate.non_negative("initial_scale", initial_scale)
        self.state_dim = STATES_PER_AGENT * self.n_agents
        self.control_dim = ROTORS * self.n_agents

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
        w = self.rotor_speed(u).view(*agents.shape[:2], ROTORS)
        squared = w.square()
        front, left, rear, right = squared.unbind(-1)
        lift = self.g * squared.mean(-1, keepdim=True) * direction
        force = lift - self.rotor_drag * w.mean(-1, keepdim=True) * across
        yaw_rate, pitch_rate, roll_rate = agents[..., 9:].unbind(-1)
        precession = self.inertia[1] / self.inertia[0] - 1.0
        rate = (
            agents[..., 6:],
            force[..., :2],
            force[..., 2:] - self.g,
            torch.stack(
                (
                    self.yaw_gain * (left + right - front - rear),
                    self.tilt_gain * (rear - front) + precession * roll_rate * yaw_rate,
                    self.tilt_gain * (left - right) - precession * pitch_rate * yaw_rate,
                ),
                -1,
            ),
        )
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
        total = u.view(u.shape[0], self.n_agents, ROTORS).sum(-1)
        cost: Tensor = self.effort_weight * torch.linalg.vecdot(u, u)
        cost = (cost + self.supply_weight * torch.linalg.vecdot(total, total)) * 0.5 / self.n_agents
        if self.interaction_weight == 0 or self.n_agents == 1:
            return cost
        return cost + self.interaction_weight * interaction_cost(self.agents(z)[..., :3])

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

    def hamiltonian(self, t: Time, z: Tensor, p: Tensor) -> Hamiltonian:
        """H(t, z, p, .) with all that does not depend on the control computed: see the class."""
        self.check(z=z, p=p)
        return RotorQuadrotorHamiltonian(self, t, z, p)

    def concavity(self, z: Tensor, p: Tensor) -> Tensor:
        """1 - x of the class's docstring, (batch,): above zero H is strongly concave in u."""
        self.check(z=z, p=p)
        c_2, c_1 = curvature_constants(self.speed_range)
        h = RotorQuadrotorHamiltonian(self, 0.0, z, p)
        bent = c_2 * h.squared.abs() + c_1 * h.linear.abs()
        margin: Tensor = 1.0 - bent.amax(1) * self.n_agents / self.effort_weight
        return margin

    def sample_initial_states(self, batch: int, generator: torch.Generator) -> Tensor:
        """0.1 N(0, 1) on positions and angles, zero velocities and rates: (batch, 12 N)."""
        draw = self._normal(batch, 6 * self.n_agents, generator).view(batch, self.n_agents, 6)
        states = draw.new_zeros(batch, self.n_agents, STATES_PER_AGENT)
        states[..., :6] = self.initial_scale * draw
        return states.view(batch, self.state_dim)

    @property
    def gradient_scale(self) -> float:
        """The effort's gradient where every rotor is commanded to a fifth of its range."""
        return 0.2 * self.speed_range * 2.0 * self.effort_weight / math.sqrt(self.n_agents)

    def agents(self, z: Tensor) -> Tensor:
        """States or costates by agent: (batch, 12 N) -> (batch, N, 12)."""
        return z.reshape(z.shape[0], self.n_agents, STATES_PER_AGENT)
