"""The diffusion transformer, in one, two or three dimensions by one definition."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import (
    Attention,
    Embedding,
    Guidance,
    dropout,
    fold,
    position_features,
    roll,
    seeded,
    unfold,
    zeroed,
)
from fokker.net.network import Network, State


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) norm(h) + shift."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


class Transformer(nn.Module):
    """A transformer block with adaptive layer norm, the identity at the start (adaLN-Zero).

        h = h + g1 attention(m1(h));  h = h + cross(norm(h), tokens);  h = h + g2 mlp(m2(h))

    with shifts, scales and gates from the embedding (batch, 1 or tokens, width).
    """

    def __init__(self, width: int, heads: int, ratio: float, context: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attention = Attention(width, heads, zero=False)
        self.cross = Attention(width, heads, context) if context else None
        self.rise = nn.Linear(width, int(ratio * width))
        self.fall = nn.Linear(int(ratio * width), width)

    def forward(self, h: Tensor, e: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e).chunk(6, -1)
        h = torch.addcmul(h, gate1, self.attention(modulated(h, shift1, scale1)))
        if self.cross is not None:
            h = h + self.cross(F.layer_norm(h, h.shape[-1:]), context, mask)
        inner = F.gelu(self.rise(modulated(h, shift2, scale2)), approximate="tanh")
        inner = dropout(inner, self.dropout) if self.dropout and self.training else inner
        return torch.addcmul(h, gate2, self.fall(inner))


class DiT(Network):
    """A transformer on patches: `net(x, c_noise, **cond)`, see `Network`.

    Modules are `blocks.0` ... `blocks.depth-1`, each with `attention` (and `cross` with `tokens`). Positions are a sin-cos
    encoding worked out for the grid at hand, so any size works. The output is zero at the start.

    c_noise may also be one level per token: (batch, L) or (batch, *grid), where `net.grid(size)` is the grid of patches (row
    major) and L its product. `multiple` = `patch`.

    Reference: Peebles and Xie, 2022, arXiv 2212.09748; cross-attention as Chen et al., 2023, arXiv 2310.00426.
    """

    def __init__(
        self,
        dim: int = 2,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 128,
        depth: int = 4,
        patch: int = 2,
        heads: int = 4,
        ratio: float = 4.0,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int | None = None,
        image_channels: int = 0,
        guidance: bool = False,
        seed: int = 0,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        with seeded(seed):
            super().__init__({"kind": "dit", **config})
            if width % heads or width < 2 * dim or patch < 1 or depth < 1:
                raise FokkerError(
                    f"width={width}, heads={heads}, patch={patch}, depth={depth} is not accepted; "
                    f"heads divide width, width is at least {2 * dim}, patch and depth at least 1"
                )
            self.multiple = patch
            self.embedding = Embedding(width, classes)
            self.inp = nn.Linear((channels + image_channels) * patch**dim, width)
            self.blocks = nn.ModuleList(Transformer(width, heads, ratio, tokens, dropout) for _ in range(depth))
            self.modulation = zeroed(nn.Linear(width, 2 * width))
            self.out = zeroed(nn.Linear(width, self.out_channels * patch**dim))
            self.guidance = Guidance(width) if guidance else None
        self.stages = tuple(f"blocks.{i}" for i in range(depth))

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many patches cover `size` on each axis."""
        return tuple(-(-n // self.multiple) for n in size)

    def lift(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        grid = self.grid(x.shape[2:])
        h: Tensor = self.inp(roll(fold(x, self.multiple)))
        return h + position_features(grid, h.shape[-1], h.device).to(h.dtype), grid

    def embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        e: Tensor = self.embedding(c_noise, label)
        return e if e.ndim == 3 else e[:, None]

    def advance(self, name: str, state: State) -> None:
        state.h = self.blocks[int(name.partition(".")[2])](state.h, state.embedding, state.context, state.mask)

    def lower(self, state: State) -> Tensor:
        shift, scale = self.modulation(state.embedding).chunk(2, -1)
        rows: Tensor = self.out(modulated(state.h, shift, scale))
        return unfold(rows.transpose(1, 2).reshape(rows.shape[0], -1, *state.grid), self.multiple)

    def _levels(self, c_noise: Tensor, batch: int, grid: Sequence[int]) -> Tensor:
        length = math.prod(grid)
        if c_noise.ndim > 1 and tuple(c_noise.shape) in ((batch, length), (batch, *grid)):
            return c_noise.reshape(batch, length)
        if c_noise.ndim > 1:
            raise FokkerError(
                f"c_noise has shape {tuple(c_noise.shape)}; give ({batch},), or one level a token: ({batch}, {length})"
            )
        return super()._levels(c_noise, batch, grid)
