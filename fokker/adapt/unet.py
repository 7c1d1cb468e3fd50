"""The U-Nets of diffusers: unconditional (DDPM, DDIM, LDM, score SDE) and conditional (Stable Diffusion 1.x, 2.x, XL, LCM)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fokker.adapt.network import Adapted
from fokker.errors import FokkerError


class UNet2D(Adapted):
    """`UNet2DModel`: x (batch, C, H, W); `label` where it has class embeddings, and `image` where it takes more channels."""

    def __init__(self, net: nn.Module, null_label: int | None = None) -> None:
        super().__init__(net)
        if self.config.class_embed_type == "identity":
            raise FokkerError(
                "a UNet2DModel with class_embed_type='identity' takes embeddings, not classes; it is not supported"
            )
        labelled = self.config.num_class_embeds is not None or self.config.class_embed_type is not None
        beside = self.config.in_channels != self.config.out_channels
        self.null_label = null_label
        self.conditions = self.needed = (("label",) if labelled else ()) + (("image",) if beside else ())
        self.learned = self.config.get("time_embedding_type") == "learned"

    @property
    def channels(self) -> int:
        return int(min(self.config.out_channels, self.config.in_channels))

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        told = clock.round().long() if self.learned else clock
        out: Tensor = self.net(beside(x, cond), told, class_labels=cond.get("label")).sample
        return out


class UNet2DCondition(Adapted):
    """`UNet2DConditionModel`: `tokens`, and by its configuration `pooled`, `time_ids` (XL), `guidance` (LCM), `image`, `label`.

    `time_ids` are (original height, width, crop top, left, target height, width) in pixels; left out, the sizes are those of x
    and nothing was cropped. `guidance` is the scale that an LCM imitates; left out, 7.5 (the `guidance_default`).
    """

    guidance_default = 7.5

    def __init__(self, net: nn.Module, factor: int = 8) -> None:
        super().__init__(net)
        c = self.config
        added, classed = c.get("addition_embed_type"), c.get("class_embed_type")
        if (
            added not in (None, "text_time")
            or classed not in (None, "timestep")
            or c.get("encoder_hid_dim_type") is not None
        ):
            raise FokkerError(
                f"a UNet2DConditionModel with addition_embed_type={added!r}, class_embed_type={classed!r}, "
                f"encoder_hid_dim_type={c.get('encoder_hid_dim_type')!r} is not supported; those of Stable Diffusion are"
            )
        self.factor = factor
        self.sized = added == "text_time"
        self.distilled = c.get("time_cond_proj_dim")
        self.needed = ("tokens",)
        self.needed += ("pooled",) if self.sized else ()
        self.needed += ("image",) if c.in_channels != c.out_channels else ()
        self.needed += ("label",) if c.get("num_class_embeds") is not None or classed else ()
        self.conditions = (
            self.needed + (("time_ids",) if self.sized else ()) + (("guidance",) if self.distilled else ())
        )

    @property
    def channels(self) -> int:
        return int(min(self.config.out_channels, self.config.in_channels))

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        added = None
        if self.sized:
            added = {"text_embeds": cond["pooled"], "time_ids": cond.get("time_ids", self.sizes(x, cond["pooled"]))}
        told = None
        if self.distilled:
            default = x.new_full((x.shape[0],), self.guidance_default, dtype=torch.float32)
            told = scale_embedding(cond.get("guidance", default) - 1, self.distilled).to(x.dtype)
        out: Tensor = self.net(
            beside(x, cond),
            clock,
            encoder_hidden_states=cond["tokens"],
            class_labels=cond.get("label"),
            timestep_cond=told,
            added_cond_kwargs=added,
        ).sample
        return out

    def sizes(self, x: Tensor, pooled: Tensor) -> Tensor:
        """The `time_ids` of uncropped pictures of x's size."""
        net: Any = self.net
        wanted = (net.add_embedding.linear_1.in_features - pooled.shape[1]) // self.config.addition_time_embed_dim
        if wanted != 6:
            raise FokkerError(
                f"this UNet2DConditionModel takes {wanted} numbers in time_ids=, not the six of a base model; give them"
            )
        height, width = self.factor * x.shape[-2], self.factor * x.shape[-1]
        return x.new_tensor([height, width, 0, 0, height, width]).expand(x.shape[0], 6)


def beside(x: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """x with the channels of `image` behind its own."""
    return torch.cat([x, cond["image"]], 1) if "image" in cond else x


def scale_embedding(scale: Tensor, width: int) -> Tensor:
    """sin and cos of 1000 w at width/2 frequencies from 1 to 1e-4: how a guidance scale w is told to a distilled network.

    Reference: Meng et al. 2023, arXiv 2210.03142; Luo et al. 2023, arXiv 2310.04378.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=scale.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * scale.float()[:, None] * rates
    return nn.functional.pad(torch.cat((angles.sin(), angles.cos()), 1), (0, width - 2 * half))
