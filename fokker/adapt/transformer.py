"""The transformers of diffusers: DiT, PixArt, Stable Diffusion 3, FLUX."""

import torch
from torch import Tensor, nn

from fokker.adapt.network import Adapted
from fokker.errors import FokkerError


class DiT(Adapted):
    """`DiTTransformer2DModel`: `label`; the class after the last stands for none. x is square."""

    conditions = needed = ("label",)

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.null_label = int(self.config.num_embeds_ada_norm)

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.net(x, timestep=clock, class_labels=cond["label"]).sample
        return out


class PixArt(Adapted):
    """`PixArtTransformer2DModel` (alpha and sigma): `tokens` and their `token_mask`; of 1024 pixels, also told their size.

    The size is that of x, in pixels, as the network's configuration wants it.
    """

    conditions = ("tokens", "token_mask")
    needed = ("tokens",)

    def __init__(self, net: nn.Module, factor: int = 8) -> None:
        super().__init__(net)
        self.factor = factor

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.net.use_additional_conditions:
            height, width = self.factor * x.shape[-2], self.factor * x.shape[-1]
            added = {
                "resolution": x.new_tensor([height, width]).expand(x.shape[0], 2),
                "aspect_ratio": x.new_tensor([height / width]).expand(x.shape[0], 1),
            }
        mask = cond.get("token_mask")
        out: Tensor = self.net(
            x,
            encoder_hidden_states=cond["tokens"],
            encoder_attention_mask=None if mask is None else mask.to(x.dtype),
            timestep=clock,
            added_cond_kwargs=added,
        ).sample
        return out


class SD3(Adapted):
    """`SD3Transformer2DModel` (3 and 3.5): `tokens` and `pooled`."""

    conditions = needed = ("tokens", "pooled")

    def sequence(self, height: int, width: int) -> int:
        patch = self.config.patch_size
        return int((height // patch) * (width // patch))

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.net(
            x, encoder_hidden_states=cond["tokens"], pooled_projections=cond["pooled"], timestep=clock
        ).sample
        return out


class Flux(Adapted):
    """`FluxTransformer2DModel`: `tokens`, `pooled`, and `guidance` where it was distilled (dev; 3.5 unless given).

    x (batch, C, H, W) of even sizes is cut into patches of 2 x 2. A model that takes more channels than it gives (fill,
    control) has them as `image`, in latents and at x's size.
    """

    conditions: tuple[str, ...] = ("tokens", "pooled")
    needed: tuple[str, ...] = ("tokens", "pooled")
    spread = True
    guidance_default = 3.5

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        given = self.config.out_channels or self.config.in_channels
        if given != self.config.in_channels:
            self.conditions = self.needed = (*self.needed, "image")
        if self.config.guidance_embeds:
            self.conditions = (*self.conditions, "guidance")
        self._channels = given // 4

    @property
    def channels(self) -> int:
        return int(self._channels)

    @property
    def x_shape(self) -> tuple[int, int, int]:
        return (self.channels, 128, 128)

    def sequence(self, height: int, width: int) -> int:
        return (height // 2) * (width // 2)

    def call(self, x: Tensor, clock: Tensor, cond: dict[str, Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            raise FokkerError(f"x is {height} x {width}; FLUX cuts it into patches of 2 x 2, so both must be even")
        place = torch.zeros(height // 2, width // 2, 3, device=x.device)
        place[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
        place[..., 2] += torch.arange(width // 2, device=x.device)[None, :]
        told = None
        if self.config.guidance_embeds:
            told = cond.get("guidance", x.new_full((x.shape[0],), self.guidance_default)).float()
        packed = pack(x)
        if "image" in cond:
            packed = torch.cat([packed, pack(cond["image"])], -1)
        tokens = cond["tokens"]
        out: Tensor = self.net(
            hidden_states=packed,
            timestep=clock.to(x.dtype) / 1000,
            guidance=told,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=x.device),
            img_ids=place.reshape(-1, 3),
        ).sample
        return unpack(out, height, width)


def pack(x: Tensor) -> Tensor:
    """(batch, C, H, W) as tokens (batch, HW/4, 4C), a patch of 2 x 2 each."""
    return nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`."""
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
