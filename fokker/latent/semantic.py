"""The semantic encoder: an item to a short code, by convolutions, and for volumes by attention over slices."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.latent.kl import Residual, Resize
from fokker.net.layers import Attention, Norm, conv, fold, position_features, seeded


class SemanticEncoder(nn.Module):
    """e = W silu(V backbone(data)) + U (data - m): data (batch, channels, *space) of the given `size` to e (batch, code).

    The backbone is convolutional, `width` channels times `mults` per level with `blocks` residual blocks each, on patches of
    `patch` pixels. With `slices` a volume goes through one of two dimensions, slice by slice; the vectors of the slices, with
    their places added, are read by `queries` learned queries of attention, whose answers stand in the place of V's. The linear
    map U, left out with `linear=False`, is what the code begins with: untrained backbones tell items apart by little. m is the
    mean item, which `spread` measures: what all items share would otherwise drown in U's gradient how they differ.

    Reference: Preechakul et al. 2022, arXiv 2111.15640; for volumes Lozupone et al. 2025, arXiv 2504.08635.
    """

    mean: Tensor

    def __init__(
        self,
        size: Sequence[int],
        channels: int = 3,
        code: int = 32,
        width: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 2,
        queries: int = 4,
        heads: int = 4,
        slices: bool = False,
        linear: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size, mults = tuple(size), tuple(mults)
        self.options = {
            "size": list(size), "channels": channels, "code": code, "width": width, "mults": list(mults), "blocks": blocks,
            "patch": patch, "queries": queries, "heads": heads, "slices": slices,
            "linear": linear,
        }  # fmt: skip
        least = min(channels, code, width, patch, queries, heads, *mults, blocks + 1)
        if len(size) not in (1, 2, 3) or not mults or least < 1:
            raise FokkerError(f"{self.options} make no encoder; use 1 to 3 axes and at least 1 of each (0 blocks may be)")
        if slices and len(size) != 3:
            raise FokkerError(f"slices=True for items of size {size}; only volumes have slices")
        self.size, self.channels, self.code, self.patch, self.slices = size, channels, code, patch, slices
        dim, factor = (2 if slices else len(size)), patch * 2 ** (len(mults) - 1)
        seen = size[1:] if slices else size
        if any(n % factor for n in seen):
            raise FokkerError(f"items of size {size} under a factor of {factor}; give multiples of it")
        widths = [width * m for m in mults]
        if widths[-1] % heads:
            raise FokkerError(f"heads={heads} does not divide the {widths[-1]} channels of the last level")
        with seeded(seed):
            inner: list[nn.Module] = [conv(dim, channels * patch**dim, widths[0])]
            for k, c in enumerate(widths):
                inner += [Resize(dim, widths[k - 1], c, up=False)] if k else []
                inner += [Residual(dim, c) for _ in range(blocks)]
            self.backbone = nn.Sequential(*inner, Norm(widths[-1]), nn.SiLU())
            wide = 4 * widths[-1]
            self.gather = nn.Linear(widths[-1] * math.prod(n // factor for n in seen), wide)
            self.queries = nn.Parameter(nn.init.normal_(torch.empty(queries, wide), std=0.3)) if slices else None
            self.attention = Attention(wide, heads, wide, zero=False) if slices else None
            self.lower = nn.Linear(wide * (queries if slices else 1), code)
            self.linear = nn.Linear(channels * math.prod(size), code, bias=False) if linear else None
        self.register_buffer("mean", torch.zeros(channels, *size))

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.options)

    @torch.no_grad()
    def spread(self, data: Tensor) -> None:
        """Measure the mean item, then rescale the last layer: codes of these items have mean 0 and variance 1, one by one.

        What is told codes that hardly differ would not learn to listen.
        """
        self.mean.copy_(data.mean(0))
        codes = self(data)
        std = codes.std(0).clamp_min(1e-6)
        self.lower.weight.div_(std[:, None])
        if self.linear is not None:
            self.linear.weight.div_(std[:, None])
        self.lower.bias.sub_(codes.mean(0)).div_(std)

    def forward(self, data: Tensor) -> Tensor:
        if tuple(data.shape[1:]) != (self.channels, *self.size):
            raise FokkerError(f"data have shape {tuple(data.shape)}; this encoder takes (batch, {self.channels}, *{self.size})")
        x = data.transpose(1, 2).flatten(0, 1) if self.slices else data
        h: Tensor = self.backbone(x if self.patch == 1 else fold(x, self.patch))
        h = self.gather(h.flatten(1))
        if self.attention is not None and self.queries is not None:
            h = h.unflatten(0, (len(data), -1))
            h = h + position_features(self.size[:1], h.shape[2], h.device).to(h.dtype)
            h = self.attention(self.queries.expand(len(data), -1, -1), h).flatten(1)
        e: Tensor = self.lower(F.silu(h))
        return e if self.linear is None else e + self.linear((data - self.mean).flatten(1))
