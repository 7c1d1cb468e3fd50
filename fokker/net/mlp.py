"""A multilayer perceptron for vectors: the network of points in a plane, of features, of small latents."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import Guidance, noise_features, seeded


class MLP(nn.Module):
    """Residual layers on a vector x (batch, dim) and its noise levels c, (batch,) or one for each of `levels` (batch, levels).

        h = W [x, features(c)] + table[label];   h <- h + W_2 silu(W_1 norm(h) + b_1),  `depth` times;   out = W_o silu(norm(h))

    Returns (batch, out), out = dim unless given. `label` (batch,) int64 below `classes`, -1 for none; with
    `guidance` its scale (batch,) is one more term of h.
    """

    features = 32

    def __init__(
        self,
        dim: int,
        out: int | None = None,
        width: int = 128,
        depth: int = 3,
        levels: int = 1,
        classes: int = 0,
        guidance: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(dim, width, depth, levels) < 1 or (out is not None and out < 1):
            raise FokkerError(f"dim={dim}, out={out}, width={width}, depth={depth}, levels={levels}: use at least 1 of each")
        self.dim, self.levels, self.classes = dim, levels, classes
        with seeded(seed):
            self.rise = nn.Linear(dim + levels * self.features, width)
            self.label = nn.Embedding(classes + 1, width) if classes else None
            self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth + 1)])
            self.inner = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
            self.outer = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
            self.lower = nn.Linear(width, dim if out is None else out)
            self.guidance = Guidance(width) if guidance else None
        self.options = {"dim": dim, "out": out, "width": width, "depth": depth, "levels": levels, "classes": classes}

    @property
    def config(self) -> dict[str, Any]:
        """What `fokker.net.build` makes it from again."""
        return {"kind": "mlp", **self.options, "guidance": self.guidance is not None}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that a call accepts."""
        return ("label", "guidance") if self.guidance is not None else ("label",)

    def null_conditions(self, **cond: Tensor) -> dict[str, Tensor]:
        """The same conditions, meaning "none": class -1, and a scale of 1."""
        return {k: torch.ones_like(v) if k == "guidance" else torch.full_like(v, -1) for k, v in cond.items()}

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        h = self.start(x, c, label, guidance)
        for k in range(len(self.inner)):
            h = self.layer(h, k)
        return self.finish(h)

    def start(self, x: Tensor, c: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        """The features (batch, width) before the first layer."""
        levels = c if c.ndim == 2 else c[:, None]
        if x.ndim != 2 or x.shape[1] != self.dim or levels.shape[1] != self.levels:
            raise FokkerError(
                f"x {tuple(x.shape)} with levels {tuple(c.shape)}; this network takes (batch, {self.dim}), {self.levels} levels"
            )
        told = noise_features(levels, self.features).flatten(1).to(x.dtype)
        h: Tensor = self.rise(torch.cat([x, told], 1))
        if self.label is not None:
            none = self.label.num_embeddings - 1
            row = h.new_full((len(h),), none, dtype=torch.int64) if label is None else torch.where(label < 0, none, label)
            h = h + self.label(row)
        return h if self.guidance is None else h + self.guidance(guidance)

    def layer(self, h: Tensor, k: int) -> Tensor:
        """The features after layer k, from those before it."""
        out: Tensor = h + self.outer[k](F.silu(self.inner[k](self.norms[k](h))))
        return out

    def finish(self, h: Tensor) -> Tensor:
        """The output, from the features after the last layer."""
        lowered: Tensor = self.lower(F.silu(self.norms[-1](h)))
        return lowered
