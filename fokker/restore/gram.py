"""A A^T of a small operator as a matrix, diagonalised once: what iterations would do at every step of a run."""

import torch
from torch import Tensor

from fokker.restore import Operator

DENSE = 1024  # numbers in a measurement up to which this is the quicker way


class Gram:
    """(a A A^T + b)^{-1} v by the eigenvectors of A A^T, for an operator on measurements shaped as `like` (1, ...)."""

    def __init__(self, operator: Operator, like: Tensor) -> None:
        size = like[0].numel()
        each = torch.eye(size, dtype=torch.float64, device=like.device).reshape(size, *like.shape[1:])
        matrix = operator(operator.adjoint(each)).flatten(1)
        values, self.vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        # what eigh leaves of a zero is rounding
        self.values = torch.where(values > values.max() * 1e-12, values, torch.zeros_like(values))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        """The least-norm solution where b is 0 and A A^T singular; `a`, `b` are numbers or one per sample."""
        vectors, values = self.vectors.to(v), self.values.to(v)
        a, b = (c.reshape(-1, 1).to(v) if isinstance(c, Tensor) else c for c in (a, b))
        scale = a * values + b
        gain = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, torch.ones_like(scale)), torch.zeros_like(scale))
        solution: Tensor = ((v.flatten(1) @ vectors) * gain) @ vectors.T
        return solution.reshape(v.shape)
