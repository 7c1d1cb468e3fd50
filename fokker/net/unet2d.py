"""The U-Net of diffusers (`UNet2DModel`) as a network of the house: train it here, run it there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.net.layers import seeded
from fokker.net.network import Network, State


class UNet2D(Network):
    """`UNet2DModel` of diffusers behind `net(x, c_noise, **cond)`, see `Network`; `fokker.adapt.to_diffusers` writes it out.

    `width` channels times `mults` per level, `blocks` residual blocks a level, self-attention of heads `heads` wide in the
    levels flagged in `attention` and in the middle. The noise level enters as its sinusoidal features; where there are classes,
    the last row of their table stands for none. Needs the extra [hf].

    Reference: Ho et al., 2020, arXiv 2006.11239.
    """

    stages = ("net",)

    def __init__(
        self,
        dim: int = 2,
        channels: int = 3,
        out_channels: int | None = None,
        width: int = 32,
        mults: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[bool] = (),
        heads: int = 8,
        dropout: float = 0.0,
        classes: int = 0,
        tokens: int | None = None,
        image_channels: int = 0,
        seed: int = 0,
    ) -> None:
        mults, attention = tuple(mults), tuple(attention) or (False,) * len(mults)
        config = {k: v for k, v in locals().items() if k not in ("self", "seed", "__class__")}
        super().__init__({"kind": "unet2d", "patch": 1, **config})
        del self.config["patch"]
        if dim != 2 or tokens:
            raise FokkerError(
                f"dim={dim}, tokens={tokens}: a UNet2DModel works on images, without text; use kind: unet"
            )
        if not mults or len(attention) != len(mults) or width % 4:
            raise FokkerError(
                f"give mults, a flag of attention for each of them, and a width (here {width}) divisible by 4"
            )
        try:
            from diffusers import UNet2DModel
        except ImportError:
            raise FokkerError("kind: unet2d needs diffusers; install it with pip install 'fokker[hf]'") from None
        with seeded(seed):
            self.net: Any = UNet2DModel(
                in_channels=self.channels + self.image_channels,
                out_channels=self.out_channels,
                layers_per_block=blocks,
                block_out_channels=tuple(width * m for m in mults),
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
                attention_head_dim=heads,
                norm_num_groups=_groups(width),
                dropout=dropout,
                num_class_embeds=self.classes + 1 if self.classes else None,
            )
        self.multiple = int(2 ** (len(mults) - 1))

    def lift(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        return x, ()

    def embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """The noise level and the class side by side, (batch, 2): the network embeds them itself."""
        none = torch.full_like(c_noise, self.classes)
        return torch.stack([c_noise, none if label is None else torch.where(label < 0, none, label.to(none))], 1)

    def advance(self, name: str, state: State) -> None:
        level, label = state.embedding.unbind(1)
        state.h = self.net(state.h, level, class_labels=label.long() if self.classes else None).sample

    def lower(self, state: State) -> Tensor:
        return state.h


def _groups(width: int) -> int:
    """The most groups of at least four channels, at most 32, that divide the narrowest level."""
    return next(n for n in range(min(32, width // 4), 0, -1) if width % n == 0)
