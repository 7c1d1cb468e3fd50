"""The KL autoencoder: a convolutional codec whose latents are a small, lightly regularised grid of unit variance."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fokker.codec import Codec
from fokker.data.source import Source
from fokker.errors import FokkerError
from fokker.net.layers import Norm, conv, fold, grow, seeded, shrink, unfold, zeroed


class Residual(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))))), the identity at the start."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), conv(dim, channels, channels)
        self.norm2, self.conv2 = Norm(channels), zeroed(conv(dim, channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        inner: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
        return h + inner


class Resize(nn.Module):
    """Half or twice the size on every axis, with a convolution on the smaller number of positions where that is free."""

    def __init__(self, dim: int, c_in: int, c_out: int, up: bool) -> None:
        super().__init__()
        self.up, self.mix = up, conv(dim, c_in, c_out)

    def forward(self, h: Tensor) -> Tensor:
        if not self.up:
            return self.mix(shrink(h))  # type: ignore[no-any-return]
        h = self.mix(h)
        return grow(h, [2 * n for n in h.shape[2:]])


class KLAutoencoder(Codec):
    """x = scale (m(data) - shift), data = D(x / scale + shift), with q(z | data) = N(m(data), s(data)^2).

    data (batch, channels, *space) in the data's range, x (batch, latent, *space / factor) with `factor` = patch 2^(levels - 1),
    `levels` = len(mults); sizes must be multiples of the factor. Both ways are convolutional, so any such size goes. `width`
    channels times `mults` per level with `blocks` residual blocks each, on patches of `patch` pixels as channels.

    `scale` and `shift` (latent,) are measured by `measure`, never guessed: they make every channel of x of mean 0 and unit
    variance over the data, the law that the process and `sigma_data = 1` count on. Before that they are 1 and 0.

    Reference: Rombach, Blattmann, Lorenz, Esser, Ommer 2021, arXiv 2112.10752; Kingma, Welling 2013, arXiv 1312.6114.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        dim: int = 2,
        channels: int = 3,
        latent: int = 4,
        width: int = 32,
        mults: Sequence[int] = (1, 2),
        blocks: int = 1,
        patch: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim not in (1, 2, 3) or min(channels, latent, width, patch, *mults) < 1 or not mults or blocks < 0:
            raise FokkerError(
                f"dim={dim}, channels={channels}, latent={latent}, width={width}, mults={tuple(mults)}, blocks={blocks}, "
                f"patch={patch}; use 1 to 3 dimensions, at least one level, and at least 1 of each (0 blocks may be)"
            )
        self.dim = dim
        self.options = {
            "dim": dim, "channels": channels, "latent": latent, "width": width, "mults": list(mults), "blocks": blocks,
            "patch": patch,
        }  # fmt: skip
        self.channels, self.latent, self.patch = channels, latent, patch
        self.factor = patch * 2 ** (len(mults) - 1)
        widths = [width * m for m in mults]
        with seeded(seed):
            inner: list[nn.Module] = [conv(dim, channels * patch**dim, widths[0])]
            for k, c in enumerate(widths):
                inner += [Resize(dim, widths[k - 1], c, up=False)] if k else []
                inner += [Residual(dim, c) for _ in range(blocks)]
            head = conv(dim, widths[-1], 2 * latent)
            # a posterior as wide as the prior would hide the data from the decoder through the first updates
            with torch.no_grad():
                head.weight[latent:] = 0.0
                assert head.bias is not None
                head.bias[latent:] = -6.0
            self.encoder = nn.Sequential(*inner, Norm(widths[-1]), nn.SiLU(), head)
            outer: list[nn.Module] = [conv(dim, latent, widths[-1])]
            for k, c in reversed(list(enumerate(widths))):
                outer += [Residual(dim, c) for _ in range(blocks)]
                outer += [Resize(dim, c, widths[k - 1], up=True)] if k else []
            self.decoder = nn.Sequential(
                *outer, Norm(widths[0]), nn.SiLU(), conv(dim, widths[0], channels * patch**dim)
            )
        self.register_buffer("scale", torch.ones(latent))
        self.register_buffer("shift", torch.zeros(latent))

    @property
    def config(self) -> dict[str, Any]:
        return {"codec": "KLAutoencoder", **self.options}

    def posterior(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z | data), (batch, latent, *space / factor), before scale and shift."""
        if data.ndim != self.dim + 2 or data.shape[1] != self.channels:
            raise FokkerError(f"data have shape {tuple(data.shape)}; this codec takes (batch, {self.channels}, *space)")
        if any(n % self.factor for n in data.shape[2:]):
            raise FokkerError(f"data of size {tuple(data.shape[2:])}; give sizes that are multiples of {self.factor}")
        mean, logvar = self.encoder(data if self.patch == 1 else fold(data, self.patch)).chunk(2, 1)
        return mean, (logvar.clamp(-30.0, 20.0) / 2).exp()

    def generate(self, z: Tensor) -> Tensor:
        """The decoder's mean for a latent before scale and shift."""
        h: Tensor = self.decoder(z)
        return h if self.patch == 1 else unfold(h, self.patch)

    def encode(self, data: Tensor) -> Tensor:
        """The scaled posterior mean."""
        return self._scaled(self.posterior(data)[0])

    def draw(self, data: Tensor, noise: Tensor) -> Tensor:
        """A scaled draw of the posterior from unit noise of the latent's shape."""
        mean, std = self.posterior(data)
        return self._scaled(mean + std * noise)

    def decode(self, x: Tensor) -> Tensor:
        return self.generate(x / _channels(self.scale, x) + _channels(self.shift, x))

    def _scaled(self, z: Tensor) -> Tensor:
        return (z - _channels(self.shift, z)) * _channels(self.scale, z)

    @torch.no_grad()
    def measure(self, source: Source, most: int = 4096, drawn: bool = False) -> None:
        """Set scale and shift from at most `most` evenly spaced items, for the law of encoded means, or of draws.

        A draw has the mean's variance and that of the posterior, so a denoiser of draws needs the scale of draws. Raises
        FokkerError where a channel does not vary.
        """
        n = len(source)
        picked = torch.tensor([i * n // min(n, most) for i in range(min(n, most))])
        parts = [self.posterior(source.batch(rows)["x"].to(self.scale.device)) for rows in picked.split(256)]
        mean = torch.cat([m for m, _ in parts]).double().transpose(0, 1).flatten(1)
        std = torch.cat([s for _, s in parts]).double().transpose(0, 1).flatten(1)
        variance = mean.var(1) + (std.square().mean(1) if drawn else 0.0)
        if not bool((variance > 1e-12).all()):
            raise FokkerError(
                f"channel {int(variance.argmin())} of the latents does not vary; use fewer, or a smaller kl"
            )
        self.shift.copy_(mean.mean(1))
        self.scale.copy_(variance.rsqrt())


def _channels(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
