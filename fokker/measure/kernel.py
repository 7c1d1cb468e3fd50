"""Unbiased distances from pairwise kernels: KID, maximum mean discrepancy, energy distance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure.metric import SetMetric
from fokker.measure.value import Setting

# Pairwise blocks are cut to this many entries, so memory does not grow with the sets.
_ENTRIES = 2**22


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, shape (n, m), never negative; exact where the coordinates are multiples of a power of two (pixels)."""
    origin = y[:1]
    x, y = x - origin, y - origin
    return (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T).clamp(min=0)


def blocks(x: Tensor, y: Tensor) -> list[slice]:
    """Row ranges of x such that a block against all of y has a bounded number of entries."""
    size = max(1, _ENTRIES // len(y))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


@dataclass(frozen=True)
class KernelMetric(SetMetric):
    """The U-statistic mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different items, unbiased at every n.

    error: the exact leave-one-out jackknife over both sets, from the row sums of the kernel; for equal laws, where the
    first order vanishes, it is too large by up to sqrt 2. floor: the root mean square over random splits, since the mean
    over splits is 0. Reference: Gretton et al. 2012, "A kernel two-sample test".
    """

    def kernel(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> Tensor:
        """k(x_i, y_j), shape (n, m)."""
        raise FokkerError(f"{type(self).__name__} has no kernel of its own; use KID, MMD or EnergyDistance")

    def typical(self, values: list[float]) -> float:
        return math.sqrt(sum(v * v for v in values) / len(values))

    def estimate(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> tuple[float, float]:
        n, m = len(x), len(y)
        if min(n, m) < 3:
            raise FokkerError(f"{self.name} needs at least 3 items a side to know its error; there are {n} and {m}")
        xx, yy = self._within(x, found), self._within(y, found)
        xy, yx = x.new_zeros(n), x.new_zeros(m)
        for part in blocks(x, y):
            values = self.kernel(x[part], y, found)
            xy[part] = values.sum(dim=1)
            yx += values.sum(dim=0)
        across = -2 * xy.sum() / (n * m)
        value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) + across
        without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (xy.sum() - xy) / ((n - 1) * m)
        without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (yx.sum() - yx) / ((m - 1) * n)
        variance = without_x.var() * (n - 1) ** 2 / n + without_y.var() * (m - 1) ** 2 / m
        return float(value), math.sqrt(float(variance))

    def _within(self, x: Tensor, found: Mapping[str, Setting]) -> Tensor:
        """Row sums of the kernel of a set with itself, without the diagonal."""
        sums = x.new_zeros(len(x))
        for part in blocks(x, x):
            values = self.kernel(x[part], x, found)
            values.diagonal(offset=part.start).zero_()
            sums[part] = values.sum(dim=1)
        return sums


@dataclass(frozen=True)
class KID(KernelMetric):
    """The kernel distance with k(x, y) = (x.y / d + 1)^3, which tells apart laws by their first three moments.

    Reference: Binkowski, Sutherland, Arbel, Gretton 2018, arXiv 1801.01401.
    """

    name: ClassVar[str] = "kid"

    def kernel(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class MMD(KernelMetric):
    """The squared maximum mean discrepancy with k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)), zero only for equal laws.

    bandwidth=None takes the median distance within (the first 1,000 items of) the reference and reports it as a setting.
    Reference: Gretton et al. 2012, "A kernel two-sample test".
    """

    name: ClassVar[str] = "mmd"
    bandwidth: float | None = None

    def resolve(self, reference: Tensor) -> dict[str, Setting]:
        if self.bandwidth is None:
            some = reference[:1000]
            above = torch.triu_indices(len(some), len(some), offset=1)
            width = float(squared_distances(some, some)[above[0], above[1]].median().sqrt())
        else:
            width = self.bandwidth
        if not width > 0:
            raise FokkerError(f"a bandwidth of {width} is not accepted; give bandwidth= a positive distance")
        return {"bandwidth": width}

    def kernel(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> Tensor:
        return torch.exp(squared_distances(x, y) / (-2 * float(str(found["bandwidth"])) ** 2))


@dataclass(frozen=True)
class EnergyDistance(KernelMetric):
    """2 E|x - y| - E|x - x'| - E|y - y'|, zero only for equal laws, with no bandwidth to choose; in the unit of the features.

    Reference: Szekely, Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """

    name: ClassVar[str] = "energy"

    def kernel(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> Tensor:
        return -squared_distances(x, y).sqrt()
