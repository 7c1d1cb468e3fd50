"""Imputation by replacement: what is measured is overwritten, before every call, by copies noised to the level of the run."""

import torch
from torch import Tensor

from fokker.denoiser import Cond
from fokker.keyed import noise
from fokker.process import Time
from fokker.restore.posterior import Restorer


class Imputation(Restorer):
    """D(x'), with x' the state nearest to x_t whose measurement is A x' = alpha y + sqrt(sigma^2 - (alpha noise_std)^2) A eps.

    eps is fresh at every call, keyed by sample and row of the run; outside a run there is nothing to key it by, and the state
    is taken as it is. Where y is exact the belief agrees with it. One evaluation and no gradients; but the free part is drawn
    with the known one while both are noisy, so what goes together in detail only is matched too late: it samples the posterior
    of independent parts, and of others an approximation (`docs/foundations.md` has numbers).

    Reference: Song et al. 2021, arXiv 2011.13456, appendix I.2.
    """

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        y = self.measured.to(x_t)
        if self.run is not None:
            alpha, sigma = self.levels(t, y)
            rest = torch.as_tensor(sigma**2 - (alpha * self.noise_std) ** 2).clamp_min(0).sqrt().to(y)
            # an index of its own, apart from those of the solvers' noise
            index = 1 << 49 | self.run.row
            eps = noise(tuple(x_t.shape), self.run.seed, self.run.ids, "step", index, x_t.dtype, x_t.device)
            x_t = self.operator.consistent(x_t, alpha * y + rest * self.operator(eps))
        belief: Tensor = self.inner(x_t, t, **cond)
        return self.operator.consistent(belief, y) if self.noise_std == 0 else belief
