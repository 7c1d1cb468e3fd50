"""Adaptive guidance: the null evaluation stops where it has nothing more to say."""

from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.guide.cfg import CFG
from fokker.process import Time

SIMILARITIES = ("x0", "eps")


class AdaptiveGuidance(CFG):
    """CFG until the cosine of the conditional and the null prediction reaches `threshold`; from then on the conditional belief.

    Each sample has a switch of its own, which never goes back: two evaluations before it, one after. The samples that still
    need the null belief are asked about in the same batch as all others. The evaluations of every sample come back in the
    trace's `notes["evaluations"]` (batch,). A negative prompt takes the place of the null condition, as in CFG.

    threshold   gamma of the paper, in (0, 1]; 1 never switches
    similarity  what is compared: "x0" (beliefs) or "eps" (noise, as in the paper). With an accurate denoiser the noise is
                nearly x_t / sigma at the first steps whatever the condition, so that "eps" needs `warmup`
    warmup      share of the rows of a run before which no sample switches

    The switch belongs to a run: a denoiser called outside one is CFG. Choosing what to evaluate waits for the device once a
    step. Raises FokkerError for numbers outside their ranges. Reference: Castillo et al. 2023, arXiv 2312.12487.
    """

    tokens = False

    def __init__(
        self,
        inner: Denoiser,
        scale: float | Tensor = 1.0,
        threshold: float = 0.99,
        similarity: str = "x0",
        warmup: float = 0.0,
        negative: dict[str, Cond] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(inner, scale, negative, None, batched)
        if similarity not in SIMILARITIES:
            raise unknown("similarity", similarity, SIMILARITIES)
        if not 0 < threshold <= 1 or not 0 <= warmup <= 1:
            raise FokkerError(f"threshold={threshold}, warmup={warmup} are not accepted; use (0, 1] and [0, 1]")
        self.threshold, self.similarity, self.warmup = float(threshold), similarity, float(warmup)
        self.open: Tensor | None = None
        self.stackable = False  # who is still guided is remembered by place in the batch

    def reset(self, run: Run) -> None:
        self.open = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        other, run = self.other(cond), self.run
        if run is None or other is None or (not isinstance(self.scale, Tensor) and self.scale == 1):
            return super().x0(x_t, t, **cond)
        if self.open is None:
            self.open = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
            run.notes["evaluations"] = torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device)
        which = self.open.nonzero()[:, 0]
        run.notes["evaluations"] += 1 + self.open
        if not len(which):
            belief: Tensor = self.inner(x_t, t, **cond)
            return belief
        with_cond, without = self._both(x_t, t, cond, other, which)
        scale = self.scale[which] if isinstance(self.scale, Tensor) and self.scale.ndim else self.scale
        strength: Any = scale
        if isinstance(scale, Tensor):
            strength = scale.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1)) if scale.ndim else scale.to(x_t)
        mine = with_cond[which]
        if run.row >= self.warmup * run.rows:
            agrees = self._cosine(mine, without, x_t[which], _at(t, which, len(x_t))) >= self.threshold
            self.open = self.open.index_fill(0, which[agrees], False)
        return with_cond.index_copy(0, which, self.combined(mine, without, strength))

    def _cosine(self, a: Tensor, b: Tensor, x_t: Tensor, t: Time) -> Tensor:
        if self.similarity == "eps":
            a, b = (self.process.from_x0("eps", v, x_t, t) for v in (a, b))
        a, b = a.flatten(1).to(torch.float64), b.flatten(1).to(torch.float64)
        return torch.nn.functional.cosine_similarity(a, b, dim=1)

    def _both(
        self, x_t: Tensor, t: Time, cond: dict[str, Cond], other: dict[str, Cond], which: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The conditional beliefs of all samples and the null ones of `which`."""
        n = len(x_t)
        if not self.inner.stackable or not all(isinstance(v, Tensor) and v.ndim for v in (cond | other).values()):
            return self.inner(x_t, t, **cond), self.inner(x_t, t, **other)[which]
        few = {k: v[which] for k, v in other.items()}
        if not self.batched:
            return self.inner(x_t, t, **cond), self.inner(x_t[which], _at(t, which, n), **few)
        times = torch.cat([t, t[which]]) if isinstance(t, Tensor) and t.ndim and len(t) == n else t
        joint = {k: torch.cat([cond[k], few[k]]) for k in cond}
        answer: Tensor = self.inner(torch.cat([x_t, x_t[which]]), times, **joint)
        return answer[:n], answer[n:]


def _at(t: Time, which: Tensor, n: int) -> Time:
    return t[which] if isinstance(t, Tensor) and t.ndim and len(t) == n else t
