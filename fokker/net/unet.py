"""The U-Net, in one, two or three dimensions by one definition."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.errors import FokkerError
from fokker.net.layers import (
    Block,
    Embedding,
    Guidance,
    Norm,
    conv,
    fold,
    grow,
    memory_format,
    seeded,
    shrink,
    unfold,
    zeroed,
)
from fokker.net.network import Network, State


class Stage(nn.ModuleList):
    """The blocks of one level, one after another; `stage(h, embedding, context, mask)`."""

    def forward(self, h: Tensor, e: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        for block in self:
            h = block(h, e, context, mask)
        return h


class UNet(Network):
    """A U-Net with one skip connection a level: `net(x, c_noise, **cond)`, see `Network`.

    Modules are named by the level at which they work: `down.0`, `down.1`, ..., `mid`, ..., `up.1`, `up.0`, where 0 is the
    full size and each level halves it. `down.i` gives the skip that `up.i` receives beside the features from below. The
    output is zero at the start.

    `width` channels times `mults` per level, `blocks` residual blocks a stage, self-attention of `heads` heads (and
    cross-attention to `tokens` of that dimension) in the stages of the levels flagged in `attention`, and in the middle with
    `mid_attention`; `dropout` draws from torch's global generator, in training only; `periodic` joins opposite borders.
    With `guidance` the network is told a guidance scale (see `fokker.distil`).
    With `patch` above 1 the network works on patches of that size as channels, which saves most of the time at full size
    (Hoogeboom et al., 2023, arXiv 2301.11093). `multiple` = patch 2^(levels - 1).

    References: Ronneberger et al., 2015, arXiv 1505.04597; Ho et al., 2020, arXiv 2006.11239; Dhariwal and Nichol, 2021,
    arXiv 2105.05233.
    """

    def __init__(
        self,
        dim: int = 2,
        channels: int = 1,
        out_channels: int | None = None,
        width: int = 32,
        mults: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        patch: int = 1,
        attention: Sequence[bool] = (),
        mid_attention: bool = True,
        heads: int = 4,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int | None = None,
        image_channels: int = 0,
        periodic: bool = False,
        guidance: bool = False,
        seed: int = 0,
    ) -> None:
        mults, attention = tuple(mults), tuple(attention) or (False,) * len(mults)
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        with seeded(seed):
            super().__init__({"kind": "unet", **config})
            if not mults or len(attention) != len(mults):
                raise FokkerError(
                    f"attention has {len(attention)} flags for {len(mults)} levels in mults; give one a level, or none"
                )
            if tokens and not (mid_attention or any(attention)):
                raise FokkerError(
                    "tokens are read where there is attention, and it is nowhere; set attention or mid_attention"
                )
            widths = [width * m for m in mults]
            for c, flag in zip([*widths, widths[-1]], [*attention, mid_attention]):
                if flag and c % heads:
                    raise FokkerError(f"heads={heads} does not divide the {c} channels of a level with attention")
            self._build(widths, blocks, [heads * bool(flag) for flag in attention], heads * mid_attention)
            self.guidance = Guidance(4 * widths[0]) if guidance else None
        levels = range(len(mults))
        self.multiple = patch * 2 ** (len(mults) - 1)
        self.stages = (*(f"down.{i}" for i in levels), "mid", *(f"up.{i}" for i in reversed(levels)))
        # mypy: nn.Module.to has no overload for a memory format alone
        self.to(memory_format=memory_format(dim))  # type: ignore[call-overload]

    def _build(self, widths: list[int], blocks: int, heads: list[int], mid_heads: int) -> None:
        dim, patch, periodic, embedding = self.dim, self.config["patch"], self.config["periodic"], 4 * widths[0]

        def stage(c_in: int, c_out: int, heads: int, count: int = blocks) -> Stage:
            return Stage(
                Block(
                    dim, c_out if j else c_in, c_out, embedding, heads, self.token_dim, self.config["dropout"], periodic
                )
                for j in range(count)
            )

        self.embedding = Embedding(embedding, self.classes)
        self.inp = conv(dim, (self.channels + self.image_channels) * patch**dim, widths[0], periodic=periodic)
        below = [*widths[1:], widths[-1]]
        self.down = nn.ModuleList(stage(a, b, h) for a, b, h in zip([widths[0], *widths], widths, heads))
        self.mid = Stage([*stage(widths[-1], widths[-1], mid_heads, 1), *stage(widths[-1], widths[-1], 0, 1)])
        self.up = nn.ModuleList(stage(a + b, b, h) for a, b, h in zip(below, widths, heads))
        self.norm = Norm(widths[0])
        self.out = zeroed(conv(dim, widths[0], self.out_channels * patch**dim, periodic=periodic))

    def lift(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        patch = self.config["patch"]
        x = x if patch == 1 else fold(x, patch)
        return self.inp(x.contiguous(memory_format=memory_format(self.dim))), ()

    def embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        return self.embedding(c_noise, label)  # type: ignore[no-any-return]

    def advance(self, name: str, state: State) -> None:
        """Run one stage. A skip is taken when the next stage begins, so a caller's change of `state.h` is in it."""
        kind, _, level = name.partition(".")
        if kind != "up" and name != self.stages[0]:
            state.skips.append(state.h)
        if kind == "down":
            stage = self.down[int(level)]
            state.h = state.h if level == "0" else shrink(state.h)
        elif kind == "up":
            stage = self.up[int(level)]
            skip = state.skips.pop()
            state.h = torch.cat((grow(state.h, skip.shape[2:]), skip), 1)
        else:
            stage = self.mid
        state.h = stage(state.h, state.embedding, state.context, state.mask)

    def lower(self, state: State) -> Tensor:
        patch = self.config["patch"]
        h: Tensor = self.out(F.silu(self.norm(state.h)))
        return h if patch == 1 else unfold(h, patch)
