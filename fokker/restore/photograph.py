"""A picture of any size restored by a denoiser of small ones: tiles under a measurement of the whole, or beside their own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.charts import Charted, Tiles
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.loop import Trace, run
from fokker.plan import Plan
from fokker.restore import Operator, Wrapper
from fokker.restore.views import Cropped


@dataclass(frozen=True)
class Tiling:
    """How a picture of `size` is worked on: its canvas, at least a tile a side, and the tiles that cover it."""

    size: tuple[int, int]
    tile: int
    overlap: int

    @property
    def canvas(self) -> tuple[int, int]:
        return max(self.size[0], self.tile), max(self.size[1], self.tile)

    @property
    def tiles(self) -> int:
        return len(Tiles(self.tile, self.overlap).corners((1, 1, *self.canvas)))


def restore(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    shape: tuple[int, int, int],
    wrap: Callable[[Denoiser, Operator, Tensor], Wrapper],
    plan: Plan,
    tiling: Tiling,
    seed: int = 0,
    batch: int = 256,
    watch: Callable[[], None] = lambda: None,
) -> Trace:
    """x (1, *shape) from y (1, ...): `wrap(denoiser, operator, y)` is the restorer, `plan` ends at x_0 or near it.

    The denoiser of tiles is lifted to the canvas (`Charted`), so the restorer corrects the whole picture at every step,
    whatever pixels its measurement ties together; a picture smaller than a tile is a view of its canvas (`Cropped`). The
    trace's x0 has the picture's size. Raises FokkerError for an anchored process.
    """
    process = denoiser.process
    if process.anchored:
        raise FokkerError(f"{process.name} restores by itself; use fokker.restore.photograph.along, or a model of plain noise")
    canvas = tiling.canvas
    whole = operator if canvas == tiling.size else Cropped(operator, tiling.size, canvas)
    begin = process.start(noise((1, shape[0], *canvas), seed, dtype=torch.float32, device=y.device))
    wrapped = wrap(_lifted(denoiser, tiling, batch), whole, y)
    return _cut(run(wrapped, begin, plan, seed=seed, watch=lambda *_: watch()), tiling)


def along(
    denoiser: Denoiser,
    y: Tensor,
    plan: Plan,
    tiling: Tiling,
    seed: int = 0,
    batch: int = 256,
    watch: Callable[[], None] = lambda: None,
) -> Trace:
    """x (1, C, H, W) from the observation y of the same shape, by a denoiser that was trained on an anchored process.

    Every tile is asked beside its part of y. A picture smaller than a tile is continued by its borders. Raises FokkerError for
    a process without an anchor.
    """
    process = denoiser.process
    if not process.anchored:
        raise FokkerError(f"{process.name} has no anchor; use fokker.restore.photograph.restore with an operator")
    missing = [have - want for have, want in zip(tiling.canvas, tiling.size, strict=True)]
    whole = torch.nn.functional.pad(y, (0, missing[1], 0, missing[0]), mode="replicate")
    begin = process.start(noise(tuple(whole.shape), seed, dtype=torch.float32, device=y.device), whole)
    lifted = _lifted(denoiser, tiling, batch)
    return _cut(run(lifted, begin, plan, y=whole, seed=seed, watch=lambda *_: watch()), tiling)


def _lifted(denoiser: Denoiser, tiling: Tiling, batch: int) -> Denoiser:
    """The denoiser of tiles as one of the canvas."""
    if tiling.canvas == (tiling.tile, tiling.tile):
        return denoiser
    return Charted(denoiser, Tiles(tiling.tile, tiling.overlap), batch)


def _cut(trace: Trace, tiling: Tiling) -> Trace:
    """The trace of a canvas as one of the picture on it."""
    x0 = trace.x0[:, :, : tiling.size[0], : tiling.size[1]]
    return Trace(x0, (x0,), trace.plan, trace.nfe, trace.seconds, trace.seed, trace.stopped, trace.config)
