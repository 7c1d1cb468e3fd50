"""Adaptive projected guidance: classifier-free guidance without what over-saturates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG


class APG(CFG):
    """D = D_cond + (scale - 1) (d_orth + eta d_par): guidance orthogonal to the conditional belief, bounded and with momentum.

        d = D_cond - D_null,  d <- d + momentum d_before,  d <- d min(1, radius / |d|),
        d_par = <d, u> u,  d_orth = d - d_par,  u = D_cond / |D_cond|

    The parallel part is a gain on the prediction, which saturates and raises contrast; the orthogonal part carries what the
    condition says. With eta = 1, radius = 0 and momentum = 0 it is CFG. Scale, `negative`, `interval` and costs are CFG's.

    eta        share of the parallel part that is kept; 0 drops it, 1 keeps it
    radius     largest norm of d over one sample, in the units of the data; 0 sets no bound. It belongs to the model: the paper
               has 2.5 for latents 4 x 64 x 64 conditioned on classes and 7.5 to 15 for text
    momentum   weight of the previous d, in (-1, 1); negative ones push away from where guidance already went
    norm_dims  dimensions of a sample (1 is the first after the batch) that norms and products are summed over; all by default

    The momentum belongs to a run: a denoiser called outside one has none. Projections are made in float64. Raises FokkerError
    for a negative radius or a momentum outside (-1, 1). Reference: Sadat, Hilliges, Weber 2024, arXiv 2410.02416.
    """

    tokens = False

    def __init__(
        self,
        inner: Denoiser,
        scale: float | Tensor = 1.0,
        eta: float = 0.0,
        radius: float = 0.0,
        momentum: float = -0.5,
        norm_dims: Sequence[int] | None = None,
        negative: dict[str, Cond] | None = None,
        interval: Sequence[float] | None = None,
        batched: bool = True,
    ) -> None:
        super().__init__(inner, scale, negative, interval, batched)
        if not radius >= 0 or not -1 < momentum < 1:
            raise FokkerError(f"radius={radius}, momentum={momentum} are not accepted; use radius >= 0 and momentum in (-1, 1)")
        if norm_dims is not None and (not norm_dims or min(norm_dims) < 1):
            raise FokkerError(f"norm_dims={norm_dims} is not accepted; count the dimensions of a sample from 1")
        self.eta, self.radius, self.momentum = float(eta), float(radius), float(momentum)
        self.stackable = self.stackable and not momentum
        self.norm_dims = None if norm_dims is None else tuple(norm_dims)
        self.past: Tensor | None = None

    def reset(self, run: Run) -> None:
        self.past = None

    def combined(self, with_cond: Tensor, without: Tensor, strength: Any) -> Tensor:
        wide = with_cond.to(torch.float64)
        d = wide - without
        if self.momentum and self.past is not None:
            d = d + self.momentum * self.past
        if self.run is not None:
            self.past = d
        dims = self.norm_dims or tuple(range(1, d.ndim))
        if max(dims) >= d.ndim:
            raise FokkerError(f"norm_dims={dims} does not fit samples of {d.ndim - 1} dimensions; use 1 to {d.ndim - 1}")
        if self.radius:
            size = d.square().sum(dims, keepdim=True).sqrt()
            d = d * (self.radius / size.clamp_min(self.radius))
        if self.eta != 1:
            energy = wide.square().sum(dims, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
            d = d - (1 - self.eta) * (d * wide).sum(dims, keepdim=True) / energy * wide
        guided: Tensor = (wide + (strength - 1) * d).to(with_cond.dtype)
        return guided
