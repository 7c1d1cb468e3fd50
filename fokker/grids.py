"""Where a plan stops on its way from noise to data.

A grid is a rule with a number of steps; `times(process)` lays it out as decreasing float64 times. Grids end at the process's
own `end` unless told otherwise; `end=0` replaces the last stretch by the exact last step to x_0. The number of steps stays
the one asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.process import Process

# Below this log-SNR a belief is the mean of the data whatever the law: grids spaced in noise level do not dwell there.
FAINTEST = -12.0


@dataclass(frozen=True)
class Grid:
    """`steps` intervals from time `start` to time `end` (None: the process's own end; 0: to x_0 itself).

    Subclasses define `spaced(process, n, start, end)`, n + 1 decreasing times that begin at `start` and finish at `end`.
    Raises FokkerError for fewer than one step, or times outside [0, 1] or out of order.
    """

    steps: int
    start: float = 1.0
    end: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise FokkerError(f"steps={self.steps!r} is not accepted; use a whole number of at least 1")
        if not 0 < self.start <= 1:
            raise FokkerError(f"start={self.start} is not accepted; a run starts at a time in (0, 1]")
        if self.end is not None and not 0 <= self.end < self.start:
            raise FokkerError(f"end={self.end} is not accepted; it must lie in [0, start={self.start})")

    @property
    def to_data(self) -> bool:
        """Whether the last step leads to x_0 itself."""
        return self.end == 0

    def times(self, process: Process) -> Tensor:
        """steps + 1 strictly decreasing float64 times; the last one is 0 if the grid leads to x_0."""
        last = process.end if self.end is None or self.to_data else float(self.end)
        if not last < self.start:
            raise FokkerError(f"the grid starts at t={self.start}, at or below the process's end t={last}")
        start = torch.tensor([self.start], dtype=torch.float64)
        if not self.to_data:
            return check(self.spaced(process, self.steps, self.start, last))
        zero = torch.zeros(1, dtype=torch.float64)
        if self.steps == 1:
            return torch.cat([start, zero])
        t = self.spaced(process, self.steps - 1, self.start, last)
        # a process whose own end is t = 0 (VE) keeps that node: from there the last step leads to x_0
        return torch.cat([check(t), zero])

    def spaced(self, process: Process, n: int, start: float, end: float) -> Tensor:
        raise FokkerError(f"{type(self).__name__} does not define spaced(process, n, start, end)")

    @property
    def config(self) -> dict[str, Any]:
        return {"grid": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


def check(t: Tensor) -> Tensor:
    """`t` itself if it decreases strictly, or FokkerError naming the first two times that do not."""
    bad = (t.diff(dim=0) >= 0).nonzero()
    if len(bad):
        i, *sample = bad[0].tolist()
        before, after = (t[(k, *sample)].item() for k in (i, i + 1))
        where = f" for sample {sample[0]}" if sample else ""
        raise FokkerError(f"times {i} and {i + 1} of the grid do not decrease{where} ({before} then {after})")
    return t


def _ramp(a: float, b: float, n: int) -> Tensor:
    return torch.linspace(a, b, n + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t."""

    def spaced(self, process: Process, n: int, start: float, end: float) -> Tensor:
        return _ramp(start, end, n)


@dataclass(frozen=True)
class Quadratic(Grid):
    """Equal steps in t^(1/power): denser towards the data. Reference: Song et al. 2021, arXiv 2010.02502 (power 2)."""

    power: float = 2.0

    def spaced(self, process: Process, n: int, start: float, end: float) -> Tensor:
        t = _ramp(start ** (1 / self.power), end ** (1 / self.power), n) ** self.power
        t[0], t[-1] = start, end
        return t


@dataclass(frozen=True)
class Shifted(Grid):
    """Equal steps in u with t = shift u / (1 + (shift - 1) u): finer where there is much noise, as large pictures need it.

    On `Flow` it multiplies sigma / alpha by `shift`. Raises FokkerError unless shift > 0.
    Reference: Esser et al. 2024, arXiv 2403.03206, section 5.3.2.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shift > 0:
            raise FokkerError(f"shift={self.shift} is not accepted; use a number above 0, 1 for none")

    def spaced(self, process: Process, n: int, start: float, end: float) -> Tensor:
        back = 1 / self.shift
        first, last = (back * t / (1 + (back - 1) * t) for t in (start, end))
        u = _ramp(first, last, n)
        t = self.shift * u / (1 + (self.shift - 1) * u)
        t[0], t[-1] = start, end
        return t


class _InNoise(Grid):
    """Spacing by noise level; the first time is `start` even where its log-SNR is below `FAINTEST`."""

    def levels(self, high: float, low: float, n: int) -> Tensor:
        """n + 1 log-SNRs from `high` noise (the smaller number) to `low` noise."""
        raise FokkerError(f"{type(self).__name__} does not define levels(high, low, n)")

    def spaced(self, process: Process, n: int, start: float, end: float) -> Tensor:
        low = process.logsnr(end).item()
        if low == float("inf"):
            raise FokkerError(f"{type(self).__name__} cannot end at t={end}, where sigma is 0; use end=0 or end above 0")
        high = process.logsnr(start).item()
        if not max(high, FAINTEST) < low:
            raise FokkerError(f"the log-SNR at start t={start} is not below that at end t={end}")
        t = process.time(self.levels(max(high, FAINTEST), low, n))
        t[0], t[-1] = start, end
        return t


@dataclass(frozen=True)
class LogSNR(_InNoise):
    """Equal steps in log-SNR. Reference: Lu et al. 2022, arXiv 2206.00927."""

    def levels(self, high: float, low: float, n: int) -> Tensor:
        return _ramp(high, low, n)


@dataclass(frozen=True)
class Karras(_InNoise):
    """Equal steps in (sigma/alpha)^(1/rho). Reference: Karras et al. 2022, arXiv 2206.00364."""

    rho: float = 7.0

    def levels(self, high: float, low: float, n: int) -> Tensor:
        sigma = _ramp(math.exp(-high / (2 * self.rho)), math.exp(-low / (2 * self.rho)), n)
        return -2 * self.rho * torch.log(sigma)


@dataclass(frozen=True)
class VPTime(_InNoise):
    """Quadratic spacing in the time that a VP process needs for the same noise level: VP's good grid on any process."""

    power: float = 2.0

    def levels(self, high: float, low: float, n: int) -> Tensor:
        from fokker.process import VP

        vp = VP()
        ends = [vp.time(high).item(), vp.time(low).item()]
        if not ends[1] < ends[0]:
            raise FokkerError("this range of noise levels lies outside VP's; use another grid")
        t = _ramp(ends[0] ** (1 / self.power), ends[1] ** (1 / self.power), n) ** self.power
        return vp.logsnr(t)


@dataclass(frozen=True)
class Times(Grid):
    """The times themselves: a list, or a tensor (steps + 1,) or (steps + 1, batch) with one column a sample.

    `to_x0=True` says that the last time stands for x_0. Times that rise are accepted only as a whole (`rising=True`, for
    inversion).
    """

    steps: int = field(default=0, init=False)
    start: float = field(default=1.0, init=False)
    end: float | None = field(default=None, init=False)
    values: Sequence[float] | Tensor = ()
    to_x0: bool = False
    rising: bool = False

    def __post_init__(self) -> None:
        t = torch.as_tensor(self.values, dtype=torch.float64)
        if t.ndim not in (1, 2) or len(t) < 2 or not t.numel():
            raise FokkerError("give at least two times, as a list or a tensor (steps + 1,) or (steps + 1, batch)")
        if self.to_x0 and self.rising:
            raise FokkerError("rising times cannot lead to x_0; leave to_x0 or rising out")
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise FokkerError(f"times must lie in [0, 1]; these run from {t.min().item()} to {t.max().item()}")
        check(t.flip(0) if self.rising else t)
        object.__setattr__(self, "values", t)
        object.__setattr__(self, "steps", len(t) - 1)

    @property
    def to_data(self) -> bool:
        return self.to_x0

    def times(self, process: Process) -> Tensor:
        return torch.as_tensor(self.values)

    @property
    def config(self) -> dict[str, Any]:
        return {"grid": "Times", "values": torch.as_tensor(self.values).tolist(), "to_x0": self.to_x0, "rising": self.rising}


def reversed_times(grid: Grid, process: Process) -> Times:
    """The same times upwards, from data to noise: what inversion walks on."""
    t = grid.times(process)
    return Times((t[:-1] if grid.to_data else t).flip(0), rising=True)


def get(name: str) -> type[Grid]:
    """The grid class of that name ("logsnr", or "mymodule:MyGrid")."""
    from fokker import catalogue

    found, _ = catalogue.find("grid", name)
    if not (isinstance(found, type) and issubclass(found, Grid)):
        raise FokkerError(f"{name!r} is not a Grid; subclass fokker.grids.Grid")
    return found


def names() -> list[str]:
    """The names of all grids."""
    from fokker import catalogue

    return catalogue.names("grid")


def uniform(steps: int, start: float = 1.0, end: float | None = None) -> Uniform:
    """`Uniform`: equal steps in t."""
    return Uniform(steps, start, end)


def quadratic(steps: int, start: float = 1.0, end: float | None = None, power: float = 2.0) -> Quadratic:
    """`Quadratic`: equal steps in the root of t."""
    return Quadratic(steps, start, end, power)


def logsnr(steps: int, start: float = 1.0, end: float | None = None) -> LogSNR:
    """`LogSNR`: equal steps in log-SNR."""
    return LogSNR(steps, start, end)


def karras(steps: int, start: float = 1.0, end: float | None = None, rho: float = 7.0) -> Karras:
    """`Karras`: equal steps in a root of the noise level."""
    return Karras(steps, start, end, rho)
