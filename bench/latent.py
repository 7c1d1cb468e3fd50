"""Trains the latent and the pixel model of sprites that docs/latent.md shows, a stage at a time, minutes of one core each.

    python bench/latent.py codec       # the autoencoder of 16 x 16 sprites
    python bench/latent.py latent      # a denoiser of its latents, told the caption
    python bench/latent.py pixel       # the same trunk on pixels, as many multiply-adds as the two stages before took together
    python bench/latent.py measure     # what docs/latent.md states, as JSON

Every stage goes on from its last checkpoint in runs/latent; `--slice N` ends it after N samples, to be called again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.data import toy
from fokker.data.shapes import COLOURS
from fokker.data.source import Source
from fokker.denoiser import NetworkDenoiser
from fokker.latent import Autoencoding, Encoded, KLAutoencoder, Reconstruction, latent_model
from fokker.measure import PSNR, Frechet
from fokker.model import Model, build_net
from fokker.net.cost import macs
from fokker.train import Denoising, Rate, Trainer

RUNS = Path("runs/latent")


BATCH, CODEC, LATENT = 64, 288_000, 256_000  # samples seen in the first two stages
NET = {"kind": "unet", "width": 64, "mults": [1, 2], "blocks": 1}
SIZE = (16, 16)


def sprites() -> Source:
    return toy("sprites", n=16384, size=SIZE)


def trained(name: str, trainer: Trainer, until: int | None) -> bool:
    """Go on with a run; whether it is at its end, with the averaged weights in place."""
    begun = time.perf_counter()
    trainer.resume()
    state = trainer.run(until and trainer.state.samples + until)
    print(f"{name}: {state.samples} samples seen, {time.perf_counter() - begun:.0f} s")
    if state.samples < trainer.samples:
        return False
    trainer.denoiser.load_state_dict(trainer.averaged())
    trainer.denoiser.eval()
    return True


def settings(name: str, samples: int, peak: float) -> dict[str, Any]:
    return {
        "samples": samples, "batch": BATCH, "rate": Rate(peak=peak, warmup=20 * BATCH), "out": RUNS / name,
        "every": samples // 4, "keep": 1, "cpu": True, "quiet": True,
    }  # fmt: skip


def train_codec(until: int | None) -> None:
    source = sprites()
    codec = KLAutoencoder(latent=8, width=48, mults=(1, 2), blocks=1, patch=2)
    trainer = Trainer(Autoencoding(codec), source, Reconstruction("l2"), **settings("sprites-codec", CODEC, 3e-3))
    if trained("codec", trainer, until):
        codec.measure(source)
        latent_model(codec, source, NET, conditions=("tokens",)).save(RUNS / "sprites-codec.safetensors")


def train_latent(until: int | None) -> None:
    model = fk.load(RUNS / "sprites-codec.safetensors")
    latents = Encoded(sprites(), model.codec).in_memory()
    options = settings("sprites-latent", LATENT, 2e-3)
    trainer = Trainer(model.denoiser, latents, Denoising(drop=0.1), conditions=("tokens",), **options)
    if trained("latent", trainer, until):
        model.save(RUNS / "sprites-latent.safetensors", "float16")


def pixel_model() -> tuple[Model, int]:
    """The same trunk on patches of two pixels, untrained, and the samples that cost what codec and latents did."""
    model, source = fk.load(RUNS / "sprites-codec.safetensors"), sprites()
    tokens = {"width": 64, "conditions": {"tokens": list(source.conditions["tokens"])}}
    net = build_net({**NET, "channels": 3, "patch": 2, "tokens": 64}, tokens)
    denoiser = NetworkDenoiser(net, fk.VP(), "edm", 0.6)
    item = source.batch([0])
    x, told = item["x"], {"tokens": item["tokens"]}
    z = model.codec.encode(x)
    seen = macs(lambda: model.codec.decode(model.codec.encode(x)))
    inside, outside = macs(lambda: model.denoiser(z, 0.5, **told)), macs(lambda: denoiser(x, 0.5, **told))
    samples = round((CODEC * seen + LATENT * inside) / outside / BATCH) * BATCH
    print(f"multiply-adds a sample: codec {seen}, latent denoiser {inside}, pixel denoiser {outside}; {samples} samples")
    return Model(denoiser, source.shape, source.bounds, {"tokens": source.conditions["tokens"]}), samples


def train_pixel(until: int | None) -> None:
    model, samples = pixel_model()
    options = settings("sprites-pixel", samples, 2e-3)
    trainer = Trainer(model.denoiser, sprites(), Denoising(drop=0.1), conditions=("tokens",), **options)
    if trained("pixel", trainer, until):
        model.save(RUNS / "sprites-pixel.safetensors", "float16")


def right_colour(images: Tensor, asked: list[str]) -> float:
    """The share of pictures whose mean colour is nearest, in angle, to that of the palette that was asked for."""
    palette = torch.nn.functional.normalize(torch.tensor(list(COLOURS.values()), dtype=torch.float32), dim=1)
    mean = torch.nn.functional.normalize((images + 1).clamp_min(0).sum((2, 3)), dim=1)
    found = [list(COLOURS)[k] for k in (mean @ palette.T).argmax(1).tolist()]
    return sum(a == b for a, b in zip(asked, found, strict=True)) / len(asked)


@torch.no_grad()
def measure(_: int | None, n: int = 512) -> None:
    from fokker.checks.latent_diffusion import judge

    models = {name: fk.load(RUNS / f"sprites-{name}.safetensors") for name in ("latent", "pixel")}
    new = toy("sprites", n=2 * n, split="test", size=SIZE)
    first, second = new.batch(range(n)), new.batch(range(n, 2 * n))
    codec, distance = models["latent"].codec, Frechet(features=judge())
    z = codec.encode(first["x"])
    back = codec.decode(z)
    asked = [caption.split()[1] for caption in new.texts["caption"][:n]]
    out: dict[str, Any] = {
        "PSNR of the codec": PSNR()(back, first["x"]).value,
        "std of the latents": float(z.transpose(0, 1).flatten(1).std(1).mean()),
        "Frechet distance": {
            "other sprites": distance(second["x"], first["x"]).value,
            "reconstructions of other sprites": distance(codec.decode(codec.encode(second["x"])), first["x"]).value,
        },
        "right colour": {},
    }
    for name, model in models.items():
        for calls in (8, 18):
            parts = [
                fk.sample(model.denoiser, fk.noise((len(i), *model.x_shape), ids=i), steps=calls, tokens=first["tokens"][i])
                for i in torch.arange(n).split(256)
            ]
            made = model.codec.decode(torch.cat(parts))
            out["Frechet distance"][f"{name}, {calls} calls"] = distance(made, first["x"]).value
            out["right colour"][f"{name}, {calls} calls"] = right_colour(made, asked)
    print(json.dumps(out, indent=1))


def main() -> None:
    stages = {"codec": train_codec, "latent": train_latent, "pixel": train_pixel, "measure": measure}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--slice", type=int, help="end after so many samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    stages[options.stage](options.slice)


if __name__ == "__main__":
    main()
