"""The learning rate, a pure function of samples seen: there is no scheduler to step, save or forget."""

import math
from dataclasses import dataclass

from fokker.errors import FokkerError, unknown

KINDS = ("constant", "cosine", "inverse-sqrt", "linear")


@dataclass(frozen=True)
class Rate:
    """The learning rate after n samples: peak x ramp(n) x decay(n).

    ramp(n) = min(1, n / warmup); decay is 1 (constant), falls to `floor` at the run's end along half a cosine (cosine) or a
    line (linear), or is min(1, sqrt(knee / n)) (inverse-sqrt). `warmup` and `knee` count samples, `floor` is a share of `peak`.

    Reference: Loshchilov & Hutter 2017, arXiv 1608.03983 (cosine); Karras et al. 2024, arXiv 2312.02696 (inverse square root).
    """

    peak: float = 1e-3
    kind: str = "cosine"
    warmup: int = 10_000
    floor: float = 0.0
    knee: int = 1_000_000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("learning rate", self.kind, KINDS)
        if self.peak <= 0 or self.warmup < 0 or self.knee <= 0 or not 0 <= self.floor <= 1:
            raise FokkerError(
                f"rate: peak={self.peak}, warmup={self.warmup}, knee={self.knee}, floor={self.floor}; "
                "peak and knee must be positive, warmup not negative, floor in [0, 1]"
            )

    def at(self, seen: float, total: int) -> float:
        """The rate at `seen` of `total` samples."""
        ramp = min(1.0, seen / self.warmup) if self.warmup else 1.0
        if self.kind == "inverse-sqrt":
            return self.peak * ramp * min(1.0, math.sqrt(self.knee / max(seen, 1.0)))
        if self.kind == "constant":
            return self.peak * ramp
        share = min(1.0, max(0.0, (seen - self.warmup) / max(1, total - self.warmup)))
        fall = (1 + math.cos(math.pi * share)) / 2 if self.kind == "cosine" else 1 - share
        return self.peak * ramp * (self.floor + (1 - self.floor) * fall)
