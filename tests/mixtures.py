"""Mixtures of no symmetry, and what their tests compare with."""

import torch
from torch import Tensor

from fokker import laws
from fokker.anchored import BrownianBridge, MeanReverting, ResidualShift
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.process import EDM, VE, VP, Cosine, Flow, SubVP

PLAIN = [VP(), EDM(), VE(), Cosine(), Flow(), SubVP()]
ANCHORED = [MeanReverting(), ResidualShift(), BrownianBridge()]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise(shape, seed, stream="check", dtype=torch.float64)


def dense(dim: int = 2, components: int = 3, seed: int = 0, labels: bool = False) -> GaussianMixture:
    """A mixture with dense covariances, weights and means of no symmetry."""
    factor = normal(components, dim, dim, seed=seed) * 0.5
    covs = factor @ factor.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    weights = torch.linspace(1, 2, components, dtype=torch.float64)
    return GaussianMixture(
        weights, 1.2 * normal(components, dim, seed=seed + 1), covs, torch.arange(components) % 2 if labels else None
    )


def low_rank(dim: int = 9, components: int = 4, rank: int = 2, seed: int = 0) -> GaussianMixture:
    return laws.lowrank(dim, components, rank, seed=seed, std=0.2)


def as_dense(law: GaussianMixture) -> GaussianMixture:
    return GaussianMixture(law.weights, law.means, law.covs, law.labels, law.shape)


def grid(limit: float = 9.0, n: int = 601) -> tuple[Tensor, float]:
    """Points (n^2, 2) of a square grid, and the area of a cell: the trapezoid rule, exact to rounding for smooth tails."""
    axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def close(a: Tensor, b: Tensor, tol: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tol * (1 + float(b.abs().max()))
