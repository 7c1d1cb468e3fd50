"""Restorers that solve a small least-squares problem around each belief, without a gradient through the network."""

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.move import next_move
from fokker.restore.posterior import Restorer


class DiffPIR(Restorer):
    """argmin_x ||y - A x||^2 / noise^2 + lam (alpha / sigma)^2 ||x - D||^2: half-quadratic splitting.

    In closed form D + A^T (A A^T + rho)^{-1} (y - A D) with rho = lam noise^2 alpha^2 / sigma^2; without noise the nearest
    point that agrees with y. `lam` (1 to 25 in the paper) is how much the belief is trusted. The paper's sampler finds the
    noise of x_t anew from the corrected belief and renews a share zeta of it: the plan `renoise` with eta = sqrt(zeta). One
    evaluation. Raises FokkerError for lam <= 0.

    Reference: Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool 2023, arXiv 2305.08995.
    """

    solver = ("renoise", {"eta": 0.55})

    def __init__(self, inner: Denoiser, operator: Operator, y: Tensor, noise_std: float = 0.0, lam: float = 7.0) -> None:
        super().__init__(inner, operator, y, noise_std)
        if not lam > 0:
            raise FokkerError(f"lam={lam} is not accepted; give a weight above 0, 1 to 25 in the paper")
        self.lam = lam

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        y = self.measured.to(belief)
        if self.noise_std == 0:
            return self.operator.consistent(belief, y)
        misfit = y - self.operator(belief)
        alpha, sigma = self.levels(t, misfit)
        rho = self.lam * self.noise_std**2 * alpha**2 / sigma**2
        return belief + self.operator.adjoint(self.operator.solve(misfit, 1.0, rho))


class DDS(Restorer):
    """A few conjugate-gradient iterations from the belief towards the data, the noise of x_t kept: decomposed sampling.

    Without noise `iterations` of CG on A^T A x = A^T y, begun at D, so that x - D lies in a Krylov space of the misfit; with
    noise on (1 + gamma A^T A) x = D + gamma A^T y, the minimiser of gamma / 2 ||y - A x||^2 + ||x - D||^2 / 2. `gamma` None is
    r^2 / noise^2, r^2 the variance of x_0 given x_t for data of `data_std`; the paper takes a constant, about 5 for MRI, and
    `gamma=inf` is the first form, in which few iterations are what keeps the noise out.

    The next state is alpha_s x + sigma_s eps with the eps of the *uncorrected* belief, which is what `Move.corrected` arranges
    for any plan of one evaluation a step; the paper's renews a share eta of it: `renoise`. No gradient through the network.
    Raises FokkerError for fewer iterations than 1 or gamma <= 0.

    Reference: Chung, Lee, Ye 2024, arXiv 2303.05754.
    """

    solver = ("renoise", {"eta": 0.85})

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        iterations: int = 5,
        gamma: float | None = None,
        data_std: float | None = None,
    ) -> None:
        super().__init__(inner, operator, y, noise_std, data_std)
        if iterations < 1:
            raise FokkerError(f"iterations={iterations} is not accepted; use at least 1")
        if gamma is not None and not gamma > 0:
            raise FokkerError(f"gamma={gamma} is not accepted; give a weight above 0 (inf: no pull back to the belief)")
        self.iterations, self.gamma = iterations, gamma

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        return next_move(self.run, self.process).corrected(belief, self.meet(belief, t))

    def meet(self, belief: Tensor, t: Time) -> Tensor:
        """x: the belief after the data step."""
        misfit = self.measured.to(belief) - self.operator(belief)
        gain = self._gain(t, belief)
        return belief + least_squares(self.operator, misfit, self.iterations, 0.0 if gain is None else 1 / gain)

    def _gain(self, t: Time, belief: Tensor) -> float | Tensor | None:
        """gamma, or None where only the data count."""
        if self.gamma is not None:
            return None if self.gamma == float("inf") else self.gamma
        return None if self.noise_std == 0 else self.prior_variance(t, belief) / self.noise_std**2


def least_squares(operator: Operator, y: Tensor, steps: int, damping: float | Tensor = 0.0) -> Tensor:
    """`steps` iterations of conjugate gradients on (A^T A + damping) x = A^T y from 0, per sample, stopping where solved.

    In the form that keeps the residual in the measurement's space, so that more iterations than A has rows do no harm.
    Reference: Björck 1996, "Numerical Methods for Least Squares Problems", 7.4 (CGLS).
    """

    def square(p: Tensor) -> Tensor:
        return p.flatten(1).square().sum(1)

    def ratio(p: Tensor, q: Tensor, live: Tensor) -> Tensor:
        return torch.where(live & (q > 0), p / torch.where(q > 0, q, torch.ones_like(q)), torch.zeros_like(p))

    def wide(c: Tensor, v: Tensor) -> Tensor:
        return c.reshape(-1, *[1] * (v.ndim - 1))

    r, s = y, operator.adjoint(y)
    x, p, energy = torch.zeros_like(s), s, square(s)
    least = torch.finfo(s.dtype).eps ** 2 * energy
    each = damping.reshape(-1) if isinstance(damping, Tensor) else damping
    for _ in range(steps):
        live, Ap = energy > least, operator(p)
        step = ratio(energy, square(Ap) + each * square(p), live)
        x, r = x + wide(step, x) * p, r - wide(step, r) * Ap
        s = operator.adjoint(r) - damping * x
        new = square(s)
        p, energy = s + wide(ratio(new, energy, live), s) * p, new
    return x
