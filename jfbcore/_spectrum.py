"""What is asked about the spectrum of a Hessian that is known by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: products with the Hessian that estimate its extreme eigenvalues
_LANCZOS_STEPS = 6


def usable(size: Tensor) -> Tensor:
    """A curvature to divide by: one where `size` is zero or not finite, as a linear H has it."""
    return torch.where((size > torch.finfo(size.dtype).tiny) & size.isfinite(), size, 1.0)


def inverse_diagonal(diagonal: Tensor) -> Tensor:
    """Positive (batch, m): the inverse of the sizes in `diagonal`, none far below the others."""
    size = diagonal.abs()
    largest = usable(torch.where(size.isfinite(), size, 0.0).amax(1, True))
    return 1.0 / torch.where(size.isfinite(), size, largest).maximum(1e-4 * largest)


def extreme_eigenvalues(product: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Estimates of the eigenvalues of a symmetric `product`, (batch, steps), in ascending order.

    Lanczos' method from the vectors `start` (batch, m): the first and the last approach the
    extreme eigenvalues from inside, and are exact where few eigenvalues differ.
    """
    steps = min(_LANCZOS_STEPS, start.shape[1])
    basis: list[Tensor] = []
    largest = torch.zeros_like(start[:, :1])
    matrix = start.new_zeros(start.shape[0], steps, steps)
    vector = start
    for i in range(steps):
        length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        # A sample whose Krylov space is used up goes on with zeros, and with its first estimate.
        ended = length <= 1e-4 * largest
        basis.append(torch.where(ended, 0.0, vector / length))
        if i:
            off = torch.where(ended, 0.0, length).squeeze(1)
            matrix[:, i, i - 1] = matrix[:, i - 1, i] = off
        image = product(basis[-1])
        if i == 0:
            largest = torch.linalg.vector_norm(image, dim=1, keepdim=True)
        diagonal = torch.linalg.vecdot(basis[-1], image)
        matrix[:, i, i] = torch.where(ended.squeeze(1), matrix[:, 0, 0], diagonal)
        space = torch.stack(basis, 1)
        for _ in range(2):
            image = image - ((space @ image.unsqueeze(2)).mT @ space).squeeze(1)
        vector = image
    finite = matrix.isfinite().all(2, True).all(1, True)
    matrix = torch.where(finite, matrix, torch.eye(steps).to(matrix))
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values


def without_pattern(like: Tensor) -> Tensor:
    """One fixed vector (m,) of numbers in [-1/2, 1/2) that no structure of a problem resembles."""
    index = torch.arange(1, like.shape[1] + 1, dtype=torch.float64, device=like.device)
    return (index.square() * (0.5 * (math.sqrt(5.0) - 1.0))).frac().sub(0.5).to(like.dtype)
