"""A running average of the weights: a separate copy whose decay is a function of samples seen."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError, unknown
from fokker.train.shard import exchange, fill

KINDS = ("power", "halflife")


@dataclass(frozen=True)
class Average:
    """How long the average remembers, in samples seen n; the weight kept from m to n is a function of m and n alone.

    power     keep = (m / n)^(gamma + 1), with gamma from `width`, the relative standard deviation of the profile
    halflife  keep = 2^(-int_m^n ds / h(s)), h(s) = min(halflife, warmup s): shorter at first, `halflife` later

    Both are 0 from m = 0 (the initial weights are forgotten) and multiply, keep(a, b) keep(b, c) = keep(a, c), so the
    average does not depend on the batch size through the number of updates.

    Reference: Karras et al. 2024, arXiv 2312.02696 (power function profile); Karras et al. 2022, arXiv 2206.00364.
    """

    kind: str = "power"
    width: float = 0.1
    halflife: int = 50_000
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("average", self.kind, KINDS)
        if not 0 < self.width < 12**-0.5:
            raise FokkerError(f"width={self.width} of an average is not accepted; use a number in (0, 0.288)")
        if self.halflife <= 0 or self.warmup <= 0:
            raise FokkerError(f"halflife={self.halflife}, warmup={self.warmup} of an average; both must be positive")

    @cached_property
    def gamma(self) -> float:
        """The exponent whose profile t^gamma on [0, 1] has relative standard deviation `width`."""
        # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) falls in gamma from 1/12 at 0
        low, high = 0.0, 2.0 / self.width
        for _ in range(200):
            middle = (low + high) / 2
            wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > self.width**2
            low, high = (middle, high) if wide else (low, middle)
        return (low + high) / 2

    def keep(self, before: int, now: int) -> float:
        """The weight of the old average when the samples seen go from `before` to `now`."""
        if before <= 0:
            return 0.0
        if self.kind == "power":
            return math.exp((self.gamma + 1) * math.log(before / now))
        knee = self.halflife / self.warmup
        early = max(0.0, math.log(min(now, knee) / min(before, knee))) / self.warmup
        late = (max(now, knee) - max(before, knee)) / self.halflife
        return float(2.0 ** -(early + late))


class EMA:
    """The averaged copy of a module's parameters, updated by one fused operation."""

    def __init__(self, module: nn.Module, average: Average) -> None:
        self.average = average
        self.live: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.copy: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.live.items()}
        self._live: list[Tensor] = list(self.live.values())
        self._copy = list(self.copy.values())

    @torch.no_grad()
    def update(self, before: int, now: int) -> None:
        """copy <- keep copy + (1 - keep) live, as the samples seen go from `before` to `now`."""
        keep = self.average.keep(before, now)
        torch._foreach_lerp_(self._copy, self._live, 1.0 - keep)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the module holds the average; afterwards its own weights again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for live, copy in zip(self._live, self._copy, strict=True):
            exchange(live, copy)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved copy; the names must be this module's."""
        for name, copy in self.copy.items():
            fill(copy, tensors[name])
