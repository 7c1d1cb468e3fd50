"""A flow made stochastic: any amount of noise at any time, with the same marginal laws."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process, as_time
from fokker.solve import Solver
from fokker.solve.onestep import move


@dataclass(frozen=True)
class FlowSDE(Solver):
    """dx = (-v + g^2 score / 2) dtau + g dW back in time with g = scale t^power, for any model, velocity or not.

    A step holds the belief constant and is exact otherwise: the noise of x_t is kept by exp(-G / 2) and renewed with variance
    sigma_s^2 (1 - exp(-G)), G being the integral of g^2 / sigma^2 over the step. Marginal laws are those of the flow for every
    g; scale 0 is DDIM. The time is that of the process, so that the same g is more noise on one path than on another. One
    evaluation a step; order 1.

    Reference: Kim, Yoon, Hwang, Sung 2025, arXiv 2503.19385 (3 t^2); Ma et al. 2024, arXiv 2401.08740; Albergo, Boffi,
    Vanden-Eijnden 2023, arXiv 2303.08797.
    """

    scale: float = 3.0
    power: float = 2.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.scale < 0 or self.power <= 0:
            raise FokkerError(f"scale={self.scale}, power={self.power}: use scale of at least 0, and power above 0: g(0) is 0")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.scale > 0

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            new = s.sigma**2 * -torch.expm1(-self.turned(t.process, t.t, s.t)) if self.scale and not s.data else None
            x = D if s.data else move(draft, x, D, t, s, new)
        return x

    def turned(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """G, the integral of g^2 / sigma^2 from s to t, by Gauss' rule in pieces that meet at halves of t."""
        nodes, weights = _rule(24)
        total = torch.zeros_like(as_time(t))
        high = as_time(t)
        for _ in range(64):
            low = torch.maximum(high / 2, as_time(s))
            u = low[..., None] + (high - low)[..., None] * nodes
            rate = (self.scale * u**self.power) ** 2 / process.sigma(u).square()
            total = total + (high - low) * (rate @ weights)
            high = low
            if not bool((high > as_time(s)).any()):
                break
        return total


@cache
def _rule(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1], from the eigenvectors of Jacobi's matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0].square()
