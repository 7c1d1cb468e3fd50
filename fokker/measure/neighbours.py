"""Nearest neighbours: fidelity, coverage, and memorised samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure import features as extract
from fokker.measure.features import PIXELS, Features
from fokker.measure.kernel import blocks, squared_distances
from fokker.measure.metric import EXECUTION, Metric, SetMetric, rows, share_error, shuffled
from fokker.measure.value import Better, Setting, Value

# A set is cut into at most so many parts to see how much a score varies, and no part has fewer items a neighbour than that.
_PARTS, _ITEMS = 8, 8


def radii(x: Tensor, k: int) -> Tensor:
    """The squared distance of each item to its k-th nearest other item, shape (n,)."""
    if not 1 <= k < len(x):
        raise FokkerError(f"k={k} neighbours among {len(x)} items; use 1 to {len(x) - 1}")
    out = x.new_zeros(len(x))
    for part in blocks(x, x):
        distances = squared_distances(x[part], x)
        distances.diagonal(offset=part.start).fill_(torch.inf)
        out[part] = distances.kthvalue(k, dim=1).values
    return out


def balls_around(x: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """How many of the balls |x - centre_j|^2 <= radius_j hold each x, shape (n,)."""
    return torch.cat([(squared_distances(x[part], centres) <= radius).sum(dim=1) for part in blocks(x, centres)])


@dataclass(frozen=True)
class NeighbourMetric(SetMetric):
    """Metrics on balls that reach from each item to its k-th nearest other item of the same set; they depend on n.

    error: both sets are cut at random into eight parts (fewer below 64 k items); the variance of the score over the parts,
    over their number, is the variance at full size, averaged over `splits` cuts. None below 24 k items. floor: a ceiling
    here, what one half of the real items scores against the other.
    """

    better: ClassVar[Better] = "higher"
    biased: ClassVar[bool] = True
    k: int = 3

    def score(self, x: Tensor, y: Tensor) -> float:
        """The number for feature rows x (n, d) and y (m, d)."""
        raise FokkerError(f"{type(self).__name__} has no score of its own; use Precision, Recall, Density or Coverage")

    def estimate(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> tuple[float, float]:
        count = min(_PARTS, min(len(x), len(y)) // (_ITEMS * self.k))
        if count < 3:
            return self.score(x, y), math.nan
        variances = []
        for cut in range(max(1, self.splits)):
            parts_x, parts_y = (
                torch.tensor_split(items[shuffled(len(items), self.seed, 2 * cut + side)], count)
                for side, items in enumerate((x, y))
            )
            scores = torch.tensor([self.score(a, b) for a, b in zip(parts_x, parts_y)], dtype=torch.float64)
            variances.append(float(scores.var()) / count)
        return self.score(x, y), math.sqrt(sum(variances) / len(variances))


@dataclass(frozen=True)
class Precision(NeighbourMetric):
    """The share of samples inside the ball of at least one real item.

    Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991.
    """

    name: ClassVar[str] = "precision"

    def score(self, x: Tensor, y: Tensor) -> float:
        return float((balls_around(x, y, radii(y, self.k)) > 0).double().mean())


@dataclass(frozen=True)
class Recall(NeighbourMetric):
    """The share of real items inside the ball of at least one sample.

    Reference: Kynkaanniemi et al. 2019, arXiv 1904.06991.
    """

    name: ClassVar[str] = "recall"

    def score(self, x: Tensor, y: Tensor) -> float:
        return float((balls_around(y, x, radii(x, self.k)) > 0).double().mean())


@dataclass(frozen=True)
class Density(NeighbourMetric):
    """The number of real balls around a sample over k, averaged: 1 for samples of the real law, above 1 for its dense parts.

    Reference: Naeem et al. 2020, arXiv 2002.09797.
    """

    name: ClassVar[str] = "density"

    def score(self, x: Tensor, y: Tensor) -> float:
        return float(balls_around(x, y, radii(y, self.k)).double().mean()) / self.k


@dataclass(frozen=True)
class Coverage(NeighbourMetric):
    """The share of real items whose own ball holds at least one sample; 1 - 2^-k for equal laws and equal numbers.

    Reference: Naeem et al. 2020, arXiv 2002.09797.
    """

    name: ClassVar[str] = "coverage"

    def score(self, x: Tensor, y: Tensor) -> float:
        nearest = torch.cat([squared_distances(y[part], x).amin(dim=1) for part in blocks(y, x)])
        return float((nearest <= radii(y, self.k)).double().mean())


@dataclass(frozen=True)
class Memorised(Metric):
    """The share of samples whose nearest training item is nearer than that item's own nearest other training item.

    The number means nothing alone: real items that the model never saw have such a share too. Give them as `held_out`, and
    their share is the floor. error: binomial over the samples. Reference: the criterion of Yoon et al. 2023, "Diffusion
    probabilistic models generalize when they fail to memorize", at ratio 1.
    """

    name: ClassVar[str] = "memorised"
    features: Features | str = PIXELS
    chunk: int = field(default=512, metadata=EXECUTION)

    def each(self, samples: Tensor, train: Tensor) -> Tensor:
        """Which samples are memorised, shape (n,), bool."""
        extractor = extract.get(self.features)
        x, y = extractor(rows(samples, 1), self.chunk), extractor(rows(train), self.chunk)
        own = radii(y, 1)
        nearest = [squared_distances(x[part], y).min(dim=1) for part in blocks(x, y)]
        return torch.cat([distance < own[index] for distance, index in nearest])

    def __call__(self, samples: Tensor, train: Tensor, held_out: Tensor | None = None) -> Value:
        """The share of (n, ...) samples; `held_out` real items, which must not be training items, give the floor."""
        share = float(self.each(samples, train).double().mean())
        floor = None if held_out is None else float(self.each(held_out, train).double().mean())
        found: dict[str, Setting] = {"train": extract.digest(train), "train_n": len(train)}
        held_n = None if held_out is None else len(held_out)
        return self.value(share, len(samples), share_error(share, len(samples)), floor, held_n, found)
