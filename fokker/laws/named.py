"""Named laws that tables and examples refer to."""

import math

import torch

from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.laws.mixture import GaussianMixture


def ring(components: int = 8, radius: float = math.sqrt(2), std: float = 0.1) -> GaussianMixture:
    """`components` equal modes on a circle in the plane; labels number them. The default has about unit variance."""
    angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    means = radius * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    return GaussianMixture(torch.ones(components), means, std**2, labels=torch.arange(components))


def lowrank(
    dim: int = 64, components: int = 10, rank: int = 8, seed: int = 0, std: float = 0.05, within: float = 0.3
) -> GaussianMixture:
    """Low-rank modes in many dimensions: natural data in miniature.

    Component k has `rank` random directions with variances falling like j^-2 and standard deviation `std` in all
    others. The share `within` of the total variance is inside the components, the rest between their means; the law is
    centred and its variance per coordinate is 1. Labels number the components, whose weights are equal.

    Raises FokkerError if rank exceeds dim or std leaves nothing for the rank.
    """
    if not 0 < rank <= dim or components < 1:
        raise FokkerError(
            f"rank={rank} with dim={dim} and components={components}; give 0 < rank <= dim, components >= 1"
        )
    share = 1.0 if components == 1 else within
    spare = share * dim - (dim - rank) * std**2
    if spare <= rank * std**2:
        raise FokkerError(f"std={std} uses up the variance within a component; give std below {math.sqrt(share):.3g}")
    draws = noise((components, dim, rank + 1), seed, stream="law", dtype=torch.float64)
    basis = torch.linalg.qr(draws[:, :, :rank])[0]
    falling = torch.arange(1, rank + 1, dtype=torch.float64) ** -2
    values = (spare * falling / falling.sum()).expand(components, rank)
    means = draws[:, :, rank] - draws[:, :, rank].mean(0)
    if components > 1:
        means = means * math.sqrt((1 - share) * dim / means.square().sum(1).mean())
    form = basis, values, torch.full((components,), std, dtype=torch.float64)
    return GaussianMixture(torch.ones(components), means, form, labels=torch.arange(components))
