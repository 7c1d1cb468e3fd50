"""The ancestral sampler of processes whose mean moves by itself: residual shifting and residual denoising."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver


@dataclass(frozen=True)
class ResidualAncestral(Solver):
    """x_s = alpha_s D + sqrt(sigma_s^2 - n^2) eps + n z, where a share sigma_s^2 / sigma_t^2 of the noise at t was there at s.

    n^2 = eta sigma_s^2 (1 - sigma_s^2 / sigma_t^2), 0 where the noise rises. With the anchor left in, eta = 1 is ResShift's

        x_s = (eta_s / eta_t) x_t + (1 - eta_s / eta_t) D + kappa sqrt(eta_s (eta_t - eta_s) / eta_t) z,

    and eta between 0 and 1 the family of RDDM, whose member eta = 0 is DDIM. The mean shifts by the residual itself in every
    step, so that, unlike for DDPM, the noise alone is a chain. One evaluation a step; order 1; runs on every process.

    Reference: Yue et al. 2024, arXiv 2403.07319; Liu et al. 2024, arXiv 2308.13712.
    """

    eta: float = 1.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise FokkerError(f"eta={self.eta} is not accepted; 0 is deterministic and 1 ancestral")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data:
                return D
            new = self.eta * s.sigma**2 * (1 - (s.sigma / t.sigma) ** 2).clamp_min(0.0)
            keep = torch.sqrt(s.sigma**2 - new) / t.sigma
            x = keep * x + (s.alpha - keep * t.alpha) * D
            if self.eta:
                x = x + torch.sqrt(new) * draft.noise(t, s)
        return x
