"""What the networks share: convolutions by dimension, encodings of noise and position, attention, the residual block.

Initial weights come from torch's own initialisers inside `seeded`, which leaves the caller's generator where it was.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)
_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules on the CPU from `seed`; torch's global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def zeroed(layer: Layer) -> Layer:
    """The same layer with weights and bias of zero: what it feeds starts as if it were not there."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def conv(dim: int, c_in: int, c_out: int, kernel: int = 3, periodic: bool = False) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A same-size convolution of 1, 2 or 3 dimensions; zero padding, or circular where the space is periodic."""
    mode: Literal["circular", "zeros"] = "circular" if periodic and kernel > 1 else "zeros"
    return _CONV[dim](c_in, c_out, kernel, padding=kernel // 2, padding_mode=mode)


def memory_format(dim: int) -> torch.memory_format:
    """Channels last where torch has it; twice as fast as channels first for narrow convolutions on a CPU."""
    return {2: torch.channels_last, 3: torch.channels_last_3d}.get(dim, torch.contiguous_format)


def shrink(h: Tensor) -> Tensor:
    """Half the size on every axis, by the mean of 2^dim neighbours."""
    if h.ndim < 5:
        return F.avg_pool1d(h, 2) if h.ndim == 3 else F.avg_pool2d(h, 2)
    # avg_pool3d does not exist for bfloat16 on a CPU
    return h.reshape(*h.shape[:2], *(n for size in h.shape[2:] for n in (size // 2, 2))).mean((3, 5, 7))


def grow(h: Tensor, size: Sequence[int]) -> Tensor:
    """To `size` by repetition."""
    return h if h.shape[2:] == tuple(size) else F.interpolate(h, size=tuple(size), mode="nearest")


def pad(x: Tensor, multiple: int, periodic: bool = False) -> Tensor:
    """Extend every axis at its end to the next multiple.

    By reflection, so that the border of noise looks like noise; where an axis is too short for that, by repeating its last
    value; circular where the space is periodic and the axis long enough.
    """
    extra = [-n % multiple for n in x.shape[2:]]
    if not any(extra):
        return x
    ends = [e for n in reversed(extra) for e in (0, n)]
    if all(e < n for e, n in zip(extra, x.shape[2:])):
        return F.pad(x, ends, mode="circular" if periodic else "reflect")
    return F.pad(x, ends, mode="replicate")


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` entries of every axis."""
    for axis, n in enumerate(size, start=2):
        if x.shape[axis] != n:
            x = x.narrow(axis, 0, n)
    return x


def dropout(h: Tensor, p: float) -> Tensor:
    """Zero a share p of the entries, to the nearest 1/256, and scale the others so that the mean stays.

    One random byte an entry, eight from each draw of torch's global generator: a third of the time of F.dropout on a CPU.
    """
    zeros = round(256 * p)
    words = torch.empty(-(-h.numel() // 8), dtype=torch.int64, device=h.device)
    words.random_(-(2**63), None, generator=None)  # the trainer seeds the global generator from the samples seen
    bits = words.view(torch.uint8)[: h.numel()].as_strided(h.shape, torch.empty_like(h).stride())
    return h * ((bits >= zeros).to(h.dtype) * (256 / (256 - zeros)))


def fold(x: Tensor, patch: int) -> Tensor:
    """Patches as channels: (batch, C, *space) to (batch, C patch^dim, *space / patch)."""
    dim = x.ndim - 2
    cut = x.reshape(*x.shape[:2], *(n for size in x.shape[2:] for n in (size // patch, patch)))
    order = (0, 1, *(3 + 2 * axis for axis in range(dim)), *(2 + 2 * axis for axis in range(dim)))
    return cut.permute(order).flatten(1, 1 + dim)


def unfold(h: Tensor, patch: int) -> Tensor:
    """Channels back to patches: the inverse of `fold`."""
    dim = h.ndim - 2
    cut = h.reshape(h.shape[0], -1, *[patch] * dim, *h.shape[2:])
    order = (0, 1, *(n for axis in range(dim) for n in (2 + dim + axis, 2 + axis)))
    return cut.permute(order).reshape(h.shape[0], -1, *(n * patch for n in h.shape[2:]))


def noise_features(c_noise: Tensor, width: int) -> Tensor:
    """cos and sin of c_noise (...) at width/2 frequencies from 1/4 to 64 radians, shape (..., width), float32 or better.

    c_noise = ln(sigma / alpha) / 4 lies in [-5, 5]; the slowest wave spans it and the fastest resolves a tenth in ln sigma.
    """
    c = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    n = width // 2
    steps = torch.arange(n, device=c.device, dtype=c.dtype) * (math.log(256.0) / (n - 1))
    angles = c[..., None] * (0.25 * steps.exp())
    return torch.cat((angles.cos(), angles.sin()), -1)


def position_features(grid: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Sin-cos encoding of every point of a grid, shape (prod(grid), width): each axis has an equal share of the channels.

    Reference: Vaswani et al., 2017, arXiv 1706.03762; on two axes Dosovitskiy et al., 2020, arXiv 2010.11929.
    """
    n = width // (2 * len(grid))
    frequencies = torch.exp(torch.arange(n, device=device) * (-math.log(10000.0) / n))
    parts = []
    for axis, size in enumerate(grid):
        angles = torch.arange(size, device=device)[:, None] * frequencies
        shape = [size if a == axis else 1 for a in range(len(grid))]
        waves = torch.cat((angles.sin(), angles.cos()), -1).reshape(*shape, 2 * n)
        parts.append(waves.expand(*grid, 2 * n))
    return F.pad(torch.cat(parts, -1), (0, width - 2 * n * len(grid))).reshape(-1, width)


class Embedding(nn.Module):
    """The noise level, and the class if there are classes, as one vector: silu(MLP(features(c_noise)) + table[label]).

    c_noise (batch,) or (batch, tokens), label (batch,) int64 where negative means none; the last row of the table is learned
    for that. Returns (batch, width) or (batch, tokens, width).
    """

    features = 64

    def __init__(self, width: int, classes: int = 0) -> None:
        super().__init__()
        self.rise = nn.Linear(self.features, width)
        self.mix = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.3)

    def forward(self, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        e: Tensor = self.mix(F.silu(self.rise(noise_features(c_noise, self.features).to(self.rise.weight.dtype))))
        if self.label is not None:
            none = self.label.num_embeddings - 1
            row = self.label.weight[none] if label is None else self.label(torch.where(label < 0, none, label))
            e = e + (row[:, None] if row.ndim == 2 and e.ndim == 3 else row)
        return F.silu(e)


class Guidance(nn.Module):
    """A guidance scale as a term of the embedding, for networks that had guidance distilled into them: W features(scale / 4).

    `scale` (batch,), where None means 1, which is no guidance; returns (batch, width), zero at the start.
    Reference: Meng et al., 2023, arXiv 2210.03142.
    """

    features = 64

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rise = zeroed(nn.Linear(self.features, width))

    def forward(self, scale: Tensor | None) -> Tensor:
        weight = self.rise.weight
        scale = torch.ones(1, device=weight.device) if scale is None else scale
        out: Tensor = self.rise(noise_features(scale / 4, self.features).to(weight.dtype))
        return out


class Attention(nn.Module):
    """Multi-head attention of tokens (batch, L, width) on themselves, or on a context (batch, M, context).

    `mask` is boolean, broadcastable to (batch, heads, L, M), True where a key may be seen. The product is always
    scaled_dot_product_attention: `fokker.net.taps` opens it up where somebody wants to see or edit the map.
    """

    def __init__(self, width: int, heads: int, context: int | None = None, zero: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context or width, 2 * width)
        self.out = nn.Linear(width, width)
        if zero:
            zeroed(self.out)

    def forward(self, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = h if context is None else context
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Norm(nn.GroupNorm):
    """Group normalisation in groups of at least four channels, at most 32 groups."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        groups = max(g for g in range(1, max(2, min(32, channels // 4) + 1)) if channels % g == 0)
        super().__init__(groups, channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        behind = self.affine and self.weight.requires_grad and torch.is_grad_enabled() and not x.requires_grad
        if not behind or torch.compiler.is_compiling():
            return super().forward(x)
        # behind frozen layers torch's backward for channels last on a CPU writes where there is no gradient, and crashes;
        # scaled outside there is no such backward, and torch.func's transforms can still see through
        shape = (-1, *[1] * (x.ndim - 2))
        normal = F.group_norm(x, self.num_groups, eps=self.eps)
        return normal * self.weight.reshape(shape) + self.bias.reshape(shape)


class Block(nn.Module):
    """A residual block whose second normalisation is scaled and shifted by the embedding, with attention after it.

        h = shortcut(x) + conv(silu((1 + a(e)) norm(conv(silu(norm(x)))) + b(e)))

    then, where asked for, `h + attention(norm(h))` and `h + cross(norm(h), tokens)` over all positions.
    References: He et al., 2016, arXiv 1512.03385; Dhariwal and Nichol, 2021, arXiv 2105.05233.
    """

    def __init__(
        self,
        dim: int,
        c_in: int,
        c_out: int,
        embedding: int,
        heads: int = 0,
        context: int | None = None,
        dropout: float = 0.0,
        periodic: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = Norm(c_in)
        self.conv1 = conv(dim, c_in, c_out, periodic=periodic)
        self.modulation = nn.Linear(embedding, 2 * c_out)
        self.norm2 = Norm(c_out, affine=False)
        self.conv2 = zeroed(conv(dim, c_out, c_out, periodic=periodic))
        self.shortcut = conv(dim, c_in, c_out, kernel=1) if c_in != c_out else None
        self.norm3 = Norm(c_out) if heads else None
        self.attention = Attention(c_out, heads) if heads else None
        self.norm4 = Norm(c_out) if heads and context else None
        self.cross = Attention(c_out, heads, context) if heads and context else None

    def forward(self, x: Tensor, e: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        scale, shift = self.modulation(e).view(*e.shape[:-1], -1, *[1] * (x.ndim - 2)).chunk(2, 1)
        h: Tensor = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = F.silu(torch.addcmul(shift, h, 1 + scale))
        h = self.conv2(dropout(h, self.dropout) if self.dropout and self.training else h)
        h = h + (x if self.shortcut is None else self.shortcut(x))
        if self.attention is not None and self.norm3 is not None:
            h = h + unroll(self.attention(roll(self.norm3(h))), h)
        if self.cross is not None and self.norm4 is not None:
            h = h + unroll(self.cross(roll(self.norm4(h)), context, mask), h)
        return h


def roll(h: Tensor) -> Tensor:
    """(batch, C, *space) as tokens (batch, positions, C)."""
    return h.flatten(2).transpose(1, 2)


def unroll(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens back to the shape of `like`."""
    return tokens.transpose(1, 2).reshape(like.shape)
