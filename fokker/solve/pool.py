"""Noises with true end points: what tuning learns from and is judged by."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.loop import run
from fokker.plan import Plan

CHUNK = 1024
WORST = 1e6  # the squared error that stands for a run that left the finite numbers


@dataclass
class Pool:
    """Starts (n, ...), their true end points, and conditions: what errors are measured on.

    `weight` (n,), where given, says for how many noises each of these stands; `scale` is the sum of squares of an end point,
    on average. At most `chunk` samples are run at once.
    """

    denoiser: Denoiser
    start: Tensor
    truth: Tensor
    cond: dict[str, Any] = field(default_factory=dict)
    weight: Tensor | None = None
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        self.scale = float(self.mean(self.truth.flatten(1).square().sum(1).to("cpu", torch.float64)))

    def mean(self, v: Tensor) -> Tensor:
        """The mean of v (n,) over the noises that the samples stand for."""
        return v.mean() if self.weight is None else (self.weight * v).sum() / self.weight.sum()

    def __len__(self) -> int:
        return len(self.start)

    def part(self, rows: Tensor | slice) -> "Pool":
        """Some of the samples, with errors relative to the same scale."""
        cond = {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        weight = None if self.weight is None else self.weight[rows]
        out = Pool(self.denoiser, self.start[rows], self.truth[rows], cond, weight, self.chunk)
        out.scale = self.scale
        return out

    def joined(self, other: "Pool") -> "Pool":
        """These samples and others, for all the noises that they stand for together."""
        cond = {k: torch.cat([v, other.cond[k]]) if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        weights = [torch.ones(len(p), dtype=torch.float64) if p.weight is None else p.weight for p in (self, other)]
        start, truth = (torch.cat(pair) for pair in ((self.start, other.start), (self.truth, other.truth)))
        return Pool(self.denoiser, start, truth, cond, torch.cat(weights), self.chunk)

    def end(self, plan: Plan) -> Tensor:
        """The end points of a plan, finite or not."""
        parts = [self.part(slice(i, i + self.chunk)) for i in range(0, len(self), self.chunk)]
        return torch.cat([run(self.denoiser, p.start, plan, check=False, **p.cond).x0 for p in parts])

    def errors(self, plan: Plan) -> Tensor:
        """The squared distance of each end point to the true one, over the mean square of these, (n,) float64 on the CPU."""
        each = (self.end(plan) - self.truth).flatten(1).to(torch.float64).square().sum(1).cpu() / self.scale
        return torch.nan_to_num(each, nan=WORST, posinf=WORST).clamp_max(WORST)

    def rms(self, plan: Plan) -> float:
        """The relative root mean square of the errors."""
        return float(self.mean(self.errors(plan)).sqrt())
