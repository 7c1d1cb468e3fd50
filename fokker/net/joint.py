"""Networks over several modalities with a noise level each: a perceptron on vectors, a transformer on tokens."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import Attention, fold, noise_features, roll, seeded, unfold, zeroed
from fokker.net.mlp import MLP

Parts = dict[str, Tensor]
Shapes = Mapping[str, Sequence[int]]


class JointMLP(nn.Module):
    """One perceptron on all parts side by side, told all noise levels: net(x, c) of dictionaries, shapes as `shapes`."""

    def __init__(self, shapes: Shapes, width: int = 128, depth: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.net = MLP(sum(self.sizes), width=width, depth=depth, levels=len(self.sizes), seed=seed)

    def forward(self, x: Parts, c: Parts) -> Parts:
        flat = torch.cat([x[name].flatten(1) for name in self.shapes], 1)
        out = self.net(flat, torch.stack([c[name] for name in self.shapes], 1)).split(self.sizes, 1)
        return {name: part.reshape(-1, *self.shapes[name]) for name, part in zip(self.shapes, out, strict=True)}


class Skipped(nn.Module):
    """A transformer block, with the output of an earlier block mixed in first where there is a long skip."""

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, zero=False)
        self.rise, self.lower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, earlier: Tensor | None = None) -> Tensor:
        if self.mix is not None and earlier is not None:
            h = self.mix(torch.cat([h, earlier], -1))
        h = h + self.attention(self.norm1(h))
        out: Tensor = h + self.lower(F.gelu(self.rise(self.norm2(h))))
        return out


class UViT(nn.Module):
    """A transformer in which everything is a token: the parts of every modality and one noise level of each.

    A shape (C, H, W) becomes patches of `patch` pixels, (length, features) that many tokens, (features,) one token. All get
    learnt positions; the first half of the blocks hand their outputs to the second half by long skips. Zero at the start.

    Reference: Bao et al. 2022, arXiv 2209.12152 (the backbone); 2023, arXiv 2303.06555 (with several modalities).
    """

    features = 64

    def __init__(
        self, shapes: Shapes, width: int = 128, depth: int = 5, heads: int = 4, patch: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if width % heads or depth < 1 or depth % 2 == 0:
            raise FokkerError(f"width={width}, heads={heads}, depth={depth}: heads divide width, and depth is odd")
        if any(len(s) not in (1, 2, 3) or (len(s) == 3 and (s[1] % patch or s[2] % patch)) for s in self.shapes.values()):
            raise FokkerError(f"shapes {self.shapes}: give (n,), (length, n) or (C, H, W) of whole {patch} x {patch} patches")
        self.patch = patch
        with seeded(seed):
            rows = {name: self._rows(torch.zeros(1, *shape)).shape[1:] for name, shape in self.shapes.items()}
            self.lengths = [int(shape[0]) for shape in rows.values()]
            self.inputs = nn.ModuleDict({name: nn.Linear(int(shape[1]), width) for name, shape in rows.items()})
            self.clocks = nn.ModuleDict({name: nn.Linear(self.features, width) for name in rows})
            self.outputs = nn.ModuleDict({name: zeroed(nn.Linear(width, int(shape[1]))) for name, shape in rows.items()})
            self.places = nn.Parameter(0.02 * torch.empty(1, len(rows) + sum(self.lengths), width).normal_(generator=None))
            half = depth // 2
            self.down = nn.ModuleList([Skipped(width, heads, False) for _ in range(half + 1)])
            self.up = nn.ModuleList([Skipped(width, heads, True) for _ in range(half)])
            self.norm = nn.LayerNorm(width)

    def _rows(self, x: Tensor) -> Tensor:
        """A part as tokens (batch, length, numbers)."""
        if x.ndim == 4:
            return roll(fold(x, self.patch))
        return x if x.ndim == 3 else x[:, None]

    def _part(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 3:
            grid = (shape[1] // self.patch, shape[2] // self.patch)
            return unfold(rows.transpose(1, 2).reshape(len(rows), -1, *grid), self.patch)
        return rows if len(shape) == 2 else rows[:, 0]

    def forward(self, x: Parts, c: Parts) -> Parts:
        clocks = [self.clocks[name](noise_features(c[name], self.features).to(x[name].dtype))[:, None] for name in self.shapes]
        h: Tensor = torch.cat([*clocks, *(self.inputs[name](self._rows(x[name])) for name in self.shapes)], 1) + self.places
        kept = []
        for block in self.down:
            h = block(h)
            kept.append(h)
        kept.pop()
        for block in self.up:
            h = block(h, kept.pop())
        rows = self.norm(h)[:, len(self.shapes) :].split(self.lengths, 1)
        return {
            name: self._part(self.outputs[name](part), self.shapes[name])
            for name, part in zip(self.shapes, rows, strict=True)
        }
