"""Starts by optimal transport: one jump from white noise to stored, partly noised data."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.process import Process

CHUNK = 1 << 22  # numbers in one table of scores


@dataclass(frozen=True, eq=False)
class SemiDiscreteOT:
    """The optimal map from N(0, I) to n equally heavy points y_i (quadratic cost), T(p) = y_i with i = argmax <p, y_i> + h_i.

    The Brenier potential max_i <p, y_i> + h_i is convex, and so is the energy E max_i (<p, y_i> + h_i) - mean h, whose
    gradient is (mass of cell i) - 1 / n: a cell that is too heavy is lowered.

    Reference: Gu et al. 2013, arXiv 1302.5472; An et al. 2020, AE-OT; Li et al. 2023, arXiv 2307.11308.
    """

    points: Tensor
    heights: Tensor

    @classmethod
    def fit(
        cls, points: Tensor, seed: int = 0, batch: int | None = None, updates: int = 600, rate: float | None = None
    ) -> "SemiDiscreteOT":
        """Heights for `points` (n, ...) by Adam on Monte Carlo cells of `batch` (10 n) draws of noise.

        When the gradient has not fallen for 50 updates the rate shrinks by 0.8 and, up to three times, the batch doubles; the
        answer is the mean over the last third of the updates, in which what is left of the noise averages out.
        """
        y = points.flatten(1).to(torch.float64)
        n, dim = y.shape
        size = batch or 10 * n
        step = rate or 0.02 * float(y.norm(dim=1).mean())
        h, first, second = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
        total, best, stalled, doubled = torch.zeros_like(h), math.inf, 0, 0
        kept = max(1, updates // 3)
        for k in range(updates):
            p = noise((size, dim), seed, stream="start", index=1 + k, dtype=torch.float64)
            gradient = torch.bincount(cells(p, y, h), minlength=n) / size - 1 / n
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            h = h - step * (first / (1 - 0.9 ** (k + 1))) / (torch.sqrt(second / (1 - 0.999 ** (k + 1))) + 1e-12)
            h = h - h.mean()
            norm = float(gradient.norm())
            best, stalled = (norm, 0) if norm < best else (best, stalled + 1)
            if stalled >= 50:
                step, best, stalled = 0.8 * step, math.inf, 0
                size, doubled = (2 * size, doubled + 1) if doubled < 3 else (size, doubled)
            if k >= updates - kept:
                total = total + h / kept
        return cls(points, total - total.mean())

    def cell(self, p: Tensor) -> Tensor:
        """The index (batch,) of the cell that each p (batch, ...) lies in."""
        return cells(p.flatten(1).to(torch.float64), self.points.flatten(1).to(torch.float64), self.heights)

    def __call__(self, p: Tensor) -> Tensor:
        """T(p), (batch, ...), for p the shape of the points."""
        if p.shape[1:] != self.points.shape[1:]:
            raise FokkerError(f"noise of shape {tuple(p.shape)} for points of shape {tuple(self.points.shape)}")
        return self.points[self.cell(p)].to(p)


def cells(p: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """argmax_i <p, y_i> + h_i for p (batch, dim), y (n, dim), in chunks of bounded memory."""
    rows = max(1, CHUNK // len(y))
    return torch.cat([torch.addmm(h, part, y.T).argmax(1) for part in p.split(rows)])


@dataclass(frozen=True, eq=False)
class OTStart:
    """A start in mid-run: noise z is carried to one of `n` training items diffused to time `t`, and a few steps finish it.

        start = OTStart(data, process, t=0.25)
        x0 = fk.sample(denoiser, start(fk.noise((64, *data.shape[1:]))), solver="ddim", steps=5, start=start.t)

    Skips the long way from white noise, and lands in one mode. With a deterministic rest there are at most n different
    outputs: it is a memory of noised training data, so report how many and how far from the data they are.

    Reference: Li et al. 2023, arXiv 2307.11308 (DPM-OT).
    """

    data: Tensor
    process: Process
    t: float = 0.25
    seed: int = 0
    updates: int = 600
    map: SemiDiscreteOT = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.t <= 1:
            raise FokkerError(f"t={self.t} is not accepted; the start lies at a time in (0, 1]")
        if self.process.anchored:
            raise FokkerError("OTStart needs a plain process; an anchored one starts from its own observation")
        eps = noise(tuple(self.data.shape), self.seed, stream="data", dtype=torch.float64).to(self.data)
        points = self.process.add_noise(self.data, eps, self.t)
        object.__setattr__(self, "map", SemiDiscreteOT.fit(points, self.seed, updates=self.updates))

    def __call__(self, z: Tensor) -> Tensor:
        """The states at time `t` (batch, ...) from unit noise z (batch, ...)."""
        return self.map(z)
