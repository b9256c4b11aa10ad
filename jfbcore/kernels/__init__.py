"""GPU kernels for what the plain formulas of this package spend many launches on."""
