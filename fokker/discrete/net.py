"""The bidirectional transformer of tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.dit import Transformer, modulated
from fokker.net.layers import noise_features, position_features, seeded, zeroed


class TokenTransformer(nn.Module):
    """`net(x, sigma=None, label=None)`: ids (batch, length) up to `size`, the mask, to logits (batch, length, size).

    Blocks are those of the `DiT`, each behind a convolution over `kernel` neighbours, from which short budgets learn
    spelling; they are modulated by one learned vector, by the share of noise sigma (batch,) where the network is `timed`, and
    by a label (batch,) where there are `classes` (negative: none). Positions are sin-cos, so any length works. All logits are
    zero at the start.

    Reference: Peebles & Xie 2022, arXiv 2212.09748 (blocks); Zheng et al. 2024, arXiv 2409.02908 (no time for masks).
    """

    def __init__(
        self,
        size: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        ratio: float = 4.0,
        kernel: int = 5,
        timed: bool = False,
        classes: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 2 or depth < 1 or width % heads or width % 2 or kernel % 2 == 0:
            raise FokkerError(
                f"size={size}, width={width}, depth={depth}, heads={heads}, kernel={kernel}; give at least 2 tokens and a "
                "block, an even width that the heads divide, and an odd kernel"
            )
        self.config: dict[str, Any] = {
            "size": size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "ratio": ratio,
            "kernel": kernel,
            "timed": timed,
            "classes": classes,
            "dropout": dropout,
        }
        self.conditions = ("label",) if classes else ()
        with seeded(seed):
            self.tokens = nn.Embedding(size + 1, width)
            self.vector = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.1))
            self.rise = nn.Linear(64, width) if timed else None
            self.label = nn.Embedding(classes + 1, width) if classes else None
            self.local = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(depth))
            self.blocks = nn.ModuleList(Transformer(width, heads, ratio, None, dropout) for _ in range(depth))
            self.modulation = zeroed(nn.Linear(width, 2 * width))
            self.out = zeroed(nn.Linear(width, size))

    def forward(self, x: Tensor, sigma: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        width = self.vector.shape[0]
        e = self.vector.expand(len(x), -1)
        if self.rise is not None:
            if sigma is None:
                raise FokkerError("this network is told the share of noise: call net(x, sigma)")
            e = e + self.rise(noise_features(10 * sigma - 5, 64).to(e.dtype))
        if self.label is not None:
            none = self.label.num_embeddings - 1
            chosen = torch.full_like(x[:, 0], -1) if label is None else label
            e = e + self.label(torch.where(chosen < 0, none, chosen))
        e = F.silu(e)[:, None]
        h = self.tokens(x) + position_features((x.shape[1],), width, x.device).to(e.dtype)
        for near, block in zip(self.local, self.blocks, strict=True):
            h = h + F.silu(near(F.layer_norm(h, h.shape[-1:]).transpose(1, 2)).transpose(1, 2))
            h = block(h, e)
        shift, scale = self.modulation(e).chunk(2, -1)
        logits: Tensor = self.out(modulated(h, shift, scale))
        return logits
