"""Bottleneck sampling: the first and last steps at full size, the middle ones at a smaller size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.solve import Solver, get
from fokker.solve.staged import Resize, Stage, Staged, each, run_stages, stage_grid


@dataclass(frozen=True, eq=False)
class BottleneckSampling:
    """Stages of sizes high, low, high (or any others): at a switch x_0 is resized and noised anew, at a shifted time.

        fast = BottleneckSampling(denoiser, sizes=((64, 64), (32, 32), (64, 64)), steps=(4, 12, 8), switches=(0.8, 0.2),
                                  shifts=(1, 1, 4))
        images = fast(fk.noise((16, 3, 64, 64))).x0

    denoisers  one that takes every size, or one a stage
    sizes      (height, width) of each stage
    steps      evaluations of each stage; the last one of a stage gives the belief that is handed over
    switches   times of the switches, before the shift; stage i walks from one switch to the next in equal steps
    shifts     factor of each stage's noise-to-signal ratio (see `shift_time`); after a switch upwards 2 to 4

    The noisy state is never resized and no history crosses a switch. The state given is that of the first stage at t = 1.

    Reference: Tian et al. 2025, arXiv 2503.18940.
    """

    denoisers: Denoiser | Sequence[Denoiser]
    sizes: Sequence[tuple[int, int]]
    steps: Sequence[int] = (4, 12, 8)
    switches: Sequence[float] = (0.8, 0.2)
    shifts: Sequence[float] = (1.0, 1.0, 4.0)
    solver: str | Solver = "euler"
    up: str = "bicubic"

    def __post_init__(self) -> None:
        if not (len(self.steps) == len(self.shifts) == len(self.switches) + 1 == len(self.sizes)):
            raise FokkerError(
                f"{len(self.sizes)} sizes, {len(self.steps)} steps, {len(self.shifts)} shifts, {len(self.switches)} switches; "
                "give one size, number of steps and shift a stage, and a switch between two"
            )
        each(self.denoisers, len(self.sizes))

    def stages(self) -> list[Stage]:
        """The stages, plans laid out."""
        solver = get(self.solver) if isinstance(self.solver, str) else self.solver
        ends = (1.0, *self.switches, 0.0)
        found = []
        for k, denoiser in enumerate(each(self.denoisers, len(self.sizes))):
            grid = stage_grid(denoiser.process, self.steps[k], ends[k], ends[k + 1], self.shifts[k])
            found.append(Stage(denoiser, solver.plan(denoiser.process, grid), Resize(self.sizes[k], self.up)))
        return found

    def __call__(self, x: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond) -> Staged:
        """Images from the state x (batch, channels, height, width) of the first stage's size."""
        if tuple(x.shape[2:]) != tuple(self.sizes[0]):
            raise FokkerError(f"a state of shape {tuple(x.shape)} for a first stage of size {tuple(self.sizes[0])}")
        return run_stages(self.stages(), x, seed, ids, **cond)

    def cost(self, power: float = 1.0) -> float:
        """Evaluations in units of one at the largest size: tokens (power 1), or attention between them (power 2)."""
        area = [math.prod(size) for size in self.sizes]
        return float(sum(n * (a / max(area)) ** power for n, a in zip(self.steps, area, strict=True)))
