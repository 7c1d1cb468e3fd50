"""Posterior guidance with the covariance that the denoiser itself states: moment matching."""

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, followed, graded
from fokker.errors import FokkerError
from fokker.process import Time
from fokker.restore import Operator, conjugate_gradients
from fokker.restore.posterior import Restorer


class MomentMatching(Restorer):
    """D + V A^T (A V A^T + noise^2)^{-1} (y - A D) with V = (sigma^2 / alpha) dD/dx_t, the covariance of x_0 given x_t.

    Where PiGDM takes one variance for all of x_0, V is the posterior's own covariance (Tweedie's second moment), so it knows
    which pixels are certain and which belong together. Exact on a Gaussian prior of any covariance once the inner system is
    solved; conjugate gradients do `iterations` steps of it. V is used as its transpose, which is the same for a true
    covariance. One evaluation and `iterations` + 1 backward passes. `noise_std` has to be above 0 for a network, whose
    Jacobian may be singular. Raises FokkerError for fewer iterations than 1.

    Reference: Rozet, Andry, Lanusse, Louppe 2024, arXiv 2405.13712 (MMPS); Boys et al. 2023, arXiv 2310.06721.
    """

    def __init__(
        self, inner: Denoiser, operator: Operator, y: Tensor, noise_std: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if iterations < 1:
            raise FokkerError(f"iterations={iterations} is not accepted; use at least 1")
        self.iterations = iterations

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        alpha, _, sigma = self.process.coefficients(t, x_t)
        if not isinstance(alpha, Tensor) and alpha == 0:
            blind: Tensor = self.inner(x_t, t, **cond)
            return blind + self.correction(blind, t)[1]
        outer = torch.is_grad_enabled() and x_t.requires_grad
        with graded(outer):
            x = x_t if outer else x_t.detach().requires_grad_()
            belief = followed(self.inner(x, t, **cond))

            # samples without signal, whose Jacobian is 0, are dealt with below
            step = sigma**2 / (torch.where(alpha > 0, alpha, 1.0) if isinstance(alpha, Tensor) else alpha)

            def spread(v: Tensor) -> Tensor:
                pulled: Tensor = torch.autograd.grad(belief, x, v, retain_graph=True, create_graph=outer)[0]
                scaled: Tensor = step * pulled
                return scaled

            def seen(u: Tensor) -> Tensor:
                return self.operator(spread(self.operator.adjoint(u))) + self.noise_std**2 * u

            mean = belief if outer else belief.detach()
            misfit = self.measured.to(mean) - self.operator(mean)
            weight = conjugate_gradients(seen, misfit, self.iterations)
            moved = mean + spread(self.operator.adjoint(weight))
            if isinstance(alpha, Tensor):
                moved = torch.where(alpha > 0, moved, mean + self.correction(mean, t)[1])
        return moved if outer else moved.detach()
