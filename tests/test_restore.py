"""Measurements and restorers against exact posteriors: with a Gaussian prior every number is known in closed form."""

import functools
import math

import pytest
import torch
from laws_for_tests import F64, OPERATORS, PROCESSES, SHAPE, anchor, cond, made, start
from torch import Tensor

import fokker as fk
from fokker import catalogue
from fokker.errors import FokkerError
from fokker.laws import GaussianMixture
from fokker.restore import Operator
from fokker.restore.operators import Blur, Downsample, Mask, Matrix
from fokker.restore.posterior import DDNM, PiGDM, Restorer

VP = fk.VP()
DIM = math.prod(SHAPE)
# unit variance, for which sigma^2 / (alpha^2 + sigma^2) is the exact spread of x_0 given x_t
UNIT = GaussianMixture([1.0], torch.linspace(-1, 1, DIM, dtype=F64).reshape(1, *SHAPE), 1.0)
SINGULAR = {"blur"}  # nearly: its inverse amplifies rounding by the smallest gain it keeps
every = pytest.mark.parametrize("process", [name for name in PROCESSES if name != "pfgm-pp"])
operators = pytest.mark.parametrize("name", OPERATORS)


class Plain(Operator):
    """The same measurement with nothing but forward and adjoint: everything else by conjugate gradients."""

    def __init__(self, inner: Operator) -> None:
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(y)


def dense(operator: Operator) -> Tensor:
    """The matrix of an operator on flattened samples, (measurements, DIM)."""
    return operator(torch.eye(DIM, dtype=F64).reshape(DIM, *SHAPE)).flatten(1).T


def posterior(operator: Operator, y: Tensor, noise_std: float, prior: GaussianMixture = UNIT) -> GaussianMixture:
    matrix = dense(operator)
    rows = matrix.abs().sum(1) > 1e-12  # unknown pixels of a mask measure nothing
    return prior.posterior(matrix[rows], y.flatten()[rows], noise_std)


# --- operators -----------------------------------------------------------------------------------------------------------


@operators
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_adjoint_inverse_and_solve_are_those_of_the_matrix(name, dtype):
    operator, A = OPERATORS[name], dense(OPERATORS[name])
    x = fk.noise((3, *SHAPE), seed=1, dtype=dtype)
    y = operator(x)
    tol = 1e-9 if dtype == F64 else 2e-4
    assert y.dtype == dtype and operator.adjoint(y).dtype == dtype and operator.pinv(y).shape == x.shape
    flat = y.double().flatten(1)
    assert torch.allclose(operator.adjoint(y).double().flatten(1), flat @ A, atol=tol)
    assert operator.check((2, *SHAPE), seed=3) < 1e-13
    inverse = torch.linalg.pinv(A, rtol=1e-6)
    size = float(torch.linalg.matrix_norm(inverse, 2))
    assert torch.allclose(operator.pinv(y).double().flatten(1), flat @ inverse.T, atol=tol * size)
    gram = A @ A.T
    for a, b in ((1.0, 0.3), (0.02, 0.5), (2.0, 1e-2)):
        exact = torch.linalg.solve(a * gram + b * torch.eye(len(gram), dtype=F64), flat.T).T
        assert torch.allclose(operator.solve(y, a, b).double().flatten(1), exact, atol=tol / b)


@operators
def test_each_sample_may_have_its_own_gain(name):
    operator = OPERATORS[name]
    v = operator(fk.noise((3, *SHAPE), seed=1, dtype=F64))
    a, b = (torch.tensor(c, dtype=F64).reshape(3, *[1] * (v.ndim - 1)) for c in ([1.0, 0.1, 3.0], [0.5, 0.2, 0.7]))
    together = operator.solve(v, a, b)
    for k in range(3):
        assert torch.allclose(together[k], operator.solve(v[k : k + 1], float(a[k]), float(b[k]))[0], atol=1e-12)


@operators
def test_conjugate_gradients_stand_in_for_closed_forms(name):
    operator, plain = OPERATORS[name], Plain(OPERATORS[name])
    x, other = fk.noise((3, *SHAPE), seed=1, dtype=F64), fk.noise((3, *SHAPE), seed=2, dtype=F64)
    y = operator(x)
    assert torch.allclose(plain.solve(y, 0.7, 0.1), operator.solve(y, 0.7, 0.1), atol=1e-8)
    if name not in SINGULAR:
        assert torch.allclose(plain.pinv(y), operator.pinv(y), atol=1e-8)
        assert torch.allclose(plain.consistent(other, y), operator.consistent(other, y), atol=1e-8)
    assert torch.isfinite(plain.solve(y.float(), 1.0, 0.1)).all()
    assert not plain.solve(torch.zeros_like(y), 1.0, 0.1).any()


@operators
def test_consistent_agrees_and_moves_least(name):
    operator = OPERATORS[name]
    x, truth = fk.noise((3, *SHAPE), seed=1, dtype=F64), fk.noise((3, *SHAPE), seed=2, dtype=F64)
    y = operator(truth)
    near = operator.consistent(x, y)
    assert torch.allclose(operator(near), y, atol=1e-6)
    # what moved lies in the row space: it has nothing in common with what the measurement does not see
    unseen = truth - operator.pinv(operator(truth))
    assert ((near - x) * unseen).flatten(1).sum(1).abs().max() < 1e-6


@operators
def test_data_times_three_is_measurement_times_three(name):
    operator = OPERATORS[name]
    x = fk.noise((2, *SHAPE), seed=1, dtype=F64)
    for f, v in ((operator, x), (operator.adjoint, operator(x)), (operator.pinv, operator(x))):
        assert torch.allclose(f(3 * v), 3 * f(v), rtol=1e-10, atol=1e-10)
        assert torch.allclose(f(v)[1:], f(v[1:]), atol=1e-12)


def test_operators_know_signals_of_any_rank():
    for ndim, shape in ((1, (3, 12)), (2, (3, 6, 12)), (3, (1, 4, 6, 12))):
        for operator in (Blur(0.7, ndim=ndim), Downsample(2, ndim=ndim), Mask(0.4, shape=shape, seed=2)):
            assert operator.check((2, *shape)) < 1e-13
            x = fk.noise((2, *shape), dtype=F64)
            assert torch.allclose(operator(operator.pinv(operator(x))), operator(x), atol=1e-6)


def test_blur_is_circular_convolution():
    kernel = torch.tensor([[0.0, 1.0, 0.0], [2.0, 4.0, 0.0], [0.0, 1.0, 0.0]], dtype=F64)
    x = fk.noise((1, 1, 5, 7), dtype=F64)
    expected = sum(kernel[i, j] / 8 * torch.roll(x, (i - 1, j - 1), (2, 3)) for i in range(3) for j in range(3))
    assert torch.allclose(Blur(kernel)(x), expected, atol=1e-13)
    # it is not symmetric, so its adjoint is another blur
    assert Blur(kernel).check((2, 1, 5, 7)) < 1e-13
    # a kernel larger than the picture wraps around as often as it must, and keeps the mean
    assert Blur(3.0)(x).mean() == pytest.approx(x.mean().item(), abs=1e-12)


def test_downsampling_is_the_mean_of_blocks():
    x = fk.noise((2, 3, 4, 6), dtype=F64)
    assert torch.allclose(Downsample(2)(x), torch.nn.functional.avg_pool2d(x, 2), atol=1e-14)


def test_masks():
    mask = Mask(0.25, shape=(3, 40, 50), seed=1)
    kept = mask.mask.mean().item()
    assert kept == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 2000)) and mask.mask.shape == (1, 40, 50)
    assert not torch.equal(mask.mask, Mask(0.25, shape=(3, 40, 50), seed=2).mask)
    given = torch.tensor([1.0, 0.0, 1.0])
    assert Mask(given)(torch.ones(2, 3)).tolist() == [[1, 0, 1]] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(0.5), "needs shape="),
        (lambda: Mask(1.5, shape=SHAPE), "keep=1.5"),
        (lambda: Mask(torch.tensor([0.5])), "zeros"),
        (lambda: Blur(0.0), "blur of 0.0"),
        (lambda: Downsample(0), "factor=0"),
        (lambda: Downsample(4)(torch.ones(1, 1, 6, 8)), r"size \(6, 8\) is not a multiple of the factor 4"),
        (lambda: Matrix(torch.ones(3)), r"not a tensor of shape \(3,\)"),
        (lambda: DDNM(UNIT.denoiser(VP), OPERATORS["mask"], torch.ones(1), -1.0), "noise_std=-1.0"),
        (lambda: fk.restore.get("ddmn", UNIT.denoiser(VP), OPERATORS["mask"], torch.ones(1)), "did you mean 'ddnm'"),
        (lambda: made("restorer", "ddnm", UNIT.denoiser(VP), OPERATORS["mask"], torch.ones(1), noise=1), "'noise_std'"),
    ],
)
def test_what_cannot_be_measured_is_said(make, message):
    with pytest.raises(FokkerError, match=message):
        make()


# --- beliefs -------------------------------------------------------------------------------------------------------------


@every
@operators
@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_beliefs_are_exact_on_a_gaussian_prior_of_unit_variance(name, restorer, process):
    """E[x_0 | x_t, y] is the denoiser of the exact posterior law, at every time, at the noise end too."""
    process, operator, noise_std = PROCESSES[process], OPERATORS[name], 0.2
    x_0 = UNIT.sample(1, seed=5)
    y = operator(x_0) + noise_std * operator(fk.noise((1, *SHAPE), seed=6, dtype=F64))
    truth = posterior(operator, y, noise_std).denoiser(process)
    restored = restorer(UNIT.denoiser(process), operator, y, noise_std)
    for t in (0.05, 0.4, 0.9, 1.0):
        x_t = process.add_noise(x_0, fk.noise((1, *SHAPE), seed=7, dtype=F64), t, anchor(process, x_0))
        given = cond(process, x_t)
        assert torch.allclose(restored(x_t, t, **given), truth(x_t, t, **given), atol=1e-8)


@operators
def test_without_noise_ddnm_is_exact_on_any_isotropic_prior(name):
    operator = OPERATORS[name]
    prior = GaussianMixture([1.0], UNIT.means.reshape(1, *SHAPE), 0.3)
    x_0 = prior.sample(1, seed=5)
    y = operator(x_0)
    restored = DDNM(prior.denoiser(VP), operator, y)
    x_t = VP.add_noise(x_0, fk.noise((1, *SHAPE), seed=7, dtype=F64), 0.5)
    truth = posterior(operator, y, 0.0, prior).denoiser(VP)(x_t, 0.5)
    assert torch.allclose(restored(x_t, 0.5), truth, atol=1e-5)


@operators
@pytest.mark.parametrize("restorer", catalogue.names("restorer"))
def test_a_time_for_each_sample(name, restorer):
    operator, restorer = OPERATORS[name], functools.partial(fk.restore.get, restorer)
    x_0 = UNIT.sample(4, seed=5)
    y = operator(x_0)
    for process in (VP, fk.Flow()):
        times = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=F64)
        x_t = process.add_noise(x_0, fk.noise((4, *SHAPE), seed=7, dtype=F64), times)
        together = restorer(UNIT.denoiser(process), operator, y, noise_std=0.1)(x_t, times)
        for k in range(4):
            own = restorer(UNIT.denoiser(process), operator, y[k : k + 1], noise_std=0.1)
            assert torch.allclose(own(x_t[k : k + 1], float(times[k]))[0], together[k], atol=1e-9)


@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_times_that_differ_within_a_sample_are_refused(restorer):
    tokens = torch.full((4, 2), 0.5) + torch.tensor([0.0, 0.1])
    x = UNIT.sample(4)
    with pytest.raises(FokkerError, match="one time per sample"):
        restorer(UNIT.denoiser(VP), OPERATORS["mask"], x, 0.1)(x, tokens)


@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_two_measurements_stack_to_both(restorer):
    """Masks without common pixels: a restorer around a restorer is the posterior under both."""
    first = (torch.arange(DIM, dtype=F64).reshape(SHAPE) % 3 == 0).double()
    second = (torch.arange(DIM, dtype=F64).reshape(SHAPE) % 3 == 1).double()
    x_0 = UNIT.sample(2, seed=5)
    a, b, both = Mask(first), Mask(second), Mask(first + second)
    t, x_t = 0.6, VP.add_noise(x_0, fk.noise((2, *SHAPE), seed=7, dtype=F64), 0.6)
    stacked = restorer(restorer(UNIT.denoiser(VP), a, a(x_0), 0.3), b, b(x_0), 0.3)(x_t, t)
    assert torch.allclose(stacked, restorer(UNIT.denoiser(VP), both, both(x_0), 0.3)(x_t, t), atol=1e-9)


@operators
@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_restorers_are_linear_in_belief_and_measurement(name, restorer):
    """Data three times as large, restored three times as large, with a denoiser that scales."""
    operator = OPERATORS[name]
    scaling = fk.as_denoiser(lambda x, t: 0.7 * x, VP)
    x, y = fk.noise((2, *SHAPE), dtype=F64), operator(fk.noise((2, *SHAPE), seed=1, dtype=F64))
    for noise_std in (0.0, 0.3):
        once = restorer(scaling, operator, y, noise_std)(x, 0.5)
        thrice = restorer(scaling, operator, 3 * y, noise_std)(3 * x, 0.5)
        assert torch.allclose(thrice, 3 * once, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_restorers_keep_dtype_and_cost_one_evaluation(restorer):
    operator = OPERATORS["mask"]
    y = operator(UNIT.sample(3, seed=5))  # float64, whatever the state
    for dtype in (F64, torch.float32, torch.bfloat16):
        trace = fk.run(
            restorer(UNIT.denoiser(VP), operator, y, 0.1), start(VP, 3, SHAPE, dtype), solver="ddim", steps=4
        )
        assert trace.x0.dtype == dtype and trace.nfe == 4 and bool(torch.isfinite(trace.x0).all())


def test_pull_back_is_the_jacobian_transposed():
    from fokker.restore.posterior import pull_back

    law = GaussianMixture([0.4, 0.6], [[0.5, -0.2], [-0.8, 0.3]], 0.2)
    x, w = fk.noise((3, 2), seed=1, dtype=F64), fk.noise((3, 2), seed=2, dtype=F64)
    belief, pulled = pull_back(law.denoiser(VP), x, 0.4, lambda D: w, {})
    assert torch.allclose(belief, law.denoiser(VP)(x, 0.4)) and not pulled.requires_grad
    # the Jacobian of the denoiser is alpha / sigma^2 times the posterior covariance, which the law knows
    alpha, _, sigma = VP.at(0.4)
    expected = alpha / sigma**2 * (law.posterior_cov(x, 0.4, VP) @ w[..., None])[..., 0]
    assert torch.allclose(pulled, expected, atol=1e-10)


# --- samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "heun", "dpmpp-3m"])
def test_known_pixels_are_equal_to_the_bit(solver, dtype):
    operator = OPERATORS["mask"]
    y = operator(UNIT.sample(2, seed=5)).to(dtype)
    known = operator.mask.expand(2, *SHAPE) > 0
    # also where the belief is far from it: no arithmetic gives back the bits
    belief = DDNM(UNIT.denoiser(VP), operator, y)(start(VP, 2, SHAPE, dtype), 0.9)
    assert torch.equal(belief[known], y[known])
    out = fk.sample(DDNM(UNIT.denoiser(VP), operator, y), start(VP, 2, SHAPE, dtype), solver=solver, steps=6, end=0)
    assert torch.equal(out[known], y[known]) and not torch.equal(out[~known], y[~known])
    guided = fk.guide.CFG(DDNM(UNIT.denoiser(VP), operator, y), 1.0)
    assert torch.equal(fk.sample(guided, start(VP, 2, SHAPE, dtype), solver=solver, steps=6, end=0)[known], y[known])


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ddpm"])
@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_samples_have_the_mean_and_covariance_of_the_posterior(restorer, solver):
    """2,000 samples to 5 standard errors and the steps' own bias: 3 per cent of 24 deterministic ones, 8 of ancestral ones."""
    n, noise_std = 2000, 0.5
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
    prior = GaussianMixture([1.0], [[0.5, -0.5, 0.2]], 1.0)
    y = torch.tensor([1.5, -0.7], dtype=F64)
    truth = prior.posterior(matrix, y, noise_std)
    restored = restorer(prior.denoiser(VP), Matrix(matrix), y.expand(n, 2), noise_std)
    steps, bias = (24, 0.03) if solver == "dpmpp-2m" else (40, 0.08)
    out = fk.sample(restored, fk.noise((n, 3), seed=1, dtype=F64), solver=solver, steps=steps, end=0)
    assert (out.mean(0) - truth.mean()).abs().max() < 5 / math.sqrt(n) + bias
    assert (torch.cov(out.T) - truth.cov()).abs().max() < 5 * math.sqrt(2 / n) + bias


@pytest.mark.parametrize("restorer", [DDNM, PiGDM])
def test_the_spread_of_the_data_is_asked_of_the_denoiser(restorer):
    """Exact on isotropic data of any variance; told a wrong one, or on data that are not isotropic, off."""
    operator = OPERATORS["mask"]
    x_t = VP.add_noise(UNIT.sample(1, seed=5), fk.noise((1, *SHAPE), seed=7, dtype=F64), 0.5)

    def off(prior: GaussianMixture, **options: float) -> float:
        y = operator(prior.sample(1, seed=5))
        truth = posterior(operator, y, 0.3, prior).denoiser(VP)(x_t, 0.5)
        return float((restorer(prior.denoiser(VP), operator, y, 0.3, **options)(x_t, 0.5) - truth).abs().max())

    narrow = GaussianMixture([1.0], UNIT.means.reshape(1, *SHAPE), 0.2)
    assert off(narrow) < 1e-12 and off(narrow, data_std=0.2**0.5) < 1e-12
    assert off(narrow, data_std=1.0) > 1e-3
    uneven = torch.diag(torch.linspace(0.05, 0.35, DIM, dtype=F64))
    assert off(GaussianMixture([1.0], UNIT.means.reshape(1, *SHAPE), uneven[None])) > 1e-3
    # a network that was told, one that was not
    assert restorer(narrow.denoiser(VP), operator, x_t).spread == pytest.approx(0.2**0.5)
    assert restorer(fk.as_denoiser(lambda x, t: x, VP), operator, x_t).spread == 1.0
    assert issubclass(restorer, Restorer) and not restorer.stackable
    with pytest.raises(FokkerError, match="give the standard deviation of the data"):
        restorer(narrow.denoiser(VP), operator, x_t, data_std=-1.0)
