"""Differentiable solvers that have no method here, each with the reason; docs/field.md has sources.

The inner problems of this suite are argmax H: exp(|u|^2 / 2N) for quadrotors, powers of the
consumption, a trigonometric and not concave Hamiltonian for bicycles.
"""

from __future__ import annotations

_QUADRATIC = "quadratic programs only: of the problems here liquidation alone has one"
_WHOLE_HORIZON = "differentiates an optimal control problem over the whole horizon, not argmax H"

#: reasons by name
UNSUPPORTED: dict[str, str] = {
    "cvxpylayers on MPAX": (
        "linear and quadratic programs only, and its backward pass in torch is not implemented "
        "(cvxpylayers 1.2)"
    ),
    "cvxpylayers on CuClarabel": "needs Julia, CuPy and JAX with CUDA beside torch",
    "qpth": _QUADRATIC,
    "dQP": _QUADRATIC,
    "qpax": f"{_QUADRATIC}; JAX",
    "BPQP": "published for linear, quadratic and second-order cone programs: no exponential cone",
    "diffqcp": "JAX, and only the derivative of a solution; cvxpylayers-moreau builds on it",
    "jaxipm": "JAX on a GPU with CUDA 13, and no derivative of the solution in its interface",
    "TurboMPC": f"{_WHOLE_HORIZON}; JAX",
    "acados with leap-c": f"{_WHOLE_HORIZON}; needs acados built from source",
    "mpc.pytorch": _WHOLE_HORIZON,
}
