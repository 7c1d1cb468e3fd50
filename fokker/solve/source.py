"""Noises with the end points of a model's own flow, as many as are asked for, and the hard ones among them found cheaply.

Two samples that begin close to each other may end in two modes. Those near the boundary decide the mean square error of a
good plan, and are rare: of the noises at hand, too few to learn from. So many more noises are run through two cheap plans,
and those on which these disagree are taken more often, each with the weight that makes all averages unbiased.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser, Run
from fokker.keyed import uniform
from fokker.laws.law import LawDenoiser
from fokker.plan import Plan
from fokker.solve.fitted import Trajectories
from fokker.solve.pool import CHUNK, Pool

FINE = (16, 32, 64, 128)  # steps with which the model's own flow is followed, until doubling them changes little
CLOSE = (1e-6, 2e-3)  # this little: the relative difference of end points, for a law and for a network
KEPT = 2**23  # numbers of the trajectories that are remembered


@dataclass
class Source:
    """Starts named by ids, with `shape` a sample; conditions go round over the ids.

    The model's own flow is followed in `steps` steps, which leaves the relative error `floor` in its end points. Once a pool
    was made, `paths` are the trajectories of its first samples. At most `chunk` samples are run at once.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    seed: int
    end: float | None
    cond: dict[str, Any] = field(default_factory=dict)
    chunk: int = CHUNK
    paths: Trajectories | None = None
    steps: int = FINE[-1]
    floor: float = 0.0

    def start(self, ids: Tensor) -> Tensor:
        """The states at t = 1, (n, *shape); float64 for a law."""
        parameter = next(self.denoiser.parameters(), None)
        where = "cpu" if parameter is None else parameter.device
        kind = torch.float64 if isinstance(self.denoiser, LawDenoiser) else torch.float32
        process = self.denoiser.process
        return process.start(process.sample_noise((len(ids), *self.shape), self.seed, ids, dtype=kind, device=where))

    def conditions(self, ids: Tensor) -> dict[str, Any]:
        """Those of these ids."""
        return {k: v[ids.to(v.device) % len(v)] if isinstance(v, Tensor) else v for k, v in self.cond.items()}

    def one(self) -> None:
        """One evaluation of one sample, which shows what it takes."""
        ids = torch.arange(1)
        self.denoiser.bind(Run(1, rows=1))(self.start(ids), 0.5, **self.conditions(ids))

    def converge(self, n: int, nfe: int | None = None) -> None:
        """Find the fewest steps, on the first n ids, that doubling them changes little, or the most there are.

        With `nfe` a change is also little that is three hundredths of the error of Adams' method with so many evaluations.
        """
        ids = torch.arange(n)
        x1, cond = self.start(ids), self.conditions(ids)

        def ends(steps: int) -> Tensor:
            found = []
            for i in range(0, n, self.chunk):
                part = {k: v[i : i + self.chunk] if isinstance(v, Tensor) else v for k, v in cond.items()}
                found.append(Trajectories.trace(self.denoiser, x1[i : i + self.chunk], steps, self.end, **part)[1])
            return torch.cat(found)

        def change(a: Tensor, b: Tensor) -> float:
            return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp_min(1e-300))

        close, before = CLOSE[0 if isinstance(self.denoiser, LawDenoiser) else 1], ends(FINE[0])
        if nfe is not None:
            close = max(close, 0.03 * change(ends(nfe), before))
        for self.steps, finer in pairwise(FINE):
            after = ends(finer)
            self.floor, before = change(before, after), after
            if self.floor < close:
                return
        self.steps = FINE[-1]

    def pool(self, ids: Tensor, weight: Tensor | None = None) -> Pool:
        """Starts and true end points."""
        x1, cond = self.start(ids), self.conditions(ids)
        most = self.chunk
        if self.paths is None:
            most = min(most, max(8, min(len(ids) // 2, KEPT // (self.steps * x1[0].numel()))))
        ends = []
        first = 0
        while first < len(ids):
            rows = slice(first, min(first + most, len(ids)))
            part = {k: v[rows] if isinstance(v, Tensor) else v for k, v in cond.items()}
            paths, x0 = Trajectories.trace(self.denoiser, x1[rows], self.steps, self.end, **part)
            if self.paths is None:
                self.paths, most = paths, self.chunk
            ends.append(x0)
            first = rows.stop
        return Pool(self.denoiser, x1, torch.cat(ends), cond, weight, self.chunk)

    def screened(self, first: int, last: int, many: int, one: Plan, other: Plan) -> Pool:
        """About `many` of the ids first .. last - 1, half of them by chance and half by the square of what two plans differ.

        Each id is taken by itself with a probability of its own, and stands for one over it.
        """
        gaps = []
        for begin in range(first, last, CHUNK):
            ids = torch.arange(begin, min(begin + CHUNK, last))
            pool = Pool(self.denoiser, self.start(ids), torch.zeros(len(ids), 1), self.conditions(ids), chunk=self.chunk)
            gap = (pool.end(one) - pool.end(other)).flatten(1).square().sum(1).to("cpu", torch.float64)
            gaps.append(torch.nan_to_num(gap, nan=0.0, posinf=0.0))
        gap = torch.cat(gaps)
        chance = 0.5 / len(gap) + 0.5 * gap / gap.sum().clamp_min(1e-300)
        chance = (many * chance).clamp_max(1.0)
        taken = uniform((len(gap),), self.seed, torch.arange(first, last), "check") < chance
        ids = torch.arange(first, last)[taken]
        return self.pool(ids, 1 / chance[taken])
