"""DDIM with a share of the noise renewed at every step, whatever the step's length."""

from dataclasses import dataclass

from torch import Tensor

from fokker.plan import Node
from fokker.solve.onestep import DDIM


@dataclass(frozen=True)
class Renoise(DDIM):
    """x_s = alpha_s D + sigma_s (sqrt(1 - eta^2) eps + eta z) with eps = (x_t - alpha_t D) / sigma_t.

    eta = 0 is DDIM; eta = 1 takes nothing from x_t but the belief. For restorers, whose corrected belief no longer belongs to
    the noise in x_t. (With a plain denoiser and eta > 0 the spread shrinks with the number of steps: eta multiplies sigma_s
    here, where DDIM's own multiplies what the ancestral step would draw.) One evaluation a step; order 1.

    Reference: Zhu et al. 2023, arXiv 2305.08995 (eta = sqrt(zeta)); Chung, Lee, Ye 2024, arXiv 2303.05754.
    """

    def renewed(self, t: Node, s: Node) -> Tensor:
        return (self.eta * s.sigma) ** 2
