"""Images a second of the zoo's models, sampled by our loop and by diffusers' scheduler, in one process.

    python bench/sampling.py [--models digits,sprites,photos] [--steps 10] [--batch 32] [--out bench/results/sampling.json]

The same denoiser on VP and DPM-Solver++(2M) on both sides; without guidance, with guidance as our wrapper does it (both
branches in one batch, one branch where it is off), and as diffusers' pipelines do it (both branches in one batch, always). The
last row guides on an interval of noise levels, which their pipelines have no way to skip. Medians over turns, ratios within a
turn.
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
from fokker.checks import provenance
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.guide.cfg import CFG

SCALE = 3.0
INTERVAL = (0.2, 5.0)  # of sigma / alpha


def theirs(denoiser: Denoiser, x: Tensor, steps: int, cond: dict[str, Tensor], guided: bool) -> Callable[[], Tensor]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type="sample")
    free = denoiser.null(**cond)
    both = {name: torch.cat([value, free[name]]) for name, value in cond.items()}

    @torch.no_grad()
    def loop() -> Tensor:
        scheduler.set_timesteps(steps)
        state = x
        for t in scheduler.timesteps:
            time = float(t) / 1000
            if guided:
                conditional, without = denoiser(torch.cat([state, state]), time, **both).chunk(2)
                belief = without + SCALE * (conditional - without)
            else:
                belief = denoiser(state, time, **cond)
            state = scheduler.step(belief, t, state).prev_sample
        return state

    return loop


def measured(name: str, steps: int, batch: int, turns: int) -> dict[str, Any]:
    """Images a second of either side and the ratio, for each way of guiding that the model has."""
    model = fk.load(name)
    denoiser = NetworkDenoiser(model.denoiser.net, fk.VP(), "edm", model.denoiser.sigma_data)
    cond = {"label": torch.arange(batch) % len(model.labels)} if model.labels else {}
    x = fk.noise((batch, *model.shape))
    plan = fk.solve.get("dpmpp-2m").plan(denoiser.process, fk.grids.logsnr(steps, end=0))
    ways: dict[str, Denoiser] = {"plain": denoiser}
    if cond:
        ways |= {"guided": CFG(denoiser, scale=SCALE), "guided on an interval": CFG(denoiser, scale=SCALE, interval=INTERVAL)}
    found: dict[str, Any] = {}
    for way, wrapped in ways.items():
        loops = {
            "fokker": lambda wrapped=wrapped: fk.sample(wrapped, x, plan, **cond),
            "diffusers": theirs(denoiser, x, steps, cond, way != "plain"),
        }
        seconds: dict[str, list[float]] = {key: [] for key in loops}
        for turn in range(turns + 1):
            # whoever comes second finds a warm cache
            for key in sorted(loops, reverse=turn % 2 == 1):
                begin = time.perf_counter()
                loops[key]()
                seconds[key].append(time.perf_counter() - begin)
        ratio = statistics.median(b / a for a, b in zip(seconds["fokker"][1:], seconds["diffusers"][1:]))
        rates = {key: round(batch / statistics.median(value[1:]), 1) for key, value in seconds.items()}
        found[way] = {**rates, "ratio": round(ratio, 3)}
        print(f"{name}, {way}: fokker {rates['fokker']} images a second, diffusers {rates['diffusers']}, ratio {ratio:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second, beside diffusers' scheduler on the same network.")
    parser.add_argument("--models", default="digits,sprites,photos")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"steps": options.steps, "batch": options.batch, **provenance()}
    for name in options.models.split(","):
        results[name] = measured(name, options.steps, options.batch, options.turns)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
