"""A picture of any size restored by a denoiser of small ones: tiles under a measurement of the whole."""

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
        raise FokkerError(
            f"{process.name} restores by itself (from Python: fk.sample(..., y=y)); give a model of plain noise"
        )
    canvas = tiling.canvas
    whole = operator if canvas == tiling.size else Cropped(operator, tiling.size, canvas)
    tiles = Tiles(tiling.tile, tiling.overlap)
    lifted = denoiser if canvas == (tiling.tile, tiling.tile) else Charted(denoiser, tiles, batch)
    begin = process.start(noise((1, shape[0], *canvas), seed, dtype=torch.float32, device=y.device))
    trace = run(wrap(lifted, whole, y), begin, plan, seed=seed, watch=lambda *_: watch())
    x0 = trace.x0[:, :, : tiling.size[0], : tiling.size[1]]
    return Trace(x0, (x0,), trace.plan, trace.nfe, trace.seconds, seed, trace.stopped, trace.config)
