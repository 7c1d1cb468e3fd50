"""How well a linear network generalises while it is trained by gradient descent: exact in high dimension."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise


@dataclass(frozen=True)
class LearningCurve:
    """E_g(t) of a student of y = w x + e, x ~ N(0, I / N), under gradient flow on P samples, as N and P = ratio N grow:

        E_g(t) = int rho(l) [(s_w + s_0) e^(-2 l t) + (s_e / l) (1 - e^(-l t))^2] dl + (1 - ratio)_+ (s_w + s_0) + s_e

    with rho the Marchenko-Pastur density on (sqrt(ratio) -+ 1)^2. The last term but one is the subspace that the data do not
    span and that is never learned, so initial weights should be small. Each mode learns by itself.

    ratio     samples over parameters, P / N
    noise     s_e, the variance of the label noise; signal: s_w, that of the teacher's weights; start: s_0, of the student's
    spectrum  eigenvalues (N,) of sum_mu x x^T measured on data, in place of the density of white inputs

    Raises FokkerError for a ratio that is not above 0 or negative variances. Reference: Advani & Saxe 2017, arXiv 1710.03667.
    """

    ratio: float
    noise: float = 0.2
    signal: float = 1.0
    start: float = 0.0
    spectrum: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.ratio > 0 or min(self.noise, self.signal, self.start) < 0:
            raise FokkerError(
                f"ratio={self.ratio}, noise={self.noise}, signal={self.signal}, start={self.start}; give a ratio above 0 and "
                "variances that are not negative"
            )

    def modes(self, points: int = 4000) -> tuple[Tensor, Tensor, float]:
        """(eigenvalues, their shares, the share of modes that the data do not span), float64."""
        if self.spectrum is not None:
            values = self.spectrum.to(torch.float64)
            seen = values > 1e-9 * values.max()
            return (
                values[seen],
                torch.full((int(seen.sum()),), 1 / len(values), dtype=torch.float64),
                float((~seen).double().mean()),
            )
        # l = 1 + ratio - 2 sqrt(ratio) cos(angle): no edge is left where the density has infinite slope
        angle = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
        root = math.sqrt(self.ratio)
        # 1 - cos as 2 sin^2, so that the smallest eigenvalues of ratio 1 are not rounded away
        values = (1 - root) ** 2 + 4 * root * torch.sin(angle / 2) ** 2
        shares = 2 * self.ratio * torch.sin(angle) ** 2 / (math.pi * values) * (math.pi / points)
        return values, shares, max(0.0, 1 - self.ratio)

    def __call__(self, t: Tensor | float) -> Tensor:
        """The error at times t (...), float64; t in units in which a mode of eigenvalue 1 decays as e^-t."""
        time = torch.as_tensor(t, dtype=torch.float64)[..., None]
        values, shares, frozen = self.modes()
        left = (self.signal + self.start) * torch.exp(-2 * values * time)
        fitted = self.noise / values * torch.expm1(-values * time) ** 2
        return ((left + fitted) * shares).sum(-1) + frozen * (self.signal + self.start) + self.noise

    def stop(self) -> tuple[float, float]:
        """(time, error) of the best moment to stop, on a fine logarithmic grid."""
        times = torch.logspace(-3, 5, 4001, dtype=torch.float64)
        errors = torch.cat([self(part) for part in times.split(200)])
        best = int(errors.argmin())
        return float(times[best]), float(errors[best])

    def ridge(self) -> float:
        """The error of ridge regression with the optimal weight s_e / s_w, below which no estimator of this form gets."""
        values, shares, frozen = self.modes()
        each = self.signal * self.noise / (self.noise + self.signal * values)
        return float((each * shares).sum()) + frozen * self.signal + self.noise


def gradient_flow(dim: int, samples: int, t: Tensor, noise_std: float, start_std: float = 0.0, seed: int = 0) -> Tensor:
    """E_g at times t of one network trained on data that were drawn: the measurement that `LearningCurve` predicts."""
    x = noise((samples, dim), seed, stream="measure", index=1, dtype=torch.float64) / math.sqrt(dim)
    draws = noise((3, max(dim, samples)), seed, stream="measure", index=2, dtype=torch.float64)
    teacher, first, e = draws[0, :dim], start_std * draws[1, :dim], noise_std * draws[2, :samples]
    values, vectors = torch.linalg.eigh(x.T @ x)
    # error of the weights in the eigenbasis: d' = -l d + (noise seen through x)
    off, pushed = vectors.T @ (first - teacher), vectors.T @ (x.T @ e)
    decay = torch.exp(-values * t[:, None])
    gain = torch.where(values > 1e-9, -torch.expm1(-values * t[:, None]) / values.clamp_min(1e-9), t[:, None])
    error: Tensor = (decay * off + gain * pushed).square().mean(1) + noise_std**2
    return error


def effective_rank(spectrum: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues: how many directions the data have."""
    p = spectrum.to(torch.float64).clamp_min(0)
    p = p / p.sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))
