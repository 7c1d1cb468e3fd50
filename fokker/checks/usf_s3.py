"""USF and S3: a schedule in which every step chooses order, prediction, estimator and corrector, found by a ranked predictor.

The paper expects a searched schedule to beat every fixed one at few calls. Judged by the median distance to the exact end
points on noises that the search never saw. Two identities: order 1 of either prediction is DDIM, and order 2 in data converges
with order 2.

Null: the schedule is drawn at random instead of found.
"""

import math

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome, within
from fokker.checks._mixture import mixture
from fokker.solve.unified import ExponentialMultistep, StepRule, search_schedule

EXPECT = (
    "median distance at 5 calls on unseen noise <= 0.7 x the best of 18 fixed solvers (orders 1-3, data and noise, three "
    "grids); order 1 equals DDIM to 1e-10, order 2 in data has slope 2 +- 0.2"
)


def check(seed: int, null: bool = False) -> Outcome:
    law, process = mixture(8, 6, seed), fk.VP()
    denoiser = law.denoiser(process)

    def noises(n: int, which: int) -> tuple[torch.Tensor, torch.Tensor]:
        x1 = fk.noise((n, 8), which, dtype=torch.float64)
        return x1, law.flow(process, x1, 1.0, process.end, tol=1e-9)

    (x1, truth), (unseen, exact) = noises(256, seed), noises(1024, seed + 1000)

    def median(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x - y).norm(dim=1).median())

    draw = torch.Generator().manual_seed(seed)

    def fitness(x: torch.Tensor) -> float:
        return float(torch.rand((), generator=draw)) if null else median(x, truth)

    plan, found = search_schedule(denoiser, x1, fitness, steps=5, budget=40 if null else 900, seed=seed)
    searched = median(fk.sample(denoiser, unseen, plan), exact)
    fixed = {
        f"order {order}, {prediction}, {name}": median(
            fk.sample(denoiser, unseen, _constant(order, prediction).plan(process, fk.grids.get(name)(5))), exact
        )
        for order in (1, 2, 3)
        for prediction in ("data", "noise")
        for name in ("uniform", "quadratic", "logsnr")
    }
    best = min(fixed.values())
    ddim = fk.sample(denoiser, unseen, solver="ddim", steps=5)
    grid = fk.grids.logsnr(5)
    same = max(
        float((fk.sample(denoiser, unseen, _constant(1, p).plan(process, grid)) - ddim).abs().max()) for p in ("data", "noise")
    )
    # the order is that of one smooth trajectory: a single Gaussian has no boundary between modes
    slope = _slope()
    criteria = [
        Criterion("held-out median over the best fixed solver's", searched / best, "<=", 0.7),
        Criterion("order 1 against DDIM", same, "<=", 1e-10),
        *within("slope of order 2 in data", slope, 1.8, 2.2),
    ]
    measured = {"held-out median": searched, "evaluations": found.evaluations, "slope of order 2": slope}
    return Outcome(measured, {"best of 18 fixed": best}, criteria)


def _constant(order: int, prediction: str) -> ExponentialMultistep:
    return ExponentialMultistep((StepRule(order, prediction),))


def _slope() -> float:
    law, process = fk.laws.GaussianMixture([1.0], torch.ones(1, 2), torch.tensor([0.5, 2.0]).diag()), fk.VP()
    x1 = fk.noise((16, 2), dtype=torch.float64)
    exact = law.flow(process, x1, 1.0, process.end)
    errors = [
        float((fk.sample(law.denoiser(process), x1, solver=_constant(2, "data"), grid=fk.grids.logsnr(n)) - exact).norm())
        for n in (80, 160)
    ]
    return math.log2(errors[0] / errors[1])
