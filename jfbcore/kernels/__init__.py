"""Hand-written derivatives and GPU kernels, each beside the plain formula that it replaces.

Everything here can be ignored by a reader of the method: the formulas are in `jfbcore.problems` and
`jfbcore.value_network`, and tests hold what is written here to them.
"""
