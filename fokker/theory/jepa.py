"""Which features deep linear self-distillation learns first, and which masked autoencoding does: exact dynamics."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.keyed import noise

Floats = NDArray[np.float64]
KINDS = ("jepa", "mae")


@dataclass(frozen=True)
class SelfDistillation:
    """The gain w(t) of one feature in an encoder of `depth` linear layers with a linear predictor, from a balanced small start:

        jepa  dw/dt = L (w^(3 - 1/L) lambda - w^3 lambda / rho),   fixed point rho^L
        mae   dw/dt = L (w^(2 - 1/L) lambda - w^3 lambda / rho),   fixed point rho^(L / (L + 1))

    for views x (context) and y (target), lambda = E[x y], rho = lambda / E[x^2]. Self-distillation, 1/2 |v w x - sg(w y)|^2,
    learns features of large rho first, the more so the deeper, and ends with noisy ones (small rho) exponentially small;
    masked autoencoding, 1/2 |v w x - y|^2, hardly distinguishes them.

    Raises FokkerError for another kind or a depth below 1. Reference: Littwin et al. 2024, arXiv 2407.03475.
    """

    depth: int
    kind: str = "jepa"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind", self.kind, KINDS)
        if self.depth < 1:
            raise FokkerError(f"depth={self.depth} is not accepted; an encoder has at least one layer")

    def rate(self, w: Tensor, covariance: float, rho: float) -> Tensor:
        """dw/dt."""
        L = self.depth
        power = 3 - 1 / L if self.kind == "jepa" else 2 - 1 / L
        return L * covariance * (w**power - w**3 / rho)

    def fixed(self, rho: float) -> float:
        """The gain in the end."""
        return float(rho**self.depth if self.kind == "jepa" else rho ** (self.depth / (self.depth + 1)))

    def path(self, times: Tensor, start: float, covariance: float, rho: float, substeps: int = 50) -> Tensor:
        """w at the given times (n,), the first of them the start; fourth-order Runge-Kutta, float64."""
        w, out = torch.tensor(start, dtype=torch.float64), [torch.tensor(start, dtype=torch.float64)]
        for gap in times.diff().tolist():
            h = gap / substeps
            for _ in range(substeps):
                a = self.rate(w, covariance, rho)
                b = self.rate(w + h / 2 * a, covariance, rho)
                c = self.rate(w + h / 2 * b, covariance, rho)
                w = w + h / 6 * (a + 2 * b + 2 * c + self.rate(w + h * c, covariance, rho))
            out.append(w)
        return torch.stack(out)

    def time_to(self, share: float, start: float, covariance: float, rho: float, points: int = 100_001) -> float:
        """When the gain reaches a share of its fixed point, by the integral of dw / (dw/dt)."""
        goal = share * self.fixed(rho)
        if not 0 < start < goal:
            raise FokkerError(f"start={start} is not between 0 and {goal:.4g}, the gain to be reached; start smaller")
        logs = torch.linspace(math.log(start), math.log(goal), points, dtype=torch.float64)
        w = logs.exp()
        return float(torch.trapezoid(w / self.rate(w, covariance, rho), logs))


def gradient_descent(
    kind: str,
    depth: int,
    covariance: Floats,
    rho: Floats,
    start: float,
    steps: int,
    lr: float,
    every: int,
    seed: int = 0,
) -> Floats:
    """Gains (records, features) of a deep linear network of full matrices, trained by gradient descent on expected losses.

    The layers begin balanced, of gain start^(1 / depth), in random orthogonal bases. A gain is that of the encoder between
    the feature and its direction in the representation.
    """
    n = len(rho)
    draws = noise((depth, n, n), seed, stream="check", dtype=torch.float64)
    bases = [np.eye(n), *(torch.linalg.qr(d)[0].numpy() for d in draws)]
    a = start ** (1 / depth)
    layers = [a * bases[k + 1] @ bases[k].T for k in range(depth)]
    top = bases[-1]
    predictor = a * (top @ top.T) if kind == "jepa" else a * top.T
    second, cross = np.diag(covariance / rho), np.diag(covariance)
    records = []
    for k in range(steps + 1):
        below = [np.eye(n)]
        for layer in layers:
            below.append(layer @ below[-1])
        encoder = below[-1]
        if k % every == 0:
            records.append(np.abs(np.diag(top.T @ encoder)).copy())
        # the target is not differentiated
        miss = predictor @ encoder @ second - (encoder @ cross if kind == "jepa" else cross)
        back = predictor.T @ miss
        moved, above = [], np.eye(n)
        for place in reversed(range(depth)):
            moved.append(above.T @ back @ below[place].T)
            above = above @ layers[place]
        predictor = predictor - lr * miss @ encoder.T
        layers = [layer - lr * g for layer, g in zip(layers, reversed(moved), strict=True)]
    return np.array(records)


def feature_influence(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(lambda, rho, directions) of two views x, y (n, d): directions that are jointly diagonal, most predictable first.

    lambda are the eigenvalues of E[x y'] (symmetrised) in the basis that whitens x, scaled back: rho = lambda / E[x^2] tells
    how much of a direction in x says something about y. Small rho: self-distillation will suppress it.
    """
    if x.shape != y.shape or x.ndim != 2:
        raise FokkerError(f"views {tuple(x.shape)} and {tuple(y.shape)}; give two of the same shape (n, d)")
    a, b = (v.double() - v.double().mean(0) for v in (x, y))
    values, basis = torch.linalg.eigh(a.T @ a / len(a))
    kept = values > 1e-9 * values.max()
    whiten = basis[:, kept] / values[kept].sqrt()
    cross = whiten.T @ (a.T @ b) @ whiten / len(a)
    rho, turned = torch.linalg.eigh((cross + cross.T) / 2)
    directions = whiten @ turned
    directions = directions / directions.norm(dim=0)
    second = (a @ directions).square().mean(0)
    order = rho.argsort(descending=True)
    return (rho * second)[order], rho[order], directions[:, order]
