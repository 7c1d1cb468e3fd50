"""The autoencoders of diffusers as codecs: KL, vector-quantised, tiny and deep-compression, with their scale and shift."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fokker.codec import Codec
from fokker.errors import unknown

KINDS = ("AutoencoderKL", "AsymmetricAutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")


class DiffusersVAE(Codec):
    """x = (encode(data) - mean) / std with std = latents_std / scaling_factor and mean = shift_factor or latents_mean.

    The mean of the encoder's posterior stands for the data. `vae` is a module of diffusers, or its configuration. Decoding runs
    in the module's own number format, in float32 where it says that half precision overflows. Raises FokkerError for another
    kind of autoencoder.
    """

    def __init__(self, vae: nn.Module | Mapping[str, Any]) -> None:
        super().__init__()
        import diffusers

        made: Any = vae
        if isinstance(vae, Mapping):
            name = str(vae.get("_class_name"))
            if name not in KINDS:
                raise unknown("autoencoder", name, KINDS)
            made = getattr(diffusers, name).from_config({k: v for k, v in vae.items() if not k.startswith("_")})
        if not any(isinstance(made, getattr(diffusers, k)) for k in KINDS):
            raise unknown("autoencoder", type(made).__name__, KINDS)
        c: Any = made.config
        self.vae: Any = made.float() if c.get("force_upcast") and made.dtype == torch.float16 else made
        self.scale = float(c.get("scaling_factor") or 1.0)
        mean, std = c.get("latents_mean"), c.get("latents_std")
        centred = mean is not None and std is not None
        self.mean: float | list[float] = list(mean) if centred else float(c.get("shift_factor") or 0.0)
        self.std: float | list[float] = list(std) if centred else 1.0

    @property
    def factor(self) -> int:
        """How many pixels a side of the latent stands for."""
        c = self.vae.config
        if "encoder_block_out_channels" in c:  # tiny and deep-compression autoencoders halve between blocks
            known = getattr(self.vae, "spatial_compression_ratio", None) or getattr(
                self.vae, "spatial_scale_factor", None
            )
            return int(known or 2 ** (len(c.encoder_block_out_channels) - 1))
        return int(2 ** (len(c.get("block_out_channels") or c.get("down_block_out_channels")) - 1))

    def encode(self, data: Tensor) -> Tensor:
        out = self.vae.encode(data.to(self.vae.dtype))
        z = out.latent_dist.mode() if hasattr(out, "latent_dist") else out[0]
        x: Tensor = (z.to(data.dtype) - _channels(self.mean, data)) / _channels(self.std, data) * self.scale
        return x

    def decode(self, x: Tensor) -> Tensor:
        z = x * _channels(self.std, x) / self.scale + _channels(self.mean, x)
        data: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample
        return data.to(x.dtype)

    def save_memory(self) -> bool:
        if getattr(self.vae, "use_tiling", False) or not hasattr(self.vae, "enable_tiling"):
            return False
        self.vae.enable_tiling()
        return True

    @property
    def config(self) -> dict[str, Any]:
        own = {k: v for k, v in self.vae.config.items() if not k.startswith("_")}
        return {"codec": "DiffusersVAE", "vae": {"_class_name": type(self.vae).__name__, **own}}


def _channels(value: float | list[float], x: Tensor) -> float | Tensor:
    """A number, or one a channel as (1, C, 1, 1)."""
    return x.new_tensor(value).reshape(1, -1, 1, 1) if isinstance(value, list) else value
