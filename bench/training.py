"""Updates a second of `fokker.train.Trainer` against a bare loop of the same arithmetic, in one process.

    python bench/training.py [--width 32] [--batch 128] [--rounds 12] [--threads 1]

Both train the same digits UNet with the EDM loss, clipped gradients, AdamW and a running average. The bare loop draws from
torch's generator, writes no log and no checkpoint, and checks nothing. Rounds of the two alternate; the ratio is that of
the medians.
"""

import argparse
import json
import statistics
import time

import torch

from fokker.data import toy
from fokker.denoiser import NetworkDenoiser
from fokker.net import build
from fokker.process import EDM
from fokker.train import Denoising, Optimiser, Rate, Trainer


def bare(width: int, batch: int, foreach: bool):  # type: ignore[no-untyped-def]
    """A loop as one writes it by hand: returns a function that runs one update."""
    data = toy("digits")
    x_all, label_all = data.x, data.label
    net = build("digits", width=width)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, foreach=foreach)
    average = [p.detach().clone() for p in net.parameters()]
    generator, sd = torch.Generator().manual_seed(0), 0.5

    def update() -> None:
        pick = torch.randint(len(x_all), (batch,), generator=generator)
        x, label = x_all[pick], label_all[pick].clone()
        label[torch.rand(batch, generator=generator) < 0.1] = -1
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(batch, 1, 1, 1, generator=generator))
        noisy = x + sigma * torch.randn(x.shape, generator=generator)
        s = torch.sqrt(sigma**2 + sd**2)
        out = net(noisy / s, sigma.flatten().log() / 4, label=label)
        belief = sd**2 / s**2 * noisy + sigma * sd / s * out
        loss = ((1 / sigma**2 + 1 / sd**2) * (belief - x).square()).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 0.001)

    net.train()
    return update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    denoiser = NetworkDenoiser(build("digits", width=given.width), EDM(), "edm", 0.5)
    trainer = Trainer(
        denoiser, toy("digits"), Denoising(drop=0.1), samples=10**9, batch=given.batch, optimiser=Optimiser(),
        rate=Rate(kind="constant"), conditions=("label",), cpu=True, quiet=True,
    )  # fmt: skip
    trainer.module.train()
    runs = {"trainer": trainer.update, "bare, foreach": bare(given.width, given.batch, True)}
    runs["bare, torch's default"] = bare(given.width, given.batch, None)  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(given.rounds + 1):
        for name, update in runs.items():
            begin = time.perf_counter()
            for _ in range(given.updates):
                update()
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - begin) / given.updates)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = {name: min(values) for name, values in seconds.items()}
    result = {name: {"milliseconds": round(1e3 * m, 3), "best": round(1e3 * best[name], 3)} for name, m in median.items()}
    for name in median:
        result[name]["ratio of the trainer"] = round(median["trainer"] / median[name], 3)
        result[name]["ratio of the best"] = round(best["trainer"] / best[name], 3)
    print(json.dumps({"width": given.width, "batch": given.batch, "threads": given.threads, "runs": result}, indent=1))
    trainer.feed.close()


if __name__ == "__main__":
    main()
