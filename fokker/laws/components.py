"""What a Gaussian mixture says about noised states: the formulas, for one level per state or one per coordinate."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.laws.law import Level
    from fokker.laws.mixture import GaussianMixture

# sigma below this is treated as this: the limit of no noise, reached without dividing by zero
FLOOR = 1e-12

# what a linear function of a state and its component gives weight to: the mean, the state, and what lies in the basis
Gains = tuple[Tensor, Tensor, Tensor]


class Diffused:
    """The components at one level per state.

    With y = x - alpha m_k, z = U_k^T y, ve = alpha^2 e + sigma^2 inside the basis and vp = alpha^2 s^2 + sigma^2
    outside:

        -2 log N = |y|^2 / vp + sum (1/ve - 1/vp) z^2 + log det + dim log 2 pi
        E[x_0 | x, k] = (sigma^2 / vp) m_k + (alpha s^2 / vp) x + U_k (alpha sigma^2 (e - s^2) / (ve vp)) z.
    """

    def __init__(self, law: "GaussianMixture", x: Tensor, level: "Level") -> None:
        self.law = law
        alpha, sigma = level.alpha, level.sigma
        # `alpha` multiplies (n, K), `inner` is the same for (n, K, r)
        self.alpha: float | Tensor = alpha
        self.inner = inner = _inner(alpha)
        self.y = x - alpha * law._centre
        on_frame = self.y @ law._frame
        split = law.components * law.rank
        self.z = on_frame[:, :split].reshape(len(x), law.components, law.rank) - inner * law._inside
        along = on_frame[:, split:]
        self.distance = (
            self.y.square().sum(1, keepdim=True) - (2 * alpha) * along + (alpha * alpha) * law._square
        ).clamp_min(0)
        self.gap = law.eigenvalues - law.variance[:, None]  # e - s^2
        self.set_noise(sigma.clamp_min(FLOOR).square() if isinstance(sigma, Tensor) else max(sigma, FLOOR) ** 2)

    def set_noise(self, noise: float | Tensor) -> None:
        """The variance of the noise: one number, or one per state (n, 1), or per state and component (n, K)."""
        self.noise, self.noise_inner = noise, _inner(noise)
        self.ve = (self.inner * self.inner) * self.law.eigenvalues + self.noise_inner
        self.vp = (self.alpha * self.alpha) * self.law.variance + noise
        self.both = self.ve * self.vp[..., None]

    def log_likelihood(self) -> Tensor:
        """log N(x; alpha m_k, alpha^2 C_k + sigma^2 I), (n, K)."""
        law = self.law
        # a law without density keeps a finite answer: the noise is never below FLOOR
        quadratic = self.distance / self.vp - ((self.z.square() * (self.inner**2 * self.gap / self.both)).sum(-1))
        log_det = torch.log(self.ve).sum(-1) + (law.dim - law.rank) * torch.log(self.vp)
        out: Tensor = -0.5 * (quadratic + log_det + law.dim * math.log(2 * math.pi))
        return out

    def belief_gains(self) -> Gains:
        """E[x_0 | x, k] as gains."""
        return (
            self.noise / self.vp,
            self.alpha * self.law.variance / self.vp,
            self.inner * self.noise_inner * self.gap / self.both,
        )

    def score_gains(self) -> Gains:
        """grad log N_k(x) as gains."""
        return self.alpha / self.vp, -1 / self.vp, self.inner**2 * self.gap / self.both

    def belief(self, weights: Tensor) -> Tensor:
        """sum_k weights_k E[x_0 | x, k], (n, dim)."""
        return self._combine(weights, *self.belief_gains()) + self.law._centre

    def gradient(self, weights: Tensor) -> Tensor:
        """sum_k weights_k grad log N_k(x), (n, dim)."""
        return self._combine(weights, *self.score_gains())

    def _combine(self, weights: Tensor, on_mean: Tensor, on_state: Tensor, on_basis: Tensor) -> Tensor:
        """sum_k weights_k (on_mean m_k + on_state y + U_k on_basis z), by one product with the frame."""
        inside = (weights[..., None] * (on_basis * self.z)).flatten(1)
        out = torch.cat([inside, weights * on_mean], 1) @ self.law._back
        return out + (weights * on_state).sum(1, keepdim=True) * self.y

    def each(self) -> Tensor:
        """E[x_0 | x, k], (n, K, dim)."""
        law = self.law
        on_mean, on_state, on_basis = self.belief_gains()
        inside = torch.einsum("kdr,nkr->nkd", law.basis, on_basis * self.z)
        offsets = law.means - law._centre
        return law._centre + on_mean[..., None] * offsets + on_state[..., None] * self.y[:, None] + inside

    def variances(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of Cov[x_0 | x, k]: inside the basis (n or 1, K, r) and outside (n or 1, K)."""
        inside = self.law.eigenvalues * (self.noise_inner / self.ve)
        outside = self.law.variance * (self.noise / self.vp)
        return inside.expand(-1 if inside.ndim == 3 else 1, -1, -1), outside.expand(-1 if outside.ndim == 2 else 1, -1)

    def spread(self, weights: Tensor) -> Tensor:
        """The trace of Cov[x_0 | x], (n,)."""
        inside, outside = self.variances()
        within = inside.sum(-1) + (self.law.dim - self.law.rank) * outside
        each = self.each()
        mean = (weights[..., None] * each).sum(1, keepdim=True)
        return (weights * (within + (each - mean).square().sum(-1))).sum(1)

    def covariance(self, weights: Tensor) -> Tensor:
        """Cov[x_0 | x], (n, dim, dim)."""
        law = self.law
        inside, outside = self.variances()
        scale = (weights[..., None] * (inside - outside[..., None])).flatten(1)
        basis = law._frame[:, : law.components * law.rank]
        within = (basis * scale[:, None]) @ basis.T
        eye = torch.eye(law.dim, dtype=torch.float64, device=law.device)
        each = self.each()
        spread = (each - (weights[..., None] * each).sum(1, keepdim=True)) * weights.sqrt()[..., None]
        return within + (weights * outside).sum(1)[:, None, None] * eye + spread.mT @ spread

    def draw(self, which: Tensor, normal: Tensor) -> Tensor:
        """x_0 given x and the component `which` (n,), from unit `normal` (n, dim)."""
        rows = torch.arange(len(which), device=which.device)
        inside, outside = self.variances()
        inside = inside.expand(len(which), -1, -1)[rows, which].clamp_min(0).sqrt()
        outside = outside.expand(len(which), -1)[rows, which].clamp_min(0).sqrt()[:, None]
        basis = self.law.basis[which]
        along = (basis.mT @ normal[..., None])[..., 0]
        return self.each()[rows, which] + outside * normal + (basis @ ((inside - outside) * along)[..., None])[..., 0]


class DiffusedCoordinates:
    """The components when every coordinate has its own level (clean and noisy tokens side by side).

    The covariance A C_k A + S with A, S diagonal no longer shares the basis; with V = s^2 A^2 + S, M = A U_k and
    E = diag(e - s^2) its inverse is V^-1 - V^-1 M (I + E G)^-1 E M^T V^-1, G = M^T V^-1 M (Woodbury).
    """

    def __init__(self, law: "GaussianMixture", x: Tensor, level: "Level") -> None:
        self.law = law
        alpha, sigma = (
            torch.as_tensor(c, dtype=x.dtype, device=x.device).expand_as(x) for c in (level.alpha, level.sigma)
        )
        self.alpha, noise = alpha[:, None], sigma.clamp_min(FLOOR).square()[:, None]
        self.variance = law.variance[:, None] * self.alpha.square() + noise  # V, (n, K, dim)
        gap = law.eigenvalues - law.variance[:, None]
        self.moved = self.alpha[..., None] * law.basis  # M, (n, K, dim, r)
        whitened = self.moved / self.variance[..., None]
        self.core = torch.eye(law.rank, dtype=x.dtype, device=x.device) + gap[..., None] * (self.moved.mT @ whitened)
        self.y = x[:, None] - self.alpha * law.means
        along = (whitened.mT @ self.y[..., None])[..., 0]
        inside = torch.linalg.solve(self.core, (gap * along)[..., None])
        self.solved = self.y / self.variance - (whitened @ inside)[..., 0]  # (A C A + S)^-1 y

    def log_likelihood(self) -> Tensor:
        quadratic = (self.y * self.solved).sum(-1)
        log_det = torch.log(self.variance).sum(-1) + torch.linalg.slogdet(self.core)[1]
        out: Tensor = -0.5 * (quadratic + log_det + self.law.dim * math.log(2 * math.pi))
        return out

    def each(self) -> Tensor:
        law, back = self.law, self.alpha * self.solved
        gap = law.eigenvalues - law.variance[:, None]
        inside = gap * torch.einsum("kdr,nkd->nkr", law.basis, back)
        out: Tensor = law.means + law.variance[:, None] * back + torch.einsum("kdr,nkr->nkd", law.basis, inside)
        return out

    def belief(self, weights: Tensor) -> Tensor:
        return (weights[..., None] * self.each()).sum(1)

    def gradient(self, weights: Tensor) -> Tensor:
        out: Tensor = -(weights[..., None] * self.solved).sum(1)
        return out

    def spread(self, weights: Tensor) -> Tensor:
        raise _one_level()

    def covariance(self, weights: Tensor) -> Tensor:
        raise _one_level()

    def draw(self, which: Tensor, normal: Tensor) -> Tensor:
        raise _one_level()


def _inner(c: float | Tensor) -> float | Tensor:
    return c[..., None] if isinstance(c, Tensor) else c


def _one_level() -> FokkerError:
    return FokkerError(
        "this needs one time per state, not one per coordinate; "
        "law.posterior(diag(alpha), x_t, sigma) is the law of x_0 there"
    )
