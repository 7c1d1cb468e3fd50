"""The diffusion autoencoder: what a picture is in a short code, how it was drawn in the noise that leads to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fokker import codec as codecs
from fokker.codec import Codec, Identity
from fokker.data.source import Source
from fokker.denoiser import NetworkDenoiser
from fokker.edit.inversion import invert, to_sample
from fokker.errors import FokkerError
from fokker.grids import Uniform
from fokker.keyed import noise as unit_noise
from fokker.latent.coded import Coded, GradientEstimator
from fokker.latent.described import described, rebuilt
from fokker.latent.semantic import SemanticEncoder
from fokker.loop import sample
from fokker.solve.onestep import DDIM


class DiffusionAutoencoder(Codec):
    """x = (E(data) - mean) / std, a semantic code (n, code); decoding runs DDIM from noise under that code.

    encoder    of data to raw codes, a `SemanticEncoder` or its configuration
    denoiser   a `NetworkDenoiser` whose network is told a code: `Coded` (all of it is trained) or `GradientEstimator` (a frozen
               model and what it lacks), or the configuration of one
    inner      the codec in whose space the denoiser works, the identity unless given; the encoder sees the data themselves
    steps      of DDIM, up (`stochastic`) and down (`decode`), uniform in t

    As a codec its latents are the standardised codes, and its decoder generates: `latent_model(codec, source, {"kind": "mlp"})`
    trained on `Encoded(source, codec)` is a model of the data that samples a code first. The rest of what an item is lies in
    its `stochastic` code, the noise from which DDIM leads back to it.

        auto = DiffusionAutoencoder(encoder, denoiser, codec)
        learn(auto, source, samples=50_000)
        auto.decode(auto.encode(data), auto.stochastic(data))            # data
        auto.interpolate(a, b, 0.5)                                      # lerp of codes, slerp of noises
        auto.edit(data, Direction.fit(auto.encode(train), age), 2.0)     # along a linear probe

    Reference: Preechakul et al. 2022, arXiv 2111.15640; Lozupone et al. 2025, arXiv 2504.08635.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: SemanticEncoder | Mapping[str, Any],
        denoiser: NetworkDenoiser | Mapping[str, Any],
        inner: Codec | Mapping[str, Any] | None = None,
        steps: int = 50,
    ) -> None:
        super().__init__()
        self.encoder = SemanticEncoder(**encoder) if isinstance(encoder, Mapping) else encoder
        self.denoiser = rebuilt(denoiser) if isinstance(denoiser, Mapping) else denoiser
        self.inner = codecs.build(inner) if isinstance(inner, Mapping) else inner or Identity()
        self.grid = Uniform(steps)
        if self.told.code != self.encoder.code:
            raise FokkerError(f"the encoder gives {self.encoder.code} numbers, the network is told {self.told.code}; use one")
        if self.denoiser.process.anchored:
            raise FokkerError(f"{self.denoiser.process.name} has an anchor; a diffusion autoencoder works on a plain process")
        # an inner codec and a frozen denoiser are not trained here
        self.inner.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(self.encoder.code))
        self.register_buffer("std", torch.ones(self.encoder.code))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "codec": "DiffusionAutoencoder",
            "encoder": self.encoder.config,
            "denoiser": described(self.denoiser),
            "inner": self.inner.config,
            "steps": self.grid.steps,
        }

    @property
    def told(self) -> Coded | GradientEstimator:
        """The network, which is told the code."""
        net = self.denoiser.net
        if not isinstance(net, Coded | GradientEstimator):
            raise FokkerError(f"{type(net).__name__} is told no code; put it into Coded(net, n) or GradientEstimator(net, n)")
        return net

    def encode(self, data: Tensor) -> Tensor:
        """The standardised semantic code, (n, code)."""
        return (self.encoder(data) - self.mean) / self.std  # type: ignore[no-any-return]

    def raw(self, x: Tensor) -> Tensor:
        """A standardised code as the denoiser is told it."""
        return x * self.std.to(x) + self.mean.to(x)

    @torch.no_grad()
    def stochastic(self, data: Tensor, x: Tensor | None = None) -> Tensor:
        """The noise (n, ...) at t = 1 from which DDIM leads to the data under the code `x` (the data's own unless given)."""
        code = self.raw(self.encode(data) if x is None else x)
        return invert(self.denoiser, self.inner.encode(data), self.grid, code=code).noise

    @torch.no_grad()
    def generate(self, x: Tensor, noise: Tensor | None = None, seed: int = 0, ids: Sequence[int] | None = None) -> Tensor:
        """The latent of the inner codec that DDIM reaches from `noise` (unit noise of seed and ids unless given)."""
        process = self.denoiser.process
        if noise is None:
            noise = process.start(unit_noise((len(x), *self.inner_shape), seed, ids, device=x.device))
        plan = DDIM().plan(process, self.grid)
        return to_sample(process, sample(self.denoiser, noise, plan, code=self.raw(x)), self.grid)

    def decode(self, x: Tensor, noise: Tensor | None = None, seed: int = 0, ids: Sequence[int] | None = None) -> Tensor:
        return self.inner.decode(self.generate(x, noise, seed, ids))

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """The shape of one item where the denoiser works."""
        blank = torch.zeros(1, self.encoder.channels, *self.encoder.size, device=self.mean.device)
        with torch.no_grad():
            return tuple(self.inner.encode(blank).shape[1:])

    def reconstruct(self, data: Tensor) -> Tensor:
        """The data again, from both of their codes."""
        x = self.encode(data)
        return self.decode(x, self.stochastic(data, x))

    def interpolate(self, a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
        """What lies at `share` of the way from items a to items b: a line between codes, an arc between noises."""
        x, y = self.encode(a), self.encode(b)
        return self.decode(torch.lerp(x, y, share), slerp(self.stochastic(a, x), self.stochastic(b, y), share))

    def edit(self, data: Tensor, direction: Tensor, amount: float = 1.0) -> Tensor:
        """The data with `amount` times a direction (code,) of standardised codes added, drawn from their own noise."""
        x = self.encode(data)
        return self.decode(x + amount * direction.to(x), self.stochastic(data, x))

    @torch.no_grad()
    def measure(self, source: Source, most: int = 4096) -> None:
        """Set mean and std of the codes from at most `most` evenly spaced items; FokkerError where a number does not vary."""
        n = len(source)
        picked = torch.tensor([i * n // min(n, most) for i in range(min(n, most))])
        rows = torch.cat([self.encoder(source.batch(p)["x"].to(self.mean.device)).double() for p in picked.split(256)])
        std = rows.std(0)
        if not bool((std > 1e-8).all()):
            raise FokkerError(f"number {int(std.argmin())} of the code does not vary; use a shorter code or train longer")
        self.mean.copy_(rows.mean(0))
        self.std.copy_(std)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from a to b (n, ...), item by item; the line where they are parallel.

    (sin((1 - s) w) a + sin(s w) b) / sin w, cos w = <a, b> / (|a| |b|).
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    w = torch.acos(torch.cosine_similarity(x, y, 1).clamp(-1, 1))
    straight = w.sin() < 1e-6
    first = torch.where(straight, 1 - share, ((1 - share) * w).sin() / w.sin())
    second = torch.where(straight, share, (share * w).sin() / w.sin())
    out = first[:, None] * x + second[:, None] * y
    return out.reshape(a.shape).to(a.dtype)
