"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.guide.terms import Part, branches, coordinates, from_coordinates
from fokker.process import Time, as_time, expand


class CFG(Wrapper):
    """D = D_null + scale (D_cond - D_null): what the condition adds, taken `scale` times; of tokens the log-probabilities.

    Tilts every marginal towards p_t(x)^{1 - scale} p_t(x | c)^scale. At scale 1, without conditions, and outside `interval` it
    costs one evaluation, otherwise two, asked in one batch (`batched`) where memory allows.

    scale     1 is off; a number or a tensor (batch,)
    negative  conditions to move away from instead of none
    interval  (low, high) of sigma / alpha in which guidance acts (Kynkaanniemi et al. 2024, arXiv 2404.07724)

    The anchor y is never dropped. Subclasses that turn two beliefs into one in another way override `combined`.
    Reference: Ho & Salimans 2022, arXiv 2207.12598.
    """

    tokens = True

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
        scale, other = self.scale_at(t), self.other(cond)
        if other is None or (not isinstance(scale, Tensor) and scale == 1):
            belief: Tensor = self.inner(x_t, t, **cond)
            return belief
        found = branches(self.inner, x_t, t, [cond, other], self.batched)
        with_cond, without = (coordinates(self.process, belief) for belief in found)
        strength = expand(scale, without).to(without) if isinstance(scale, Tensor) else scale
        return from_coordinates(self.process, self.combined(with_cond, without, strength))

    def combined(self, with_cond: Tensor, without: Tensor, strength: Any) -> Tensor:
        """The guided belief from the conditional and the null one; `strength` is a number or broadcasts."""
        guided: Tensor = without + strength * (with_cond - without)
        return guided

    def other(self, cond: dict[str, Cond]) -> dict[str, Cond] | None:
        """The conditions to move away from; None where there is nothing to guide by."""
        free = {k: v for k, v in cond.items() if k != "y" and v is not None}
        if not free and self.negative is None:
            return None
        return cond | self.inner.null(**free) | (self.negative or {})

    def parts(self, x_t: Tensor, t: Time, **cond: Cond) -> list[Part]:
        """The composition that it is: weight `scale` on the conditions, 1 - scale on none."""
        scale, other = self.scale_at(t), self.other(cond)
        if other is None:
            return [Part(self.inner, cond, 1.0)]
        return [Part(self.inner, cond, scale), Part(self.inner, other, 1 - scale)]

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
