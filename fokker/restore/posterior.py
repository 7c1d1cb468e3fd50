"""Restorers that correct a belief towards a measurement y = A x_0 + noise: DDNM and pseudo-inverse guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.process import Time
from fokker.restore import Operator


class Restorer(Wrapper):
    """A wrapper that holds a measurement: the operator, y (batch, ...) in the data's range, and its noise level."""

    def __init__(self, inner: Denoiser, operator: Operator, y: Tensor, noise_std: float = 0.0) -> None:
        super().__init__(inner)
        if noise_std < 0:
            raise FokkerError(f"noise_std={noise_std} is not accepted; give a standard deviation of at least 0")
        self.operator, self.measured, self.noise_std = operator, y, float(noise_std)

    def prior_variance(self, t: Time, x_t: Tensor) -> float | Tensor:
        """The spread of x_0 given x_t for data of unit variance, sigma^2 / (alpha^2 + sigma^2)."""
        alpha, _, sigma = self.process.coefficients(t, x_t)
        spread: float | Tensor = sigma**2 / (alpha**2 + sigma**2)
        return spread


class DDNM(Restorer):
    """D + A^+ (y - A D): what the measurement says replaces the belief's range space, exactly.

    With `noise_std` > 0 the replacement is weighted by the posterior's gain, r^2 A^T (r^2 A A^T + noise^2)^{-1} (y - A D) with
    r^2 = sigma^2 / (alpha^2 + sigma^2), the Gaussian form of DDNM+. One evaluation.

    Reference: Wang, Yu, Zhang 2023, arXiv 2212.00490.
    """

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        if self.noise_std == 0:
            return self.operator.consistent(belief, self.measured)
        misfit = self.measured - self.operator(belief)
        spread = self.prior_variance(t, x_t)
        return belief + spread * self.operator.adjoint(self.operator.solve(misfit, spread, self.noise_std**2))


class PiGDM(Restorer):
    """Pseudo-inverse guidance: the gradient of log N(y; A D, r^2 A A^T + noise^2) through the denoiser, as a belief.

    D + (sigma^2 / alpha) J^T A^T (r^2 A A^T + noise^2)^{-1} (y - A D) with J = dD/dx_t and r^2 = sigma^2 / (alpha^2 + sigma^2).
    Exact on a Gaussian prior when r^2 is its posterior variance. One evaluation and one backward pass.

    Reference: Song, Vahdat, Mardani, Kautz 2023, ICLR (openreview 9_gsMA8MRKQ).
    """

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        alpha, _, sigma = self.process.coefficients(t, x_t)
        spread = self.prior_variance(t, x_t)

        def weight(belief: Tensor) -> Tensor:
            misfit = self.measured - self.operator(belief)
            return self.operator.adjoint(self.operator.solve(misfit, spread, self.noise_std**2))

        belief, pulled = pull_back(self.inner, x_t, t, weight, cond)
        corrected: Tensor = belief + (sigma**2 / alpha) * pulled
        return corrected


def pull_back(
    denoiser: Denoiser, x_t: Tensor, t: Time, weight: Callable[[Tensor], Tensor], cond: dict[str, Cond]
) -> tuple[Tensor, Tensor]:
    """(D, J^T w(D)) with J = dD/dx_t: one evaluation and one backward pass, per sample."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        belief: Tensor = denoiser(x, t, **cond)
        (pulled,) = torch.autograd.grad(belief, x, weight(belief.detach()))
    return belief.detach(), pulled
