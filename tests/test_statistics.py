"""DPM-Solver-v3: degenerate statistics are known solvers, any statistics keep the order, constants survive the table."""

import math
from pathlib import Path

import pytest
import torch
from mixtures import dense, normal

import fokker as fk
from fokker import grids
from fokker.plan import Plan
from fokker.solve.adams import Adams
from fokker.solve.statistics import DPMSolverV3, ModelStatistics, differentiated

VP = fk.VP()
LAM = torch.linspace(-5.1, 4.7, 4001, dtype=torch.float64)


def flat(k: float, s: float, b: float) -> ModelStatistics:
    return ModelStatistics(LAM, *(torch.full((len(LAM), 2), v, dtype=torch.float64) for v in (k, s, b)))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("k, s, prediction", [(0.0, 0.0, "x0"), (1.0, -1.0, "eps")])
def test_flat_statistics_are_known_parametrisations(k: float, s: float, prediction: str, order: int) -> None:
    denoiser, x1, grid = dense().denoiser(VP), normal(16, 2, seed=4), grids.quadratic(2)
    ours = fk.sample(denoiser, x1, solver=DPMSolverV3(order=order, statistics=flat(k, s, 0.0)), grid=grid)
    known = fk.sample(denoiser, x1, solver=Adams(order, prediction, "lambda"), grid=grid)
    # what differs is the trapezoid over cells of h = 0.0025: h^2 / 12 of the largest term, which is the noise over alpha at
    # t = 1 (150) for eps, and grows with the weights of extrapolation
    size = (3 if prediction == "x0" else 450) * 4 ** (order - 1)
    assert float((ours - known).abs().max()) < 0.0025**2 / 12 * size


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_any_statistics_keep_the_order(order: int, corrector: bool) -> None:
    law, x = dense(seed=3), normal(48, 2, seed=5)
    t, s = VP.time(-3.0).item(), VP.time(3.0).item()
    exact = law.flow(VP, x, t, s)
    solver = DPMSolverV3(order=order, statistics=flat(0.3, -0.4, 0.5), corrector=corrector)
    errors = []
    for steps in (20, 40):
        out = fk.sample(law.denoiser(VP), x, solver=solver, grid=grids.logsnr(steps, start=t, end=s))
        errors.append(float((out - exact).norm(dim=1).median()))
    assert math.log2(errors[0] / errors[1]) > order - 0.25


def test_a_plan_with_constants_is_stored_and_read_again() -> None:
    x1, denoiser = normal(4, 2, seed=4), dense().denoiser(VP)
    plan = DPMSolverV3(statistics=flat(0.3, -0.4, 0.5)).plan(VP, grids.quadratic(3))
    again = Plan.from_json(plan.json())
    assert torch.equal(fk.sample(denoiser, x1, plan), fk.sample(denoiser, x1, again))
    assert "10" in plan.table()


def test_statistics_are_fitted_saved_and_read_again(tmp_path: Path) -> None:
    law = fk.laws.GaussianMixture([1.0], [[0.5, -1.0]], torch.diag(torch.tensor([0.09, 1.0], dtype=torch.float64)))
    found = ModelStatistics.fit(law.denoiser(VP), (2,), points=60, samples=8)
    alpha = torch.exp(found.lam) / torch.sqrt(1 + torch.exp(2 * found.lam))
    for i, variance in enumerate((0.09, 1.0)):
        k = alpha**2 * variance / (alpha**2 * variance + 1 - alpha**2)
        assert float((found.k[:, i] - k).abs().max()) < 1e-6
    found.save(tmp_path / "statistics.safetensors")
    assert ModelStatistics.load(tmp_path / "statistics.safetensors").digest == found.digest
    grid = grids.Times(torch.tensor([[1.0, 0.9], [0.1, 0.2]]))
    with pytest.raises(fk.FokkerError, match="one time for all samples"):
        DPMSolverV3(statistics=found).plan(VP, grid)


def test_differences_are_exact_for_quartics_on_any_grid() -> None:
    t = torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.4, 1.1, 1.3], dtype=torch.float64)
    assert float((differentiated(t, t[:, None] ** 4)[:, 0] - 4 * t**3).abs().max()) < 1e-12
