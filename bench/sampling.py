"""Images a second of one network, sampled by our loop and by diffusers' scheduler, in one process.

    python bench/sampling.py [--model digits] [--steps 10] [--batch 64] [--out bench/results/sampling.json]

DPM-Solver++(2M) on both sides; without guidance, with guidance as our wrapper does it (both branches in one batch), and as
diffusers' pipelines do it (the same, by hand). Without a model of that name the network of its preset is used untrained: the
arithmetic is the same. Medians over turns, ratios within a turn.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker import model as models
from fokker.checks import provenance
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.guide.cfg import CFG
from fokker.net import build

SCALE = 3.0


def network(name: str) -> tuple[Denoiser, tuple[int, ...]]:
    """The model of the zoo on the process VP, or its untrained preset."""
    if name in models.names() or Path(name).exists():
        loaded = fk.load(name)
        net = loaded.denoiser.net
        return NetworkDenoiser(net, fk.VP(), "eps"), loaded.shape
    return NetworkDenoiser(build(name).eval(), fk.VP(), "eps"), (1, 8, 8)


def theirs(denoiser: Denoiser, x: Tensor, label: Tensor, steps: int, guided: bool) -> Callable[[], Tensor]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler()
    net = denoiser.net
    both = torch.cat([label, torch.full_like(label, -1)])

    @torch.no_grad()
    def loop() -> Tensor:
        scheduler.set_timesteps(steps)
        state = x
        for t in scheduler.timesteps:
            c = t.float().expand(2 * len(x) if guided else len(x)) / 1000
            if guided:
                conditional, free = net(torch.cat([state, state]), c, label=both).chunk(2)
                eps = free + SCALE * (conditional - free)
            else:
                eps = net(state, c, label=label)
            state = scheduler.step(eps, t, state).prev_sample
        return state

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second, beside diffusers' scheduler on the same network.")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    denoiser, shape = network(options.model)
    x, label = fk.noise((options.batch, *shape)), torch.arange(options.batch) % 10
    plan = fk.solve.get("dpmpp-2m").plan(denoiser.process, fk.grids.logsnr(options.steps, end=0))
    guided = CFG(denoiser, scale=SCALE)
    results: dict[str, Any] = {"model": options.model, "steps": options.steps, "batch": options.batch, **provenance()}
    for name, wrapped in (("plain", denoiser), ("guided", guided)):
        loops = {
            "fokker": lambda wrapped=wrapped: fk.sample(wrapped, x, plan, label=label),
            "diffusers": theirs(denoiser, x, label, options.steps, wrapped is guided),
        }
        seconds: dict[str, list[float]] = {key: [] for key in loops}
        for _ in range(options.turns + 1):
            for key, loop in loops.items():
                begin = time.perf_counter()
                loop()
                seconds[key].append(time.perf_counter() - begin)
        ratio = statistics.median(b / a for a, b in zip(seconds["fokker"][1:], seconds["diffusers"][1:]))
        rates = {key: round(options.batch / statistics.median(value[1:]), 1) for key, value in seconds.items()}
        results[name] = {**rates, "ratio": round(ratio, 3)}
        print(f"{name}: fokker {rates['fokker']} images a second, diffusers {rates['diffusers']}, ratio {ratio:.3f}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
