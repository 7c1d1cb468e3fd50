"""DPM-Solver-v3: three coefficient curves a coordinate, fitted to the model.

Theory: on one axis-aligned Gaussian the fitted parametrisation leaves nothing to integrate, so one step over the whole range
is exact up to the statistics' own grid (second order in its spacing). On a mixture the same order without statistics, which
is data prediction, errs more at 5, 8 and 10 evaluations. Starting noise is not that of the fit.

Null: the curves run backwards in log-SNR.
"""

import torch

import fokker as fk
from fokker import grids
from fokker.checks import Criterion, Outcome
from fokker.checks._mixture import mixture
from fokker.keyed import uniform
from fokker.laws import GaussianMixture
from fokker.solve.statistics import DPMSolverV3, ModelStatistics

EXPECT = (
    "one step on an axis-aligned Gaussian errs <= 1e-4 with 400 statistics points, 4 x less per doubling, DDIM > 1; on a "
    "mixture (d=16, quadratic grid) order 2 <= 0.75 x order 2 without statistics at 5, 8, 10 evaluations"
)
PROCESS = fk.VP()


def check(seed: int, null: bool = False) -> Outcome:
    def fitted(law: GaussianMixture, points: int, samples: int) -> ModelStatistics:
        found = ModelStatistics.fit(law.denoiser(PROCESS), law.shape, points, samples, seed=1000 + seed)
        return ModelStatistics(found.lam, *(v.flip(0) for v in (found.k, found.s, found.b))) if null else found

    def error(law: GaussianMixture, solver: fk.Solver, grid: grids.Grid, exact: torch.Tensor) -> float:
        return float((fk.sample(law.denoiser(PROCESS), x1, solver=solver, grid=grid) - exact).norm(dim=1).median())

    deviation = 0.2 + 1.2 * uniform((1, 8), seed, stream="check")[0]
    mean = fk.noise((1, 8), seed, stream="check", index=1, dtype=torch.float64)
    gaussian = GaussianMixture([1.0], mean, torch.diag(deviation**2))
    x1 = fk.noise((128, 8), seed, dtype=torch.float64)
    exact = gaussian.flow(PROCESS, x1, 1.0, PROCESS.end)
    once = grids.uniform(1)
    errors = {n: error(gaussian, DPMSolverV3(statistics=fitted(gaussian, n, 32)), once, exact) for n in (100, 400)}
    ddim = error(gaussian, fk.DDIM(), once, exact)
    criteria = [
        Criterion("one step, 400 points", errors[400], "<=", 1e-4),
        Criterion("gain per doubling of the points", (errors[100] / errors[400]) ** 0.5, ">=", 4.0),
        Criterion("one step of DDIM", ddim, ">", 1.0),
    ]
    measured = {"one step, 400 points": errors[400], "one step, 100 points": errors[100]}
    baseline = {"one step of DDIM": ddim}

    law = mixture(16, 6, seed)
    statistics = fitted(law, 120, 256)
    x1 = fk.noise((256, 16), seed, dtype=torch.float64)
    exact = law.flow(PROCESS, x1, 1.0, PROCESS.end, tol=1e-8)
    for n in (5, 8, 10):
        grid = grids.quadratic(n)
        ours = error(law, DPMSolverV3(statistics=statistics), grid, exact)
        plain = error(law, DPMSolverV3(), grid, exact)
        measured[f"median error at {n}"] = ours
        measured[f"with corrector at {n}"] = error(law, DPMSolverV3(statistics=statistics, corrector=True), grid, exact)
        baseline[f"data prediction at {n}"] = plain
        baseline[f"DDIM at {n}"] = error(law, fk.DDIM(), grid, exact)
        criteria.append(Criterion(f"over data prediction at {n}", ours / plain, "<=", 0.75))
    return Outcome(measured, baseline, criteria)
