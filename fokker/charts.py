"""Charts: a large state as overlapping pieces of the size a denoiser knows, and one state from the beliefs of all pieces.

A `Charts` object gathers the pieces of a state (batch, ...) along the batch and scatters answers back by a partition of unity.
`Charted` lifts a denoiser of pieces to the whole state, where guidance, restorers and solvers see nothing of it: what they
correct is the whole, at every step, so that a measurement spans the pieces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.process import Time


class Charts:
    """Pieces of a state. Subclasses define `gather` and `scatter`, each sample's pieces one after another."""

    def gather(self, x: Tensor) -> Tensor:
        """The pieces (batch * pieces, ...) of x (batch, ...)."""
        raise FokkerError(f"{type(self).__name__} does not define gather(x); charts must")

    def scatter(self, pieces: Tensor, shape: Sequence[int]) -> Tensor:
        """The state of `shape` (batch, ...) whose every number is the weighted mean of the pieces that hold it."""
        raise FokkerError(f"{type(self).__name__} does not define scatter(pieces, shape); charts must")


@dataclass(frozen=True)
class Tiles(Charts):
    """Square (cubic) tiles of `size` along all trailing dimensions, at least `overlap` (a half) shared with the next.

    x (batch, channels, *sides) to (batch * tiles, channels, *[size] * ndim). The weight of a tile falls linearly from its
    middle to its border along each dimension. Raises FokkerError where a side is shorter than a tile.
    """

    size: int = 32
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= (self.overlap or 0) < self.size:
            raise FokkerError(f"size={self.size}, overlap={self.overlap}: give a size of at least 1 and a smaller overlap")

    def places(self, side: int) -> list[int]:
        """Where tiles begin along a side: evenly, with the first and the last at the ends."""
        if side < self.size:
            raise FokkerError(f"a side of {side} is shorter than a tile of {self.size}; use a smaller size, or a larger canvas")
        stride = self.size - (self.size // 2 if self.overlap is None else self.overlap)
        count = math.ceil((side - self.size) / stride) + 1
        return [round(k * (side - self.size) / max(1, count - 1)) for k in range(count)]

    def corners(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """The first corners of all tiles of a state (batch, channels, *sides)."""
        corners: list[tuple[int, ...]] = [()]
        for side in shape[2:]:
            corners = [(*c, k) for c in corners for k in self.places(side)]
        return corners

    def _there(self, corner: tuple[int, ...]) -> Any:
        return (..., *(slice(k, k + self.size) for k in corner))

    def gather(self, x: Tensor) -> Tensor:
        cut = [x[self._there(corner)] for corner in self.corners(x.shape)]
        return torch.stack(cut, 1).flatten(0, 1)

    def scatter(self, pieces: Tensor, shape: Sequence[int]) -> Tensor:
        corners = self.corners(shape)
        wide = torch.promote_types(pieces.dtype, torch.float32)
        window = self._window(len(shape) - 2).to(pieces.device, wide)
        weighted = (pieces.to(wide) * window).unflatten(0, (shape[0], len(corners)))
        total = torch.zeros(tuple(shape), dtype=wide, device=pieces.device)
        weight = torch.zeros(tuple(shape[2:]), dtype=wide, device=pieces.device)
        for k, corner in enumerate(corners):
            there = self._there(corner)
            total[there] += weighted[:, k]
            weight[there] += window
        return (total / weight).to(pieces.dtype)

    def _window(self, ndim: int) -> Tensor:
        at = torch.arange(self.size, dtype=torch.float64) + 0.5
        line = torch.minimum(at, self.size - at)
        window = line
        for _ in range(ndim - 1):
            window = window[..., None] * line
        return window


@dataclass(frozen=True)
class Slices(Charts):
    """The slices across one dimension: a volume (batch, channels, depth, height, width) as depth pictures for axis 2."""

    axis: int = 2

    def __post_init__(self) -> None:
        if self.axis < 2:
            raise FokkerError(f"axis={self.axis} is not accepted; give a dimension after batch and channels, from 2")

    def gather(self, x: Tensor) -> Tensor:
        if x.ndim <= self.axis:
            raise FokkerError(f"a state of shape {tuple(x.shape)} has no dimension {self.axis} to slice")
        return x.movedim(self.axis, 1).flatten(0, 1)

    def scatter(self, pieces: Tensor, shape: Sequence[int]) -> Tensor:
        whole: Tensor = pieces.unflatten(0, (shape[0], shape[self.axis])).movedim(1, self.axis)
        return whole


class Charted(Wrapper):
    """A denoiser of pieces as one of whole states: gather, ask about every piece, scatter. `batch` pieces a call.

    Conditions and times go to all pieces of their sample; the anchor y of an anchored process, which has the state's shape, is
    cut as the state is. Evaluations count pieces.
    Reference: Bar-Tal, Yariv, Lipman, Dekel 2023, arXiv 2302.08113 (fusing the answers of overlapping views at every step).
    """

    def __init__(self, inner: Denoiser, charts: Charts, batch: int = 256) -> None:
        super().__init__(inner)
        if batch < 1:
            raise FokkerError(f"batch={batch} is not accepted; give how many pieces are asked about at once")
        if not inner.stackable:
            raise FokkerError(
                "charts cut the batch into pieces, but the denoiser inside holds something of the batch's own size (a "
                "measurement, a guide, a memory); put that outside of the charts"
            )
        self.charts, self.batch = charts, batch

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        pieces = self.charts.gather(x_t)
        each = len(pieces) // len(x_t)

        def spread(v: Cond) -> Cond:
            return v.repeat_interleave(each, 0) if isinstance(v, Tensor) and v.ndim and len(v) == len(x_t) else v

        times = spread(t)
        if isinstance(times, Tensor) and times.ndim > 1 and times.numel() > len(times):
            raise FokkerError("Charted needs one time per sample; times that differ within one would have to be cut as well")
        anchor = {"y": self.charts.gather(self.process.anchor(cond.pop("y", None)))} if self.process.anchored else {}
        conds = {name: spread(value) for name, value in cond.items()} | anchor
        answers = []
        for first in range(0, len(pieces), self.batch):
            part = slice(first, first + self.batch)

            def some(v: Cond, part: slice = part) -> Cond:
                return v[part] if isinstance(v, Tensor) and v.ndim and len(v) == len(pieces) else v

            answers.append(self.inner(pieces[part], some(times), **{k: some(v) for k, v in conds.items()}))
        return self.charts.scatter(torch.cat(answers), tuple(x_t.shape))
