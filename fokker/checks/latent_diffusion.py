"""Latent diffusion on sprites: the same multiply-adds of training, spent in the latents of an autoencoder or on pixels.

The paper trains in latents because they are cheaper at the same quality. Here one U-Net trunk is trained in both spaces, on
16 x 16 sprites; what the autoencoder takes (encoder, decoder, three times for both passes) is paid for out of the latent
side's budget. Distances are those of the middle features of the frozen sprites denoiser of the zoo.

In theory, with x = W z and W orthonormal, DDIM in latents and then decoding is DDIM in data, projected on the span of W.

Null: no diffusion in the latents, which are unit noise as an autoencoder's prior would have them; the scale is forgotten; and
DDIM in data is not projected. Each of them must break its own criterion. (Before, the null only forgot the scale, which changed
the pictures little: the statement about their distance was never put to a test.)
"""

import functools

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, within
from fokker.data import toy
from fokker.data.source import Source
from fokker.denoiser import NetworkDenoiser
from fokker.latent import Encoded, KLAutoencoder, LinearCodec, Reconstruction, fit, latent_model
from fokker.laws import GaussianMixture
from fokker.measure import Frechet
from fokker.measure.features import Features
from fokker.net.cost import macs
from fokker.net.taps import taps
from fokker.net.unet import UNet
from fokker.train import Denoising, Rate, Trainer

EXPECT = (
    "16 x 16 sprites, equal multiply-adds of training: Frechet distance of 600 decoded samples of the f = 4 latent model <= "
    "0.7 x the pixel model's; std of the scaled latents of new sprites 1 +- 0.05; with a linear codec DDIM in latents, "
    "decoded, is projected pixel DDIM within 1e-4"
)
BATCH, AUTOENCODING, LATENT, N = 32, 400, 500, 600
TRUNK = {"width": 32, "mults": [1, 2], "blocks": 1, "mid_attention": False}


def trained(denoiser: NetworkDenoiser, source: Source, updates: int, seed: int) -> NetworkDenoiser:
    """The averaged weights after so many updates."""
    rate = Rate(peak=2e-3, warmup=20 * BATCH)
    trainer = Trainer(denoiser, source, Denoising(), BATCH * updates, BATCH, rate, seed=seed, cpu=True, quiet=True)
    trainer.run()
    denoiser.load_state_dict(trainer.averaged())
    return denoiser.eval()


@functools.cache
def both(seed: int) -> tuple[KLAutoencoder, Tensor, Tensor, float]:
    """The codec, samples of the model in its latents (before decoding), samples of the pixel model, and a cost ratio."""
    source = toy("sprites", n=4096, seed=seed, size=(16, 16))
    codec = KLAutoencoder(latent=8, width=64, mults=(1,), patch=4, seed=seed)
    rate = Rate(peak=4e-3, warmup=20 * BATCH)
    fit(codec, source, BATCH * AUTOENCODING, BATCH, Reconstruction("l2"), rate, seed=seed, cpu=True, quiet=True)
    model = latent_model(codec, source, {"kind": "unet", **TRUNK}, conditions=(), seed=seed)
    pixel = NetworkDenoiser(UNet(channels=3, patch=2, seed=seed, **TRUNK), fk.VP(), "edm", 0.6)  # type: ignore[arg-type]
    x = source.batch([0])["x"]
    seen, outside = macs(lambda: codec.decode(codec.encode(x))), macs(lambda: pixel(x, 0.5))
    inside = macs(lambda: model.denoiser(codec.encode(x), 0.5)) - macs(lambda: codec.encode(x))
    latents = trained(model.denoiser, Encoded(source, codec).in_memory(), LATENT, seed)
    updates = round((AUTOENCODING * seen + LATENT * inside) / outside)
    pixels = trained(pixel, source, updates, seed)
    made = fk.sample(latents, fk.noise((N, *model.x_shape), seed=seed), steps=18)
    return codec, made, fk.sample(pixels, fk.noise((N, 3, 16, 16), seed=seed), steps=18), updates


@functools.cache
def judge() -> Features:
    """Features of sprites: the mean activations in the middle of the zoo's denoiser, told of noise 0.2."""
    denoiser = fk.load("sprites").denoiser
    t = float(denoiser.process.time(torch.tensor(0.2).log() * -2))

    def middle(x: Tensor) -> Tensor:
        with taps(denoiser.net, ["net.mid"]) as seen:
            denoiser(x, t)
        found: Tensor = seen["net.mid"].mean((2, 3))
        return found

    return Features.of(denoiser, "sprites-mid", middle)


def exactness(seed: int, projected: bool = True) -> float:
    """The largest difference of decoded latent DDIM and projected pixel DDIM, exact denoisers of a mixture in 12 dimensions."""
    basis = torch.linalg.qr(fk.noise((12, 3), seed=seed, dtype=torch.float64)).Q
    inner = GaussianMixture([0.3, 0.3, 0.4], fk.noise((3, 3), seed=seed + 9, dtype=torch.float64), 0.05)
    codec = LinearCodec((12,), 3).double()
    codec.basis.copy_(basis)
    process = fk.VP()
    x = fk.noise((256, 12), seed=seed, dtype=torch.float64)
    outer = fk.sample(inner.affine(basis).denoiser(process), x, solver="ddim", steps=20)
    latent = fk.sample(inner.denoiser(process), codec.encode(x), solver="ddim", steps=20)
    return float((codec.decode(latent) - (codec.decode(codec.encode(outer)) if projected else outer)).abs().max())


def check(seed: int, null: bool = False) -> Outcome:
    codec, made, pixels, updates = both(seed)
    new = toy("sprites", n=1024, seed=seed, split="test", size=(16, 16)).batch(range(1024))["x"]
    with torch.no_grad():
        decoded = codec.decode(fk.noise(tuple(made.shape), seed=seed) if null else made)
        latents = codec.encode(new)
        spread = codec.posterior(new)[0] if null else latents
        psnr = -10 * float((codec.decode(latents) - new).square().mean().div(4).log10())
    distance = Frechet(features=judge())
    ours, theirs = distance(decoded, new[:N]).value, distance(pixels, new[:N]).value
    floor = distance(new[N : N + 400], new[:N]).value
    error = exactness(seed, not null)
    std = float(spread.transpose(0, 1).flatten(1).std(1).mean())
    return Outcome(
        measured={
            "Frechet distance, latent": ours,
            "std of latents": std,
            "linear codec, error": error,
            "PSNR of codec": psnr,
        },
        baseline={
            "Frechet distance, pixels": theirs,
            "400 sprites against 600": floor,
            "updates of the pixel model": updates,
        },
        criteria=[
            Criterion("latent over pixel Frechet distance", ours / theirs, "<=", 0.7),
            *within("std of scaled latents", std, 0.95, 1.05),
            Criterion("linear codec: latent DDIM against projected DDIM", error, "<=", 1e-4),
        ],
    )
