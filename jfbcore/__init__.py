"""Jacobian-free backpropagation for optimal control with implicit Hamiltonians."""
