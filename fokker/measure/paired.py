"""Two methods on the same items: which is better, by how much, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure.value import Value

# Bootstrap weights are drawn in groups of so many numbers, so memory does not grow with the items.
_ENTRIES = 2**22


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of a with b over n items: `ratio` is the geometric mean of a / b, `difference` the mean of a - b.

    Each has a bootstrap interval of coverage `level`; `wins` is the share of items where a is lower (ties count half).
    """

    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    difference_low: float
    difference_high: float
    wins: float
    n: int
    level: float

    @property
    def lower(self) -> bool:
        """Whether a is below b beyond doubt: the interval of the ratio lies below 1."""
        return self.ratio_high < 1

    def __str__(self) -> str:
        interval = f"[{self.ratio_low:.3g}, {self.ratio_high:.3g}]"
        return f"{self.ratio:.3g} x {interval} ({self.level:.0%} interval, n={self.n} pairs, lower in {self.wins:.0%})"

    def json(self) -> dict[str, float | int]:
        """Plain JSON of every field."""
        return dict(vars(self))


def compare(
    a: Tensor | Sequence[Value],
    b: Tensor | Sequence[Value],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    resolution: float = 0.0,
) -> Comparison:
    """Paired positive errors of two methods, item by item (`metric.each`), or Values case by case.

    The pairs are resampled together (percentile bootstrap from `seed`), so what the items have in common cancels. Errors
    below `resolution` count as `resolution`: rounding errors are not worth a ratio. Values must pairwise have the same
    settings, and their sampling errors are not used. Raises FokkerError for unequal numbers, and for errors of 0 without
    a resolution. Reference: Efron, Tibshirani 1993, "An introduction to the bootstrap".
    """
    x, y = _numbers(a), _numbers(b)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        for mine, theirs in zip(a, b, strict=False):
            mine.ratio(theirs)
    if x.shape != y.shape or len(x) < 2:
        raise FokkerError(f"{len(x)} errors of one method and {len(y)} of the other; give the same items, at least 2")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise FokkerError("some of the errors are not finite; count the failed items apart and compare the others")
    floored_x, floored_y = x.clamp(min=resolution), y.clamp(min=resolution)
    if bool((floored_x <= 0).any() | (floored_y <= 0).any()):
        raise FokkerError("errors of 0 or below have no ratio; give resolution= the smallest error that means anything")
    if not 0 < level < 1 or resamples < 100:
        raise FokkerError(
            f"level={level}, resamples={resamples}: give a level between 0 and 1 and at least 100 resamples"
        )
    logs, gaps = (floored_x / floored_y).log(), x - y
    ratio_low, ratio_high, low, high = _bootstrap(torch.stack([logs, gaps]), seed, resamples, level)
    return Comparison(
        ratio=math.exp(float(logs.mean())),
        ratio_low=math.exp(ratio_low),
        ratio_high=math.exp(ratio_high),
        difference=float(gaps.mean()),
        difference_low=low,
        difference_high=high,
        wins=float((logs < 0).double().mean() + (logs == 0).double().mean() / 2),
        n=len(x),
        level=level,
    )


def _numbers(errors: Tensor | Sequence[Value]) -> Tensor:
    if isinstance(errors, Tensor):
        return errors.detach().to("cpu", torch.float64).reshape(-1)
    return torch.tensor([v.value for v in errors], dtype=torch.float64)


def _bootstrap(columns: Tensor, seed: int, resamples: int, level: float) -> tuple[float, float, float, float]:
    """The percentile intervals of the means of two rows (2, n) of numbers that are resampled together."""
    generator = np.random.default_rng(seed)
    n = columns.shape[1]
    means = []
    for start in range(0, resamples, group := max(1, _ENTRIES // n)):
        drawn = torch.from_numpy(generator.integers(0, n, (min(group, resamples - start), n)))
        means.append(columns[:, drawn].mean(dim=2))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    first, second = torch.cat(means, dim=1).quantile(tails, dim=1).T.tolist()
    return first[0], first[1], second[0], second[1]
