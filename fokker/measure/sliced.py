"""The sliced Wasserstein distance: optimal transport along random directions, where it is a matter of sorting."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.measure.metric import SetMetric
from fokker.measure.value import Setting

# Directions are worked on in groups of so many numbers, so memory does not grow with them.
_ENTRIES = 2**21


def directions(count: int, dim: int, seed: int = 0) -> Tensor:
    """Unit vectors (count, dim), uniform on the sphere and keyed: the first 64 of 128 are the 64 of the same seed."""
    normal = noise((count, dim), seed, stream="measure", dtype=torch.float64)
    return normal / normal.square().sum(dim=1, keepdim=True).sqrt()


def _segments(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The monotone coupling of n and m equal masses: indices into both sorted sets and the mass of each segment."""
    ends = torch.from_numpy(np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n))
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def _potential(sorted_points: Tensor, slope: Tensor, order: Tensor) -> Tensor:
    """The transport potential at each point in its original order: the integral of its slope along the sorted points."""
    steps = (slope[:, 1:] + slope[:, :-1]) / 2 * sorted_points.diff(dim=1)
    along = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)
    return torch.empty_like(along).scatter_(1, order, along)


@dataclass(frozen=True)
class SlicedWasserstein(SetMetric):
    """(mean over directions of W_p^p)^(1/p) between samples and a reference or a law, in the unit of the features.

    order        p, 1 or 2
    projections  the number of directions, which together with direction_seed are a setting: all methods meet the same ones

    The estimate is biased upwards by sampling, so n is a setting, and the floor (law against law) says by how much.
    error: the infinitesimal jackknife over both sets; the influence of an item is its transport potential. Near the floor
    it is too large by up to sqrt 2.

    Reference: Bonneel, Rabin, Peyre, Pfister 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """

    name: ClassVar[str] = "sliced_wasserstein"
    biased: ClassVar[bool] = True
    order: int = 2
    projections: int = 128
    direction_seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or self.projections < 1:
            raise FokkerError(
                f"order={self.order}, projections={self.projections}: use order 1 or 2 and at least 1 projection"
            )

    def estimate(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> tuple[float, float]:
        n, m, p = len(x), len(y), self.order
        axes_all = directions(self.projections, x.shape[1], self.direction_seed)
        in_x, in_y, mass = _segments(n, m)
        total, influence_x, influence_y = 0.0, x.new_zeros(n), x.new_zeros(m)
        for axes in torch.split(axes_all, max(1, _ENTRIES // (n + m))):
            xs, order_x = (axes @ x.T).sort(dim=1)
            ys, order_y = (axes @ y.T).sort(dim=1)
            gap = xs[:, in_x] - ys[:, in_y]
            total += float((mass * gap.abs() ** p).sum())
            slope = p * mass * gap.abs() ** (p - 1) * gap.sign()
            slope_x = torch.zeros_like(xs).index_add_(1, in_x, slope) * n
            slope_y = torch.zeros_like(ys).index_add_(1, in_y, -slope) * m
            influence_x += _potential(xs, slope_x, order_x).sum(dim=0)
            influence_y += _potential(ys, slope_y, order_y).sum(dim=0)
        power = total / self.projections
        variance = float(influence_x.var()) / n + float(influence_y.var()) / m
        value = power ** (1 / p)
        error = math.sqrt(variance) / self.projections / (p * value ** (p - 1)) if value else math.nan
        return value, error
