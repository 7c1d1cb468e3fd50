"""What the checks of the solvers share: the mixtures they run on, and the measure of their errors.

The recipe was fixed before anything was measured: `laws.lowrank` with half the dimension as rank and its own defaults, on the
process VP, 256 noises, and the median over noises of the distance to the end point of the flow. The median, because a few
samples that change basin dominate any mean.
"""

import math

import torch
from torch import Tensor

from fokker import laws
from fokker.denoiser import Denoiser
from fokker.grids import Grid, Quadratic
from fokker.guide.cfg import CFG
from fokker.keyed import noise
from fokker.loop import sample
from fokker.plan import Plan
from fokker.process import VP
from fokker.solve import Solver
from fokker.solve.multistep import DPMSolverPP

SAMPLES = 256
SCALE = 7.5


def law(seed: int, dim: int, components: int, within: float = 0.3) -> laws.GaussianMixture:
    """The mixture of a check at a seed; `within` is the share of the variance inside the components."""
    return laws.lowrank(dim=dim, components=components, rank=dim // 2, seed=seed, within=within)


def distance(x: Tensor, truth: Tensor) -> float:
    """The median over samples of the Euclidean distance."""
    return float((x - truth).flatten(1).norm(dim=1).median())


def slope(coarse: float, fine: float, ratio: float) -> float:
    """The order that two errors show whose step sizes differ by `ratio`."""
    return math.log(coarse / fine) / math.log(ratio)


class Race:
    """One denoiser, one set of noises, the end points of its flow, and what solvers make of them."""

    def __init__(self, denoiser: Denoiser, dim: int, seed: int, truth: Tensor | None = None, **cond: Tensor) -> None:
        self.denoiser, self.cond = denoiser, cond
        self.process = denoiser.process
        self.x1 = self.process.start(noise((SAMPLES, dim), seed, stream="check", dtype=torch.float64))
        # without a truth of its own, the same flow in 300 steps of third order
        self.truth = self.end(DPMSolverPP(order=3), Quadratic(300)) if truth is None else truth

    def end(self, solver: Solver, grid: Grid) -> Tensor:
        """The end points of a solver on a grid."""
        return self.run(solver.plan(self.process, grid))

    def run(self, plan: Plan) -> Tensor:
        return sample(self.denoiser, self.x1, plan, **self.cond)

    def error(self, solver: Solver, grid: Grid) -> float:
        """The median error of a solver on a grid."""
        return distance(self.end(solver, grid), self.truth)

    def budget(self, solver: Solver, nfe: int, grid: type[Grid]) -> float:
        """The median error of a solver with at most `nfe` evaluations."""
        return distance(self.run(solver.budget(nfe, self.process, grid)), self.truth)


def plain(seed: int, dim: int = 4, components: int = 6) -> Race:
    """The mixture without guidance, against its exact flow."""
    mixture, process = law(seed, dim, components), VP()
    x1 = process.start(noise((SAMPLES, dim), seed, stream="check", dtype=torch.float64))
    truth = mixture.flow(process, x1, 1.0, process.end)
    return Race(mixture.denoiser(process), dim, seed, truth)


def guided(seed: int, dim: int = 8, components: int = 8, within: float = 0.3) -> Race:
    """Classifier-free guidance of scale 7.5 towards one component a sample, from the exact denoisers."""
    denoiser = CFG(law(seed, dim, components, within).denoiser(VP()), scale=SCALE)
    return Race(denoiser, dim, seed, label=torch.arange(SAMPLES) % components)
