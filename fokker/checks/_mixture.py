"""The mixtures on which checks are run: random, without symmetry, one for each seed."""

import torch

from fokker.keyed import noise, uniform
from fokker.laws import GaussianMixture


def mixture(
    dim: int, components: int, seed: int, std: tuple[float, float] = (0.2, 0.6), spread: float = 1.0
) -> GaussianMixture:
    """Components in general position: means N(0, spread^2), turned axes, deviations along them uniform in `std`."""
    draws = noise((components, dim, dim + 1), seed, stream="check", dtype=torch.float64)
    weights = 0.5 + uniform((components, 1), seed, stream="check", index=1)[:, 0]
    deviations = std[0] + (std[1] - std[0]) * uniform((components, dim), seed, stream="check", index=2)
    axes = torch.linalg.qr(draws[:, :, 1:])[0]
    covs = (axes * deviations[:, None] ** 2) @ axes.mT
    return GaussianMixture(weights, spread * draws[:, :, 0], (covs + covs.mT) / 2)
