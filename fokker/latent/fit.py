"""Training of an autoencoder by the ordinary trainer: the codec seen as a denoiser, and its objective."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise
from fokker.latent.kl import KLAutoencoder
from fokker.process import VE, Time
from fokker.train import Average, Key, Objective, Rate, Trainer
from fokker.train.objective import Tensors

ERRORS = ("l1", "l2")


class Autoencoding(Denoiser):
    """The autoencoder as a denoiser that is told no time: D(x_t) = decode(encode(x_t))."""

    def __init__(self, codec: KLAutoencoder) -> None:
        super().__init__(VE())
        self.codec = codec

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        return self.codec.decode(self.codec.encode(x_t))


@dataclass(frozen=True)
class Reconstruction(Objective):
    """loss = (sum |x - D(z)|^p + kl KL(q(z | x) || N(0, 1))) / d, z ~ q(z | x), with d the numbers of one item.

    error  l1 (p = 1) or l2 (p = 2)
    kl     the weight of the KL term, both terms summed over an item: 1e-6 keeps latents from drifting and no more, and 1
           (with l2 and unit variance, up to a factor 2) is a variational autoencoder

    Reference: Rombach et al. 2021, arXiv 2112.10752 (without the perceptual and adversarial terms); Kingma, Welling 2013,
    arXiv 1312.6114.
    """

    error: str = "l1"
    kl: float = 1e-6

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise unknown("reconstruction error", self.error, ERRORS)
        if self.kl < 0:
            raise FokkerError(f"kl={self.kl} is not accepted; give a weight of 0 or more")

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """The items and the noise of their latents."""
        codec, x = _codec(denoiser), batch["x"]
        shape = (len(x), codec.latent, *(n // codec.factor for n in x.shape[2:]))
        ids, index = key.names()
        eps = noise(shape, key.seed, ids, stream="train", index=index, dtype=x.dtype)
        return {"x": x.to(device, non_blocking=True), "eps": eps.to(device, non_blocking=True)}

    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        """The loss of each item, (B,)."""
        codec, x = _codec(denoiser), drawn["x"]
        mean, std = codec.posterior(x)
        error = x - codec.generate(mean + std * drawn["eps"])
        distance = (error.abs() if self.error == "l1" else error.square()).flatten(1).mean(1)
        divergence = (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1) / 2
        return distance + self.kl / x[0].numel() * divergence


def _codec(denoiser: Denoiser) -> KLAutoencoder:
    if not isinstance(denoiser, Autoencoding):
        raise FokkerError(f"{type(denoiser).__name__} has no autoencoder; train Autoencoding(codec) on this objective")
    return denoiser.codec


def fit(
    codec: KLAutoencoder,
    source: Source,
    samples: int,
    batch: int = 64,
    objective: Reconstruction | None = None,
    rate: Rate | None = None,
    average: Average | None = None,
    drawn: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    cpu: bool = False,
    quiet: bool = False,
) -> KLAutoencoder:
    """Train the codec on a source, keep the averaged weights, and measure scale and shift on it; returns the codec.

    `drawn` says that latents will be drawn from the posterior (`Encoded(..., drawn=True)`) and scales for that. With `out`
    the run has checkpoints and resumes. Raises FokkerError as `Trainer` and `KLAutoencoder.measure` do.
    """
    denoiser = Autoencoding(codec)
    rate = rate or Rate(peak=2e-3, warmup=min(10_000, samples // 10))
    trainer = Trainer(
        denoiser,
        source,
        objective or Reconstruction(),
        samples,
        batch,
        rate,
        average=average,
        seed=seed,
        out=out,
        cpu=cpu,
        quiet=quiet,
    )
    trainer.run()
    denoiser.load_state_dict(trainer.averaged())
    codec.eval()
    codec.measure(source, drawn=drawn)
    return codec
