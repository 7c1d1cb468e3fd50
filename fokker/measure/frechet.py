"""The Frechet distance between the Gaussians fitted to two sets of features."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure.metric import SetMetric
from fokker.measure.value import Setting


def root(cov: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues within rounding of 0 count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    rounding = float(values[-1]) * len(values) * torch.finfo(values.dtype).eps
    out: Tensor = (vectors * torch.where(values > rounding, values, 0.0).sqrt()) @ vectors.T
    return out


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Frechet (2-Wasserstein) distance of two Gaussians, exact for singular covariances too.

        |m1 - m2|^2 + tr C1 + tr C2 - 2 |C1^(1/2) C2^(1/2)|_*

    The nuclear norm equals tr (C1^(1/2) C2 C1^(1/2))^(1/2) and needs no square root of a product, whose rounding errors of
    1e-16 would come out as 1e-8. Means (d,), covariances (d, d); computed in float64.

    Reference: Dowson, Landau 1982, "The Frechet distance between multivariate normal distributions".
    """
    if not cov1.shape == cov2.shape == (len(mean1), len(mean1)) or mean1.shape != mean2.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean1, cov1, mean2, cov2))
        raise FokkerError(f"shapes {shapes} do not fit; give (d,), (d, d), (d,), (d, d)")
    m1, c1, m2, c2 = (x.to("cpu", torch.float64) for x in (mean1, cov1, mean2, cov2))
    overlap = torch.linalg.svdvals(root(c1) @ root(c2)).sum()
    return max(0.0, float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * overlap))


@dataclass(frozen=True)
class Frechet(SetMetric):
    """The squared Frechet distance of the Gaussians fitted to samples and reference (FID, where the features are Inception's).

    The estimate is biased upwards by about d^2 / n, so n is a setting, and the floor says what is left for perfect samples.

    error: the infinitesimal jackknife over both sets, sqrt(var(I_x) / n + var(I_y) / m) with the influence of an item

        I(x) = 2 (x - m1).(m1 - m2) + |x - m1|^2 - (x - m1)^T T (x - m1),   T = C2^(1/2) (C2^(1/2) C1 C2^(1/2))^(-1/2) C2^(1/2)

    which is exact to first order and needs neither resampling nor a seed; at the floor, where the first order vanishes, it
    is too large by up to sqrt 2. Reference: Heusel et al. 2017, arXiv 1706.08500; Chong, Forsyth 2019, arXiv 1911.07023.
    """

    name: ClassVar[str] = "frechet"
    biased: ClassVar[bool] = True

    def estimate(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> tuple[float, float]:
        shift = x.mean(dim=0) - y.mean(dim=0)
        xc, yc = x - x.mean(dim=0), y - y.mean(dim=0)
        root_x, root_y = root(xc.T @ xc / (len(x) - 1)), root(yc.T @ yc / (len(y) - 1))
        left, overlap, right = torch.linalg.svd(root_x @ root_y)
        spread = xc.square().sum() / (len(x) - 1) + yc.square().sum() / (len(y) - 1)
        value = float(shift.square().sum() + spread - 2 * overlap.sum())
        kept = overlap > overlap[0] * len(overlap) * torch.finfo(overlap.dtype).eps
        scale = torch.where(kept, 1 / overlap, 0.0)
        variance = 0.0
        for centred, drift, other in ((xc, shift, root_y @ right.T), (yc, -shift, root_x @ left)):
            transported = ((centred @ other).square() * scale).sum(dim=1)
            influence = 2 * centred @ drift + centred.square().sum(dim=1) - transported
            variance += float(influence.var()) / len(centred)
        return max(0.0, value), math.sqrt(variance)
