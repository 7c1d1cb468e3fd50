"""The ancestral sampler of processes whose mean moves by itself: residual shifting and residual denoising."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.plan import Node, Plan
from fokker.process import Process
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


def chain(process: Process, steps: int, eta: float = 1.0) -> Plan:
    """The published short chain, `steps` evaluations and the last step to the data.

    The times are k / (steps - 1) down to t = 0 where that still has noise (ResShift), else k / steps (RDDM, whose `eta` is 0),
    so that no evaluation is spent where nothing is left to be found. Raises FokkerError for fewer than one step.

    Reference: Yue et al. 2024, arXiv 2403.07319; Liu et al. 2024, arXiv 2308.13712.
    """
    if steps < 1:
        raise FokkerError(f"steps={steps} is not accepted; use a whole number of at least 1")
    noisy = bool(process.sigma(0.0) > 0)
    times = torch.linspace(1, 0 if noisy else 1 / steps, steps, dtype=torch.float64)
    # in a grid t = 0 stands for the data
    values = [max(t, 1e-30) for t in times.tolist()]
    return ResidualAncestral(eta=eta).plan(process, Times(values=[*values, 0.0], to_x0=True))
