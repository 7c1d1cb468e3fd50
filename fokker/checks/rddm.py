"""RDDM (Liu et al. 2024, arXiv 2308.13712): the residual and the noise of a degraded picture go by clocks of their own.

Theory: DDIM is the case in which the residual's clock is 1 - alpha of a generator and the observation is zero; with an exact
denoiser either clock may be changed after the fact, at the price of the solver's error alone. From the degraded picture with
little noise (0.1) five steps leave less error than DDIM from pure noise with the same exact conditional denoiser on the best of
three grids (see `_restored`). DDIM on a grid quadratic in time, reported beside, is not part of the expectation.

Null: noise of the generator's size (1) enters the run, whose denoiser and plan are those of 0.1.

Changed after a miss: the chain has the published times k / steps, where one of the five evaluations was spent at t = 0.001.
DDIM may have those times too, besides the two grids it had, and no bound was moved.
"""

from functools import cache

import torch

from fokker.anchored import ResidualDenoising, ResidualForm
from fokker.checks import Criterion, Outcome
from fokker.checks._restored import SIDE, Scene
from fokker.grids import LogSNR, Quadratic, Uniform
from fokker.keyed import noise
from fokker.loop import sample
from fokker.process import VP
from fokker.solve.onestep import DDIM
from fokker.solve.shifting import ResidualAncestral, chain

EXPECT = (
    "a generator's schedule with the observation zero is DDIM to 1e-8; at 5 steps from the degraded picture with noise 0.1 "
    "energy distance <= 0.7 x DDIM's from noise; at 50 steps a schedule changed afterwards moves it by < 0.02"
)
EXACT = ResidualAncestral(eta=0.0)


def same(scene: Scene) -> float:
    """The largest difference between DDIM and its residual form, over a run of ten steps."""
    x1 = noise((64, SIDE**2), scene.seed, dtype=torch.float64)
    ends = []
    for process, solver in ((VP(), DDIM()), (ResidualForm(VP()), EXACT)):
        y = torch.zeros_like(x1) if process.anchored else None
        start = process.start(x1, y)
        denoiser = scene.posteriors[0].denoiser(process)
        ends.append(sample(denoiser, start, solver.plan(process, Uniform(10, end=0)), y=y))
    return float((ends[0] - ends[1]).abs().max())


def energy(scene: Scene, process: ResidualDenoising, steps: int, loud: float = 1.0) -> float:
    """The energy distance of the deterministic sampler on the published times."""
    return scene.energy(process, chain(process, steps, eta=0.0), loud)


@cache
def ddim(seed: int) -> dict[str, float]:
    """The energy distance of DDIM from noise at five steps, by grid."""
    scene, vp = Scene(seed), VP()
    plans = {grid.__name__: DDIM().plan(vp, grid(5, end=0)) for grid in (Uniform, LogSNR, Quadratic)}
    plans["k / 5"] = chain(vp, 5, eta=0.0)
    return {name: scene.energy(vp, plan) for name, plan in plans.items()}


def check(seed: int, null: bool = False) -> Outcome:
    scene = Scene(seed)
    quiet, loud = ResidualDenoising(noise=0.1), 10.0 if null else 1.0
    few, many = energy(scene, quiet, 5, loud), energy(scene, quiet, 50, loud)
    other = energy(scene, ResidualDenoising(noise=0.1, falling=0.0, rising=2.0), 50, loud)
    wide = energy(scene, ResidualDenoising(noise=1.0), 5)
    grids = ddim(seed)
    best = min(grids[name] for name in ("Uniform", "LogSNR", "k / 5"))
    gap = same(scene)
    return Outcome(
        measured={
            "energy at 5": few,
            "energy at 5, noise 1": wide,
            "energy at 50": many,
            "energy at 50, changed": other,
        },
        baseline={"DDIM from noise at 5": best, "DDIM from noise at 5, quadratic": grids["Quadratic"]},
        criteria=[
            Criterion("residual form against DDIM", gap, "<=", 1e-8),
            Criterion("over DDIM at 5", few / best, "<=", 0.7),
            Criterion("change of schedule at 50", abs(other - many), "<", 0.02),
        ],
    )
