"""The ancestral sampler of processes whose mean moves by itself: residual shifting and residual denoising."""

from dataclasses import dataclass

from torch import Tensor

from fokker.plan import Node
from fokker.solve.onestep import DDIM


@dataclass(frozen=True)
class ResidualAncestral(DDIM):
    """x_s = alpha_s D + sqrt(sigma_s^2 - n^2) eps + n z, where a share sigma_s^2 / sigma_t^2 of the noise at t was there at s.

    n^2 = eta sigma_s^2 (1 - sigma_s^2 / sigma_t^2), 0 where the noise rises. With the anchor left in, eta = 1 is ResShift's

        x_s = (eta_s / eta_t) x_t + (1 - eta_s / eta_t) D + kappa sqrt(eta_s (eta_t - eta_s) / eta_t) z,

    and eta between 0 and 1 the family of RDDM, whose member eta = 0 is DDIM. The mean shifts by the residual itself in every
    step, so that, unlike for DDPM, the noise alone is a chain. One evaluation a step; order 1; runs on every process.

    Reference: Yue et al. 2024, arXiv 2403.07319; Liu et al. 2024, arXiv 2308.13712.
    """

    eta: float = 1.0

    def renewed(self, t: Node, s: Node) -> Tensor:
        return self.eta * s.sigma**2 * (1 - (s.sigma / t.sigma) ** 2).clamp_min(0.0)
