"""Restorers that correct a belief by the posterior of a Gaussian, DDNM and PiGDM, and what all restorers share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper, followed, graded
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.process import Time
from fokker.restore import Operator


class Restorer(Wrapper):
    """A wrapper that holds a measurement: the operator, y (batch, ...) in the data's range, and its noise level.

    `data_std` is the standard deviation of the data, for those whose formula is that of a Gaussian prior; None asks the
    denoiser (`Denoiser.data_std`), and stands for 1 where that does not know. `solver` is the one of the paper, by name and
    with its options. Raises FokkerError for a negative noise level.
    """

    stackable = False  # the measurement has the batch's size
    solver: tuple[str, dict[str, float]] = ("ddpm", {})

    def __init__(
        self, inner: Denoiser, operator: Operator, y: Tensor, noise_std: float = 0.0, data_std: float | None = None
    ) -> None:
        super().__init__(inner)
        if noise_std < 0:
            raise FokkerError(f"noise_std={noise_std} is not accepted; give a standard deviation of at least 0")
        if data_std is not None and not data_std > 0:
            raise FokkerError(f"data_std={data_std} is not accepted; give the standard deviation of the data, above 0")
        self.operator, self.measured, self.noise_std = operator, y, float(noise_std)
        self.spread = float(data_std or inner.data_std or 1.0)

    def prior_variance(self, t: Time, v: Tensor) -> float | Tensor:
        """The variance of x_0 given x_t for Gaussian data of variance d = data_std^2: d sigma^2 / (alpha^2 d + sigma^2).

        A number, or one per sample to multiply `v` with. Raises FokkerError for a time that differs within a sample, where A
        no longer commutes with it.
        """
        alpha, sigma = self.levels(t, v)
        d = self.spread**2
        variance: float | Tensor = d * sigma**2 / (alpha**2 * d + sigma**2)
        return variance

    def levels(self, t: Time, v: Tensor) -> tuple[Any, Any]:
        """(alpha, sigma) to multiply v with, one per sample; raises FokkerError for a time that differs within a sample."""
        if isinstance(t, Tensor) and t.ndim > 1 and t.numel() > t.shape[0]:
            raise FokkerError(f"{type(self).__name__} needs one time per sample, not times of shape {tuple(t.shape)}")
        time = t.reshape(-1) if isinstance(t, Tensor) and t.ndim else t
        alpha, _, sigma = self.process.coefficients(time, v)
        return alpha, sigma

    def fresh(self, x: Tensor, index: int) -> Tensor:
        """Unit normal noise like x, beside the draws of the plan; outside a run, where nobody has a name, all get the same."""
        seed, ids = (self.run.seed, self.run.ids) if self.run is not None else (0, [0] * len(x))
        return noise(tuple(x.shape), seed, ids, "step", index, x.dtype, x.device)

    def correction(self, belief: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """w = A^T (r^2 A A^T + noise^2)^{-1} (y - A D), and r^2 w, with r^2 the `prior_variance`."""
        misfit = self.measured.to(belief) - self.operator(belief)
        w = self.operator.adjoint(self.operator.solve(misfit, self.prior_variance(t, misfit), self.noise_std**2))
        return w, self.prior_variance(t, w) * w


class DDNM(Restorer):
    """D + A^+ (y - A D): what the measurement says replaces the belief's range space, exactly.

    With `noise_std` > 0 the replacement is weighted by the posterior's gain, r^2 A^T (r^2 A A^T + noise^2)^{-1} (y - A D) with
    r^2 = d sigma^2 / (alpha^2 d + sigma^2), the spread of x_0 given x_t for data of variance d: the Gaussian form of DDNM+.
    One evaluation.

    Reference: Wang, Yu, Zhang 2023, arXiv 2212.00490.
    """

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        if self.noise_std == 0:
            return self.operator.consistent(belief, self.measured.to(belief))
        return belief + self.correction(belief, t)[1]


class PiGDM(Restorer):
    """Pseudo-inverse guidance: the gradient of log N(y; A D, r^2 A A^T + noise^2) through the denoiser, as a belief.

    D + (sigma^2 / alpha) J^T A^T (r^2 A A^T + noise^2)^{-1} (y - A D) with J = dD/dx_t and r^2 = d sigma^2 / (alpha^2 d +
    sigma^2), the spread of x_0 given x_t for data of variance d (the paper takes 1). Exact on Gaussian data of that
    variance. Without signal (alpha = 0), where J is 0, (sigma^2 / alpha) J is the prior's variance d. One evaluation and one
    backward pass.

    Reference: Song, Vahdat, Mardani, Kautz 2023, ICLR (openreview 9_gsMA8MRKQ).
    """

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        alpha, _, sigma = self.process.coefficients(t, x_t)
        if not isinstance(alpha, Tensor) and alpha == 0:
            belief: Tensor = self.inner(x_t, t, **cond)
            return belief + self.correction(belief, t)[1]
        belief, pulled = pull_back(self.inner, x_t, t, lambda D: self.correction(D, t)[0], cond)
        if not isinstance(alpha, Tensor):
            return belief + float(sigma**2 / alpha) * pulled
        blind = alpha == 0
        step = sigma**2 / torch.where(blind, torch.ones_like(alpha), alpha) * pulled
        return belief + torch.where(blind, self.correction(belief, t)[1], step)


def pull_back(
    denoiser: Denoiser, x_t: Tensor, t: Time, weight: Callable[[Tensor], Tensor], cond: dict[str, Cond]
) -> tuple[Tensor, Tensor]:
    """(D, J^T w(D)) with J = dD/dx_t: one evaluation and one backward pass, per sample; differentiable if x_t is."""
    outer = torch.is_grad_enabled() and x_t.requires_grad
    with graded(outer):
        x = x_t if outer else x_t.detach().requires_grad_()
        belief = followed(denoiser(x, t, **cond))
        (pulled,) = torch.autograd.grad(belief, x, weight(belief if outer else belief.detach()), create_graph=outer)
    return (belief, pulled) if outer else (belief.detach(), pulled)
