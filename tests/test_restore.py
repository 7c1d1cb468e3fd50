"""Restorers against the exact posterior, and hard consistency to the bit."""

import pytest
import torch
from laws_for_tests import F64

import fokker as fk
from fokker.restore.operators import Blur, Downsample, Mask, Matrix

DIM = 6
ROOT = fk.noise((DIM, DIM), seed=3, dtype=F64)
COV = ROOT @ ROOT.T / DIM + 0.1 * torch.eye(DIM, dtype=F64)
PRIOR = fk.laws.GaussianMixture([1.0], fk.noise((1, DIM), seed=4, dtype=F64), COV[None])
MATRIX = fk.noise((3, DIM), seed=5, dtype=F64)
STD = 0.3


def measured(n: int) -> torch.Tensor:
    return (MATRIX @ fk.noise((1, DIM), seed=6, dtype=F64)[0]).expand(n, -1)


def test_conjugate_gradients_solve_what_closed_forms_solve():
    operator = Matrix(MATRIX)
    v = fk.noise((4, 3), seed=7, dtype=F64)
    dense = torch.linalg.solve(2.0 * MATRIX @ MATRIX.T + 0.5 * torch.eye(3, dtype=F64), v.T).T
    assert torch.allclose(operator.solve(v, 2.0, 0.5), dense, atol=1e-10)
    assert torch.allclose(fk.restore.Operator.solve(operator, v, 2.0, 0.5), dense, atol=1e-10)


@pytest.mark.parametrize("process", [fk.VP(), fk.EDM(), fk.Flow()], ids=lambda p: p.name)
def test_pseudoinverse_guidance_is_exact_on_a_white_gaussian(process):
    # for N(0, I) the posterior variance of x_0 is sigma^2 / (alpha^2 + sigma^2) I, which is what the method assumes
    law = fk.laws.GaussianMixture([1.0], torch.zeros(1, DIM, dtype=F64), 1.0)
    y = measured(5)
    posterior = law.posterior(MATRIX, y[0], STD)
    x = 1.5 * fk.noise((5, DIM), seed=8, dtype=F64)
    for t in (0.2, 0.5, 0.8):
        belief = fk.restore.PiGDM(law.denoiser(process), Matrix(MATRIX), y, STD)(x, t)
        assert torch.allclose(belief, posterior.denoiser(process)(x, t), atol=1e-9), t


def restored(name: str, n: int) -> tuple[torch.Tensor, fk.laws.GaussianMixture]:
    """(samples of a restorer under the ODE, the exact posterior)."""
    process, y = fk.VP(), measured(n)
    denoiser = fk.restore.get(name, PRIOR.denoiser(process), Matrix(MATRIX), y, noise_std=STD)
    plan = fk.solve.get("dpmpp-2m").plan(process, fk.grids.logsnr(60))
    x1 = process.start(fk.noise((n, DIM), seed=9, dtype=F64))
    return fk.sample(denoiser, x1, plan), PRIOR.posterior(MATRIX, y[0], STD)


def test_moment_matching_samples_the_posterior_of_a_gaussian():
    # its covariance of x_0 given x_t is the denoiser's own Jacobian, which is exact here
    n = 2048
    x, posterior = restored("mmps", n)
    spread = posterior.cov().diagonal().sqrt()
    assert bool(((x.mean(0) - posterior.mean()).abs() < 5 * spread / n**0.5 + 0.01 * spread).all())
    assert torch.allclose(torch.cov(x.T), posterior.cov(), atol=float(5 * spread.max() ** 2 * (2 / n) ** 0.5))


@pytest.mark.parametrize("name", ["ddnm", "pigdm"])
def test_restorers_that_assume_a_white_prior_still_meet_the_measurement(name):
    x, posterior = restored(name, 256)
    misfit = (x @ MATRIX.T - measured(256)).square().mean().sqrt()
    assert misfit < 3 * STD
    # what they assume is wrong here, and shows: the null of the test above
    assert (x.mean(0) - posterior.mean()).norm() > 0.5


def test_known_pixels_are_the_measurement_to_the_bit():
    law = fk.laws.lowrank(dim=48, components=3, rank=4, std=0.3)
    law = fk.laws.GaussianMixture(law.weights, law.means, (*law.form[:2], law.variance.sqrt()), shape=(3, 4, 4))
    mask = Mask(0.4, (3, 4, 4), seed=1)
    truth = law.sample(4, seed=2)
    process = fk.VP()
    denoiser = fk.restore.DDNM(law.denoiser(process), mask, mask(truth))
    for solver in ("ddim", "heun", "dpmpp-2m", "unipc", "adams"):
        x1 = process.start(fk.noise((4, 3, 4, 4), dtype=F64))
        x = fk.sample(denoiser, x1, solver=solver, steps=6, end=0)
        known = mask.mask.expand_as(x) > 0
        assert torch.equal(x[known], truth[known]), solver
        assert not torch.allclose(x, truth)


@pytest.mark.parametrize("operator", [Blur(0.8), Downsample(2), Mask(0.5, (1, 6, 8))], ids=lambda a: type(a).__name__)
def test_hard_consistency_holds_for_every_operator(operator):
    law = fk.laws.lowrank(dim=48, components=2, rank=3, std=0.3)
    law = fk.laws.GaussianMixture(law.weights, law.means, (*law.form[:2], law.variance.sqrt()), shape=(1, 6, 8))
    truth, process = law.sample(3, seed=1), fk.EDM()
    y = operator(truth)
    denoiser = fk.restore.DDNM(law.denoiser(process), operator, y)
    x = fk.sample(denoiser, process.start(fk.noise((3, 1, 6, 8), dtype=F64)), solver="dpmpp-2m", steps=8, end=0)
    assert torch.allclose(operator(x), y, atol=1e-5)


def test_a_blur_is_the_convolution_it_says():
    line = torch.zeros(1, 1, 1, 9, dtype=F64)
    line[..., 4] = 1
    kernel = torch.tensor([[1.0, 2.0, 5.0]], dtype=F64)
    out = Blur(kernel)(line)[0, 0, 0]
    assert torch.allclose(out, torch.tensor([0, 0, 0, 1, 2, 5, 0, 0, 0], dtype=F64) / 8, atol=1e-12)


def test_downsampling_is_the_mean_of_blocks():
    x = torch.arange(16, dtype=F64).reshape(1, 1, 4, 4)
    assert Downsample(2)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
