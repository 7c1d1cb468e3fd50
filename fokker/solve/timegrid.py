"""AutoDiffusion: the set of time steps, for any solver, that evolution finds to give the smallest distance."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.grids import Grid, Quadratic, Times, Uniform
from fokker.loop import sample
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.search import Evolution, Random, Space, evolve

Gene = tuple[int, ...]


def search_timegrid(
    solver: Solver,
    denoiser: Denoiser,
    noise: Tensor,
    metric: Callable[[Tensor], float],
    steps: int,
    budget: int = 150,
    seed: int = 0,
    resolution: int = 1000,
    population: int = 40,
    progress: Callable[[int, int], None] | None = None,
    **cond: Tensor,
) -> tuple[Times, Evolution[Gene]]:
    """The best `steps` + 1 times for a solver, out of `resolution` equal ones, and the whole search.

    Each candidate is evaluated once, on the same unit `noise` (n, ...): the run begins at the candidate's first time, from
    noise at that level, and ends at the process's own end. `metric` of the samples is minimised, with at most `budget` runs.
    The uniform and the quadratic grid are among the first candidates, so that on these noises the result is never worse.
    Judge it on other noises. `denoiser` may be guided or otherwise wrapped.

    Raises FokkerError if there are fewer times than steps. Reference: Li et al. 2023, arXiv 2309.10438.
    """
    if not 1 <= steps < resolution:
        raise FokkerError(f"steps={steps} of {resolution} times are not accepted; use at least one and fewer than the times")
    process = denoiser.process

    def fitness(gene: Gene) -> float:
        x0 = run_on(solver, denoiser, noise, grid_of(gene, resolution, process), seed, **cond)
        return metric(x0) if bool(torch.isfinite(x0).all()) else float("inf")

    seeds = []
    for kind in (Uniform, Quadratic):
        times = kind(steps).times(process)[:-1]
        gene = _distinct((times * resolution).round().long().tolist(), resolution)
        if gene not in seeds:
            seeds.append(gene)
    found = evolve(space(steps, resolution), fitness, budget, seed, seeds, min(population, budget), progress=progress)
    return grid_of(found.best, resolution, process), found


def run_on(solver: Solver, denoiser: Denoiser, noise: Tensor, grid: Grid, seed: int = 0, **cond: Tensor) -> Tensor:
    """Samples of a solver on a grid that may begin below t = 1, from unit noise at the level of its first time."""
    process = denoiser.process
    plan = solver.plan(process, grid)
    start = plan.start if isinstance(plan.start, float) else 1.0
    level = process.start(noise) * float(process.sigma(start) / process.sigma(1.0))
    return sample(denoiser, level, plan, seed=seed, check=False, **cond)


def grid_of(gene: Gene, resolution: int, process: Process) -> Times:
    """The grid of a candidate: its times, in units of 1 / resolution, then the process's end."""
    end = process.end if process.end < min(gene) / resolution else 0.0
    return Times(values=[*(k / resolution for k in gene), end])


def space(steps: int, resolution: int, chance: float = 0.1) -> Space[Gene]:
    """Sets of `steps` distinct times among 1 .. resolution (t = 1), as decreasing tuples."""

    def random(draw: Random) -> Gene:
        return tuple(sorted((int(k) + 2 for k in draw.choice(resolution - 1, steps, replace=False)), reverse=True))

    def mutate(gene: Gene, draw: Random) -> Gene:
        moved = draw.random(steps) < max(chance, 1 / steps)
        # half of the replacements stay near, the rest go anywhere
        near = draw.random(steps) < 0.5
        shift = np.rint(draw.normal(0, resolution / 20, steps))
        anywhere = draw.integers(2, resolution + 1, steps)
        new = [int(k + s if n else a) if m else k for k, m, n, s, a in zip(gene, moved, near, shift, anywhere, strict=True)]
        return _distinct(new, resolution)

    def cross(a: Gene, b: Gene, draw: Random) -> Gene:
        return _distinct([x if u < 0.5 else y for x, y, u in zip(a, b, draw.random(steps), strict=True)], resolution)

    return Space(random, mutate, cross, lambda gene: [k / resolution for k in gene])


def _distinct(times: list[int], resolution: int) -> Gene:
    """Decreasing, within 2 .. resolution, no two alike: what repeats moves to the nearest free time below, or above."""
    out: list[int] = []
    for k in sorted((min(max(k, 2), resolution) for k in times), reverse=True):
        free = [j for d in range(resolution) for j in (k - d, k + d) if 2 <= j <= resolution and j not in out]
        out.append(free[0])
    return tuple(sorted(out, reverse=True))
