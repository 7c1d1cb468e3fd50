"""Three combinations that nobody has published side by side, each a few lines, with numbers.

    python bench/compositions.py [--seconds 40] [--out bench/results/compositions.json]

1. Tomography with an exactly invertible plan: a reconstruction from few angles under PiGDM on an EDICT plan, whose latent is
   found again from the reconstruction to rounding, with the measurement in the loop; beside DDIM, inverted as DDIM is.
2. A cache, guidance and a tuned plan: DeepCache inside classifier-free guidance on a plan of 8 steps that `tune` found for this
   very denoiser, beside the same budget without the three.
3. Two restorations superposed: two measurements of one picture, each with its own restorer, joined by the AND of their
   densities along the path and by their plain mean, beside either alone and the restorer of both stacked.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.cache import DeepCache
from fokker.checks import provenance
from fokker.data import toy
from fokker.denoiser import Denoiser
from fokker.grids import LogSNR, reversed_times
from fokker.guide import CFG
from fokker.guide.superpose import Superposition
from fokker.restore import Mask, ParallelBeam, PiGDM

F64 = torch.float64


def rms(x: Tensor, truth: Tensor) -> float:
    return float((x - truth).square().mean().sqrt())


def digits_law() -> fk.Denoiser:
    """Digits of scikit-learn as a law of mixtures, ten components of rank 6 a class."""
    found = toy("digits", split="train").all()
    law = fk.laws.GaussianMixture.fit(found["x"].to(F64), components=3, rank=6, labels=found["label"])
    return law.denoiser(fk.VP())


def tomography() -> dict[str, Any]:
    denoiser = digits_law()
    x = toy("digits", split="test").batch(range(16))["x"].to(F64)
    scanner = ParallelBeam(angles=5, shape=(1, 8, 8))
    y = scanner(x) + 0.02 * fk.noise(tuple(scanner(x).shape), seed=2, dtype=F64)
    restorer = PiGDM(denoiser, scanner, y, noise_std=0.02)
    start = denoiser.process.start(fk.noise(tuple(x.shape), seed=3, dtype=F64))
    grid = LogSNR(100, end=0.01)
    found: dict[str, Any] = {"back projection": {"rms": round(rms(scanner.pinv(y), x), 4)}}
    for name in ("edict", "ddim"):
        solver = fk.solve.get(name)
        plan = solver.plan(denoiser.process, grid)
        trace = fk.run(restorer, start, plan)
        up = plan.inverse() if name == "edict" else solver.plan(denoiser.process, reversed_times(grid, denoiser.process))
        latent = fk.run(restorer, trace.outputs if name == "edict" else trace.x0, up).x0
        found[name] = {"rms": round(rms(trace.x0, x), 4), "latent off by": float(f"{rms(latent, start):.3g}")}
    return found


def cached(seconds: float) -> dict[str, Any]:
    model = fk.load("digits")
    process = fk.VP()
    network = fk.NetworkDenoiser(model.denoiser.net, process, "edm", model.denoiser.sigma_data)
    label = torch.arange(64) % 10
    x1 = process.start(fk.noise((64, *model.shape), seed=5))
    guided: Denoiser = CFG(network, scale=3.0)
    # every other step recomputes: with three steps between, an 8-step run would be mostly memory
    lazy: Denoiser = CFG(DeepCache(network, refresh=2), scale=3.0)
    fixed = fk.solve.get("dpmpp-2m").plan(process, fk.grids.logsnr(8))
    tuned = fk.tune(guided, nfe=8, shape=model.shape, seed=0, seconds=seconds, label=torch.arange(10))
    truth = fk.sample(guided, x1, solver="heun", steps=200, end=tuned.end, label=label)
    ways = {
        "guided, dpmpp-2m": (guided, fixed),
        "guided, tuned": (guided, tuned),
        "cached, guided, dpmpp-2m": (lazy, fixed),
        "cached, guided, tuned": (lazy, tuned),
    }
    clocks: dict[str, list[float]] = {name: [] for name in ways}
    outs: dict[str, Tensor] = {}
    for _ in range(9):  # in turns, so that a busy machine slows all of them
        for name, (denoiser, plan) in ways.items():
            begin = time.perf_counter()
            outs[name] = fk.sample(denoiser, x1, plan, label=label)
            clocks[name].append(time.perf_counter() - begin)
    plain = clocks["guided, dpmpp-2m"]
    return {
        name: {
            "rms from its flow": round(rms(outs[name], truth), 4),
            "time": round(statistics.median(a / b for a, b in zip(clocks[name], plain, strict=True)), 3),
        }
        for name in ways
    }


def superposed() -> dict[str, Any]:
    denoiser = digits_law()
    many = 64
    x = toy("digits", split="test").batch(range(many))["x"].to(F64)
    masks = [Mask(keep=0.3, shape=(1, 8, 8), seed=k) for k in (1, 2)]
    noise_std = 0.1
    ys = [m(x) + noise_std * fk.noise(tuple(m(x).shape), seed=7 + k, dtype=F64) for k, m in enumerate(masks)]
    alone = [PiGDM(denoiser, m, y, noise_std=noise_std) for m, y in zip(masks, ys, strict=True)]
    start = denoiser.process.start(fk.noise(tuple(x.shape), seed=9, dtype=F64))
    ways: dict[str, Denoiser] = {
        "first alone": alone[0],
        "second alone": alone[1],
        "mean of both": Superposition(alone[0], models=[alone[1]], mode="average"),
        "AND of both": Superposition(alone[0], models=[alone[1]], mode="and"),
        "one around the other": PiGDM(alone[0], masks[1], ys[1], noise_std=noise_std),
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        draws = [fk.sample(way, start, solver="ddpm", nfe=120, seed=s) for s in range(3)]
        misfit = [rms(m(torch.stack(draws).mean(0)), y) for m, y in zip(masks, ys, strict=True)]
        found[name] = {
            "rms of a draw": round(statistics.mean(rms(d, x) for d in draws), 4),
            "misfit of the first": round(misfit[0], 4),
            "misfit of the second": round(misfit[1], 4),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Three combinations, with numbers.")
    parser.add_argument("--seconds", type=float, default=40.0, help="for the tuning")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, work in (
        ("tomography with an exact latent", tomography),
        ("cache, guidance and a tuned plan", lambda: cached(options.seconds)),
        ("two restorations superposed", superposed),
    ):
        results[name] = work()
        print(name)
        for row, values in results[name].items():
            print(f"  {row:28}" + "  ".join(f"{key} {value:g}" for key, value in values.items()), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({**provenance(), **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
