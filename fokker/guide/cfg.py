"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.process import Time, as_time, expand


class CFG(Wrapper):
    """D = D_null + scale (D_cond - D_null): what the condition adds, taken `scale` times.

    Tilts every marginal towards p_t(x)^{1 - scale} p_t(x | c)^scale. At scale 1, without conditions, and outside `interval` it
    costs one evaluation, otherwise two, asked in one batch (`batched`) where memory allows.

    scale     1 is off; a number or a tensor (batch,)
    negative  conditions to move away from instead of none
    interval  (low, high) of sigma / alpha in which guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724)

    The anchor y is never dropped. Reference: Ho & Salimans 2022, arXiv 2207.12598.
    """

    def __init__(
        self,
        inner: Denoiser,
        scale: float | Tensor = 1.0,
        negative: dict[str, Cond] | None = None,
        interval: Sequence[float] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(inner)
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
            raise FokkerError(f"interval={interval} is not accepted; give (low, high) of sigma / alpha with 0 <= low < high")
        self.scale, self.negative, self.interval, self.batched = scale, negative, interval, batched
        own = [scale, *(negative or {}).values()]
        self.stackable = self.stackable and not any(isinstance(v, Tensor) and v.ndim for v in own)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        scale = self.scale_at(t)
        free = {k: v for k, v in cond.items() if k != "y" and v is not None}
        off = not isinstance(scale, Tensor) and scale == 1
        if off or (not free and self.negative is None):
            belief: Tensor = self.inner(x_t, t, **cond)
            return belief
        other = cond | self.inner.null(**free) | (self.negative or {})
        with_cond, without = branches(self.inner, x_t, t, [cond, other], self.batched)
        strength = expand(scale, x_t).to(x_t) if isinstance(scale, Tensor) else scale
        return without + strength * (with_cond - without)

    def scale_at(self, t: Time) -> float | Tensor:
        """The scale at time t, 1 outside the interval."""
        if self.interval is None:
            return self.scale
        low, high = self.interval
        ratio = torch.exp(-0.5 * self.process.logsnr(as_time(t)))
        inside = (ratio >= low) & (ratio <= high)
        if inside.ndim == 0:
            return self.scale if bool(inside) else 1.0
        scale = torch.as_tensor(self.scale, dtype=torch.float64, device=inside.device)
        return torch.where(inside, expand(scale, inside) if scale.ndim else scale, 1.0)


def branches(denoiser: Denoiser, x_t: Tensor, t: Time, conds: list[dict[str, Any]], batched: bool = True) -> list[Tensor]:
    """The beliefs under several sets of conditions, asked in one batch if their conditions have equal names and shapes."""
    names = set(conds[0])
    fits = all(set(c) == names for c in conds) and all(
        isinstance(c[k], Tensor) and c[k].shape == conds[0][k].shape and c[k].shape[:1] == x_t.shape[:1]
        for c in conds
        for k in names
    )
    if not (batched and fits and denoiser.stackable):
        return [denoiser(x_t, t, **c) for c in conds]
    n = len(conds)
    times = torch.cat([t] * n) if isinstance(t, Tensor) and t.ndim and len(t) == len(x_t) else t
    joint = {k: torch.cat([c[k] for c in conds]) for k in names}
    answer: Tensor = denoiser(torch.cat([x_t] * n), times, **joint)
    return list(answer.chunk(n))
