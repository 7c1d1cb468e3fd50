"""Editing without inversion: where all variance is renewed at each step, a known sample has its noise in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.edit.inversion import halves, joint
from fokker.edit.paired import Control
from fokker.errors import FokkerError
from fokker.grids import Grid, LogSNR
from fokker.guide.cfg import CFG
from fokker.keyed import noise
from fokker.loop import run
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Time
from fokker.solve import Solver


@dataclass(frozen=True)
class Renewed(Solver):
    """x_s = alpha_s D + sigma_s z: the belief noised afresh, as multistep consistency sampling does. One evaluation a step."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            x = D if s.data else s.alpha * D + s.sigma * draft.noise(t, s)
        return x


class Difference(Wrapper):
    """Of a joint batch (source half first) whose source is the sample x_0: beliefs (x_0, x_0 + D_target - D_source)."""

    stackable = False

    def __init__(self, inner: Denoiser, x_0: Tensor) -> None:
        super().__init__(inner)
        self.x_0 = x_0

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        source, target = self.inner(x_t, t, **cond).chunk(2)
        return torch.cat([self.x_0, self.x_0 + target - source])


def infedit(
    denoiser: Denoiser,
    x_0: Tensor,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    steps: int = 12,
    scale: float = 2.0,
    source_scale: float = 1.0,
    start: float = 0.95,
    grid: Grid | None = None,
    control: Control | None = None,
    seed: int = 0,
    ids: Sequence[int] | None = None,
) -> Tensor:
    """The edit of `x_0` (batch, ...) from the source to the target condition, without inversion: (batch, ...).

    Both branches are noised alike. At each step the source's noise is the one that leads to x_0, so that the target's
    estimate is x_0 plus the difference of two beliefs; both estimates are noised again with the same fresh noise. Equal
    conditions and scales give x_0 back. `steps` evaluations of both branches, a distilled consistency model or an ordinary
    one; `start` a little below 1, where a sample still shows; `control` as in `fokker.edit.edit`.

    Reference: Xu, Huang, Pan, Ma, Chai 2023, arXiv 2312.04965.
    """
    process, n = denoiser.process, len(x_0)
    if process.anchored:
        raise FokkerError(f"{process.name} has an anchor; an edit is made on a plain process")
    names = list(range(n)) if ids is None else list(ids)
    nodes = grid or LogSNR(steps, start=start, end=0)
    plan = Renewed().plan(process, nodes)
    both = joint(dict(source), dict(target), n)
    eps = noise(tuple(x_0.shape), seed, names, dtype=x_0.dtype, device=x_0.device)
    x = process.add_noise(x_0, eps, float(nodes.times(process)[0]))
    inner = denoiser if control is None else control(denoiser)
    strength = torch.tensor([source_scale] * n + [scale] * n, dtype=torch.float64)
    guided = inner if scale == source_scale == 1 else CFG(inner, strength)
    trace = run(Difference(guided, x_0), torch.cat([x, x]), plan, seed=seed, ids=names + names, **both)
    return halves(trace.x0)[1]
