"""Trains the latent models of the documentation and of the zoo, a stage at a time, each within five minutes of one core.

    python bench/latent.py sprites codec        # the autoencoder; then latent, then pixel
    python bench/latent.py sprites latent
    python bench/latent.py sprites pixel        # as many multiply-adds as the two stages before took together
    python bench/latent.py sprites measure      # what docs/latent.md states, as JSON
    python bench/latent.py phantoms codec       # heads of 16 x 16 x 16
    python bench/latent.py phantoms latent --out fokker/zoo/phantoms.safetensors

Every stage goes on from its last checkpoint in runs/latent; `--slice N` ends it after N samples, to be called again.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fokker as fk
from fokker.data import toy
from fokker.data.source import Arrays
from fokker.latent import Autoencoding, Encoded, KLAutoencoder, Reconstruction, latent_model
from fokker.model import Model, build_net
from fokker.net.cost import macs
from fokker.train import Denoising, Rate, Trainer

RUNS = Path("runs/latent")


@dataclass(frozen=True)
class Job:
    """One data set's codec and denoiser, and how many samples each sees."""

    data: dict[str, Any]
    codec: dict[str, Any]
    net: dict[str, Any]
    conditions: tuple[str, ...]
    seen: dict[str, int]
    batch: int = 64

    def source(self) -> Arrays:
        return toy(**self.data)


JOBS = {
    "sprites": Job(
        {"name": "sprites", "n": 16384, "size": (16, 16)},
        {"latent": 8, "width": 48, "mults": (1, 2), "blocks": 1, "patch": 2},
        {"kind": "unet", "width": 64, "mults": [1, 2], "blocks": 1},
        ("tokens",),
        {"codec": 288_000, "latent": 256_000},
    ),
    "phantoms": Job(
        {"name": "volume", "n": 3072, "size": (16, 16, 16)},
        {"dim": 3, "channels": 1, "latent": 4, "width": 64, "mults": (1,), "blocks": 1, "patch": 4},
        {"kind": "unet", "width": 32, "mults": [1, 2], "blocks": 1},
        (),
        {"codec": 80_000, "latent": 64_000},
        32,
    ),
}


def trained(name: str, trainer: Trainer, until: int | None) -> bool:
    """Go on with a run; whether it is at its end, with the averaged weights in place."""
    begun = time.perf_counter()
    trainer.resume()
    state = trainer.run(until and trainer.state.samples + until)
    print(f"{name}: {state.samples} samples seen, {time.perf_counter() - begun:.0f} s")
    if state.samples < trainer.samples:
        return False
    with trainer.ema.swapped():
        weights = {k: v.detach().clone() for k, v in trainer.denoiser.state_dict().items()}
    trainer.denoiser.load_state_dict(weights)
    trainer.denoiser.eval()
    return True


def settings(job: Job, name: str, samples: int, peak: float) -> dict[str, Any]:
    return {
        "samples": samples, "batch": job.batch, "rate": Rate(peak=peak, warmup=20 * job.batch), "out": RUNS / name,
        "every": samples // 4, "keep": 1, "cpu": True, "quiet": True,
    }  # fmt: skip


def train_codec(name: str, job: Job, until: int | None) -> None:
    source = job.source()
    codec = KLAutoencoder(**job.codec)
    options = settings(job, f"{name}-codec", job.seen["codec"], 3e-3)
    if trained(f"{name} codec", Trainer(Autoencoding(codec), source, Reconstruction("l2"), **options), until):
        codec.measure(source)
        latent_model(codec, source, job.net, conditions=job.conditions).save(RUNS / f"{name}-codec.safetensors")


def train_latent(name: str, job: Job, until: int | None) -> None:
    model, source = fk.load(RUNS / f"{name}-codec.safetensors"), job.source()
    options = settings(job, f"{name}-latent", job.seen["latent"], 2e-3)
    latents = Encoded(source, model.codec).in_memory()
    trainer = Trainer(model.denoiser, latents, Denoising(drop=0.1 * bool(job.conditions)), conditions=job.conditions, **options)
    if trained(f"{name} latent", trainer, until):
        model.save(RUNS / f"{name}-latent.safetensors", "float16")


def pixel_model(job: Job) -> tuple[Model, int]:
    """The same trunk on patches of two pixels, untrained, and the samples that cost what codec and latents did."""
    model, source = fk.load(RUNS / "sprites-codec.safetensors"), job.source()
    net = {**job.net, "channels": 3, "patch": 2, "tokens": 64}
    tokens = {"width": 64, "conditions": {k: list(source.conditions[k]) for k in job.conditions}}
    denoiser = fk.NetworkDenoiser(build_net(net, tokens), fk.VP(), "edm", 0.6)
    item = source.batch([0])
    x, cond = item["x"], {k: item[k] for k in job.conditions}
    z = model.codec.encode(x)
    encoding, both = macs(lambda: model.codec.encode(x)), macs(lambda: model.codec.decode(model.codec.encode(x)))
    inside, outside = macs(lambda: model.denoiser(z, 0.5, **cond)), macs(lambda: denoiser(x, 0.5, **cond))
    print({"codec": both, "encoder": encoding, "latent denoiser": inside, "pixel denoiser": outside}, "multiply-adds a sample")
    spent = 3 * (job.seen["codec"] * both + job.seen["latent"] * inside)
    known = {k: source.conditions[k] for k in job.conditions}
    return Model(denoiser, source.shape, source.bounds, known), round(spent / (3 * outside) / job.batch) * job.batch


def train_pixel(name: str, job: Job, until: int | None) -> None:
    model, samples = pixel_model(job)
    options = settings(job, f"{name}-pixel", samples, 2e-3)
    trainer = Trainer(model.denoiser, job.source(), Denoising(drop=0.1), conditions=job.conditions, **options)
    if trained(f"{name} pixel", trainer, until):
        model.save(RUNS / f"{name}-pixel.safetensors", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("stage", choices=["codec", "latent", "pixel", "measure"])
    parser.add_argument("--slice", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    stages = {"codec": train_codec, "latent": train_latent, "pixel": train_pixel}
    stages[options.stage](options.job, JOBS[options.job], options.slice)


if __name__ == "__main__":
    main()
