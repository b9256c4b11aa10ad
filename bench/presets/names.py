"""The methods, maps and problems that presets measure, by their names."""

from __future__ import annotations

#: one of each kind of gradient
MAIN_GRADIENTS = (
    "jfb",
    "implicit",
    "unrolled",
    "unrolled-checkpoint",
    "torchdeq",
    "cvxpylayers",
    "direct",
)
MORE_GRADIENTS = ("jfb-3", "torchdeq-phantom", "torchdeq-implicit", "implicit-gmres")
#: what a problem that is there for its Hamiltonian or its formula is measured with in brief
FEW_GRADIENTS = ("jfb", "implicit", "unrolled", "cvxpylayers", "direct")
#: maps and solvers on which JFB is measured in rows of equal rank: its bias is the map's
JFB_MAPS = (("plain", "picard"), ("scaled", "picard"), ("newton", "newton"))
#: problems beside quadrotors in the smoke preset: agents or goods, and time steps
OTHER_PROBLEMS = (("bicycle", 1, 20), ("consumption", 5, 20))
#: the same, measured with FEW_GRADIENTS
BRIEF_PROBLEMS = (("rotor-quadrotor", 1, 12), ("liquidation", 20, 20))
#: those that a compiled rollout can run on every map and solver of the recommended recipe
COMPILED_GRADIENTS = (
    *("jfb", "implicit", "reversible", "direct"),
    *("pretrained-jfb", "pretrained-direct"),
)
