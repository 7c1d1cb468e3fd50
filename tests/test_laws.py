"""Exact laws against independent answers: quadrature, autograd, brute force on grids, other integrators, Monte Carlo."""

import math

import pytest
import torch
from torch import Tensor

from fokker import laws
from fokker.anchored import BrownianBridge, MeanReverting, ResidualShift
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.laws import Empirical, GaussianMixture
from fokker.laws import law as contract
from fokker.process import EDM, PFGMPP, VE, VP, Cosine, Flow, Process, SubVP

PLAIN = [VP(), EDM(), VE(), Cosine(), Flow(), SubVP()]
ANCHORED = [MeanReverting(), ResidualShift(), BrownianBridge()]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return noise(shape, seed, stream="check", dtype=torch.float64)


def dense(dim: int = 2, components: int = 3, seed: int = 0, labels: bool = False) -> GaussianMixture:
    """A mixture with dense covariances, weights and means of no symmetry."""
    factor = normal(components, dim, dim, seed=seed) * 0.5
    covs = factor @ factor.mT + 0.05 * torch.eye(dim, dtype=torch.float64)
    weights = torch.linspace(1, 2, components, dtype=torch.float64)
    return GaussianMixture(
        weights, 1.2 * normal(components, dim, seed=seed + 1), covs, torch.arange(components) % 2 if labels else None
    )


def low_rank(dim: int = 9, components: int = 4, rank: int = 2, seed: int = 0) -> GaussianMixture:
    return laws.lowrank(dim, components, rank, seed=seed, std=0.2)


def as_dense(law: GaussianMixture) -> GaussianMixture:
    return GaussianMixture(law.weights, law.means, law.covs, law.labels, law.shape)


def grid(limit: float = 9.0, n: int = 601) -> tuple[Tensor, float]:
    """Points (n^2, 2) of a square grid, and the area of a cell: the trapezoid rule, exact to rounding for smooth tails."""
    axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


def close(a: Tensor, b: Tensor, tol: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tol * (1 + float(b.abs().max()))


# --- density, score, denoiser ------------------------------------------------------------------------------------


def test_density_is_torchs_own_and_integrates_to_one():
    law = dense()
    points, cell = grid()
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(law.weights), torch.distributions.MultivariateNormal(law.means, law.covs)
    )
    close(law.log_prob(points), theirs.log_prob(points), 1e-11)
    assert float(law.log_prob(points).exp().sum() * cell) == pytest.approx(1, abs=1e-9)
    close((law.log_prob(points).exp() @ points) * cell, law.mean(), 1e-9)


@pytest.mark.parametrize("process", PLAIN + ANCHORED, ids=lambda p: p.name)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.8])
def test_tweedie_and_autograd_agree(process: Process, t: float):
    """score = (alpha D + beta y - x) / sigma^2 = grad log p_t."""
    alpha, beta, sigma = process.at(t)
    for law in (dense(), low_rank(), as_dense(low_rank())):
        y = normal(5, law.dim, seed=7) if process.anchored else None
        clean = law.sample(5, seed=3)
        x = process.add_noise(clean, normal(5, law.dim, seed=4), t, y).requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob_t(x, t, process, y=y).sum(), x)
        cond = {} if y is None else {"y": y}
        belief = law.denoiser(process)(x, t, **cond)
        tweedie = (alpha * belief + (0 if y is None else beta * y) - x) / sigma**2
        close(law.score(x, t, process, y=y).detach(), gradient, 1e-9)
        # the subtraction loses digits where alpha D and x are nearly equal
        close(tweedie.detach(), gradient, 1e-14 * float(x.detach().abs().max()) / sigma**2 + 1e-9)


@pytest.mark.parametrize(("process", "t"), [(VP(), 0.3), (EDM(), 0.02), (Flow(), 0.5), (MeanReverting(), 0.4)])
def test_denoiser_is_the_brute_force_average(process: Process, t: float):
    law = dense()
    points, cell = grid()
    alpha, beta, sigma = process.at(t)
    y = torch.tensor([0.4, -1.0], dtype=torch.float64) if process.anchored else torch.zeros(2, dtype=torch.float64)
    x = normal(6, 2, seed=5)
    away = (x[:, None] - beta * y - alpha * points).square().sum(-1) / (2 * sigma**2)
    joint = law.log_prob(points) - away
    cond = {"y": y.expand(6, 2)} if process.anchored else {}
    close(law.denoiser(process)(x, t, **cond), torch.softmax(joint, 1) @ points, 1e-10)
    total = torch.logsumexp(joint, 1) + math.log(cell) - math.log(2 * math.pi * sigma**2)
    close(law.log_prob_t(x, t, process, y=y.expand(6, 2) if process.anchored else None), total, 1e-10)


@pytest.mark.parametrize("dof", [3.0, 128.0])
def test_students_kernel_by_brute_force(dof: float):
    """PFGM++: E[x_0 | x] under (|x - x_0|^2 + sigma^2 D)^(-(N + D) / 2)."""
    law, process, t = dense(), PFGMPP(D=dof), 0.01
    sigma = process.at(t)[2]
    points, _ = grid(12, 901)
    x = normal(6, 2, seed=5)
    kernel = -(2 + dof) / 2 * torch.log1p((x[:, None] - points).square().sum(-1) / (dof * sigma**2))
    close(law.denoiser(process)(x, t), torch.softmax(law.log_prob(points) + kernel, 1) @ points, 1e-9)
    narrow = GaussianMixture(law.weights, law.means, 1e-16)
    data = Empirical(law.means, weights=law.weights)
    close(narrow.denoiser(process)(x, t), data.denoiser(process)(x, t), 1e-10)
    close(narrow.log_prob_t(x, t, process), data.log_prob_t(x, t, process), 1e-10)
    close(narrow.score(x, t, process), data.score(x, t, process), 1e-10)


def test_low_rank_equals_dense():
    law = low_rank()
    same = as_dense(law)
    x = law.sample(20, seed=1) + 0.3 * normal(20, 9)
    for t in (0.05, 0.5, 0.95):
        close(law.denoiser(VP())(x, t), same.denoiser(VP())(x, t), 1e-12)
        close(law.log_prob_t(x, t, VP()), same.log_prob_t(x, t, VP()), 1e-12)
        close(law.posterior_cov(x, t, VP()), same.posterior_cov(x, t, VP()), 1e-12)
    close(law.cov(), same.cov(), 1e-12)
    close(law.flow(VP(), x, 0.7, 0.1), same.flow(VP(), x, 0.7, 0.1), 1e-10)
    wide = GaussianMixture([1.0, 2.0], normal(2, 9), torch.tensor([0.3, 0.7]))
    close(wide.denoiser(VP())(x, 0.4), as_dense(wide).denoiser(VP())(x, 0.4), 1e-12)


def test_far_from_the_origin_no_digits_are_lost():
    law = dense(3)
    far = law.affine(1.0, 1e6)
    x = law.sample(10) + 0.1 * normal(10, 3)
    here, there = law.denoiser(VE())(x, 0.3), far.denoiser(VE())(x + 1e6, 0.3)
    close(there - 1e6, here, 1e-8)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), BrownianBridge()], ids=lambda p: p.name)
def test_both_ends_of_time(process: Process):
    """No noise: x itself (over alpha). No signal: the prior's mean."""
    law = low_rank()
    cond = {"y": torch.zeros(4, 9, dtype=torch.float64)} if process.anchored else {}
    x = normal(4, 9)
    close(law.denoiser(process)(x, 0.0, **cond), x, 1e-12)
    each = torch.full((4,), 0.0, dtype=torch.float64)
    close(law.denoiser(process)(x, each, **cond), x, 1e-12)
    if process.at(1.0)[0] == 0:
        close(law.denoiser(process)(x, 1.0, **cond), law.mean().expand(4, 9), 1e-12)
        close(law.denoiser(process)(x, each + 1, **cond), law.mean().expand(4, 9), 1e-12)


def test_jacobian_of_the_denoiser_is_the_posterior_covariance():
    t = 0.3
    alpha, _, sigma = VP().at(t)
    for law in (dense(3), low_rank(6)):
        denoiser, x = law.denoiser(VP()), law.sample(4, seed=2) * 0.9
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row, d=denoiser: d(row[None], t)[0]))(x)
        close(jacobian * sigma**2 / alpha, law.posterior_cov(x, t, VP()), 1e-11)
        forward = torch.func.jvp(lambda z, d=denoiser: d(z, t), (x,), (x,))[1]
        close(forward, (jacobian @ x[..., None])[..., 0], 1e-11)


def test_denoiser_is_differentiable_in_time():
    law, x = dense(3), normal(4, 3)
    t = torch.full((4,), 0.4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(law.denoiser(VP())(x, t).sum(), t)
    h = 1e-5
    numeric = (law.denoiser(VP())(x, 0.4 + h) - law.denoiser(VP())(x, 0.4 - h)).sum(1) / (2 * h)
    close(gradient, numeric, 1e-7)


# --- borders: shapes, dtypes, batches, conditions ------------------------------------------------------------------


def test_batch_is_alone_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    law = low_rank()
    x, t = normal(37, 9), torch.linspace(0.05, 0.95, 37, dtype=torch.float64)
    denoiser = law.denoiser(VP())
    whole, flowed = denoiser(x, t), law.flow(VP(), x, t, 0.01)
    alone = torch.cat([denoiser(x[i : i + 1], t[i : i + 1]) for i in range(37)])
    close(whole, alone, 1e-14)
    close(torch.cat([denoiser(x[i : i + 1], float(t[i])) for i in range(37)]), alone, 1e-13)
    flowed_alone = torch.cat([law.flow(VP(), x[i : i + 1], float(t[i]), 0.01) for i in range(0, 37, 9)])
    close(flowed[::9], flowed_alone, 1e-11)
    samples = law.sample(37, seed=5)
    covariance = law.posterior_cov(x, t, VP())
    monkeypatch.setattr(contract, "BUDGET", 100)
    close(denoiser(x, t), whole, 1e-14)
    close(law.posterior_cov(x, t, VP()), covariance, 1e-14)
    close(law.sample(37, seed=5), samples, 1e-14)


def test_shapes_and_leading_dimensions():
    flat = low_rank(12)
    law = GaussianMixture(flat.weights, flat.means, (*flat.form[:2], flat.variance.sqrt()), shape=(3, 2, 2))
    x, t = normal(5, 4, 3, 2, 2), torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = law.denoiser(VP())(x, t)
    assert out.shape == x.shape and law.log_prob(x).shape == (5, 4) and law.sample(2).shape == (2, 3, 2, 2)
    close(out.reshape(20, 12), flat.denoiser(VP())(x.reshape(20, 12), t.reshape(20)), 1e-13)
    close(law.denoiser(VP())(x, t[:, :1]), law.denoiser(VP())(x, t[:, :1].expand(5, 4)), 1e-13)
    close(law.denoiser(VP())(x, t[:, :, None, None, None]), out, 1e-13)
    assert GaussianMixture([1.0], torch.zeros(1, 2, 3), 1.0).shape == (2, 3)
    with pytest.raises(FokkerError, match="does not end with the law's shape"):
        law.denoiser(VP())(normal(5, 12), 0.5)


def test_a_time_per_coordinate_is_a_measurement():
    """Clean and noisy tokens side by side: x_t = A x_0 + S eps with A, S diagonal is linear and Gaussian."""
    for law in (dense(4), low_rank(8, rank=2)):
        x, dim = normal(3, law.dim), law.dim
        t = torch.rand(3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp_min(0.05)
        belief, score = law.denoiser(VP())(x, t), law.score(x, t, VP())
        alpha, sigma = VP().alpha(t), VP().sigma(t)
        for i in range(3):
            posterior = law.posterior(torch.diag(alpha[i]), x[i], sigma[i])
            close(belief[i], posterior.mean(), 1e-10)
        close(score, (alpha * belief - x) / sigma**2, 1e-9)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(law.log_prob_t(x, t, VP()).sum(), x)
        close(score, gradient, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_states_are_computed_in_float64(dtype: torch.dtype):
    law = low_rank()
    x = normal(16, 9).to(dtype)
    out = law.denoiser(EDM())(x, 0.001)
    assert out.dtype == dtype
    exact = law.denoiser(EDM())(x.double(), 0.001)
    close(out.double(), exact, torch.finfo(dtype).eps)
    t = torch.full((16,), 0.001, dtype=torch.float32)
    close(law.denoiser(EDM())(x, t).double(), exact, 4 * torch.finfo(dtype).eps)


def test_labels_and_logits():
    law = dense(2, 5, labels=True)
    denoiser, x = law.denoiser(VP()), normal(8, 2)
    plain = denoiser(x, 0.4)
    one = law.conditional(1)
    close(denoiser(x, 0.4, label=torch.ones(8, dtype=torch.int64)), one.denoiser(VP())(x, 0.4), 1e-12)
    close(denoiser(x, 0.4, **denoiser.null(label=torch.ones(8, dtype=torch.int64))), plain, 1e-14)
    mixed = torch.tensor([0, 1, -1, 0, 1, -1, 0, 1])
    out = denoiser(x, 0.4, label=mixed)
    close(out[mixed == -1], plain[mixed == -1], 1e-14)
    close(out[mixed == 0], law.conditional(0).denoiser(VP())(x, 0.4)[mixed == 0], 1e-12)
    # log weights as a condition: zeros are none, and they select what labels select
    logits = torch.where(law.labels == 1, 0.0, -torch.inf).expand(8, 5)
    close(denoiser(x, 0.4, logits=logits), one.denoiser(VP())(x, 0.4), 1e-12)
    close(denoiser(x, 0.4, **denoiser.null(logits=torch.ones(8, 5))), plain, 1e-14)
    # Bayes: p(x) = sum_c p(c) p(x | c)
    shares = torch.stack([law.weights[law.labels == c].sum().log() + law.log_prob(x, c) for c in (0, 1)])
    close(torch.logsumexp(shares, 0), law.log_prob(x), 1e-12)
    with pytest.raises(FokkerError, match="label"):
        denoiser(x, 0.4, label=torch.full((8,), 2))
    with pytest.raises(FokkerError, match="did you mean 'label'"):
        denoiser(x, 0.4, labels=mixed)
    with pytest.raises(FokkerError, match="logits"):
        denoiser(x, 0.4, logits=torch.zeros(8, 3))
    with pytest.raises(FokkerError, match="condition 'y'"):
        denoiser(x, 0.4, y=x)


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [dense(3), low_rank(), laws.ring()], ids=["dense", "low-rank", "ring"])
def test_samples_have_the_laws_moments(law: GaussianMixture):
    n = 40_000
    x = law.sample(n, seed=11)
    # 5 standard errors of every entry, measured on the sample
    mean_error = 5 * x.std(0) / math.sqrt(n)
    assert bool(((x.mean(0) - law.mean()).abs() <= mean_error).all())
    products = (x - law.mean())[:, :, None] * (x - law.mean())[:, None]
    assert bool(((products.mean(0) - law.cov()).abs() <= 5 * products.std(0) / math.sqrt(n)).all())
    # the mean log-density is minus the entropy: two seeds agree within their errors
    scores = [law.log_prob(law.sample(n, seed=s)) for s in (12, 13)]
    assert abs(float(scores[0].mean() - scores[1].mean())) <= 5 * math.sqrt(2 / n) * float(scores[0].std())


def test_samples_are_keyed():
    law = dense(3, 4, labels=True)
    many = law.sample(64, seed=3)
    assert torch.equal(law.sample(1, seed=3, ids=[17])[0], many[17])
    assert not torch.equal(law.sample(64, seed=4), many)
    x, label = law.sample_labelled(64, seed=3)
    assert torch.equal(x, many)
    chosen = law.sample(2000, seed=1, label=1)
    other = law.conditional(1).sample(2000, seed=2)
    error = 5 * math.sqrt(2 / 2000) * other.std(0)
    assert bool(((chosen.mean(0) - other.mean(0)).abs() <= error).all())
    share = float((law.sample_labelled(4000)[1] == 1).double().mean())
    p = float(law.weights[law.labels == 1].sum())
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / 4000)
    assert label.shape == (64,)


def test_posterior_sampler_draws_from_the_posterior():
    law, t, n = dense(2), 0.35, 40_000
    x = normal(1, 2).expand(n, 2)
    draws = law.posterior_sampler(VP())(x, t, seed=2)
    mean, cov = law.denoiser(VP())(x[:1], t)[0], law.posterior_cov(x[:1], t, VP())[0]
    assert bool(((draws.mean(0) - mean).abs() <= 5 * draws.std(0) / math.sqrt(n)).all())
    products = (draws - mean)[:, :, None] * (draws - mean)[:, None]
    assert bool(((products.mean(0) - cov).abs() <= 5 * products.std(0) / math.sqrt(n)).all())
    again = law.posterior_sampler(VP())(x[:1], t, seed=2, ids=[17])
    close(again[0], draws[17], 1e-12)
    assert not torch.equal(law.posterior_sampler(VP())(x, t, seed=2, index=1), draws)


# --- the algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.4, torch.tensor([0.3, 0.8, 0.5])], ids=["one", "per row"])
def test_posterior_by_brute_force(noise_std: float | Tensor):
    law = dense(2, 4, labels=True)
    a, y = 0.5 * normal(3, 2, seed=8), normal(3, seed=9)
    posterior = law.posterior(a, y, noise_std)
    points, cell = grid()
    std = torch.as_tensor(noise_std, dtype=torch.float64)
    joint = law.log_prob(points) - 0.5 * (((y - points @ a.T) / std) ** 2).sum(1)
    close(posterior.log_prob(points), joint - torch.logsumexp(joint, 0) - math.log(cell), 1e-9)
    assert posterior.labels is not None and torch.equal(posterior.labels, law.labels)


@pytest.mark.parametrize("rows", [2, 5, 12])
def test_posterior_of_a_low_rank_law_equals_the_dense_one(rows: int):
    law = low_rank(9)
    a, y = normal(rows, 9, seed=8), normal(rows, seed=9)
    ours, theirs = law.posterior(a, y, 0.2), as_dense(law).posterior(a, y, 0.2)
    x = normal(7, 9)
    close(ours.log_prob(x), theirs.log_prob(x), 1e-10)
    assert ours.rank == min(9, law.rank + rows)
    # measuring in two parts is measuring at once
    twice = law.posterior(a[:1], y[:1], 0.2).posterior(a[1:], y[1:], 0.2)
    close(twice.log_prob(x), theirs.log_prob(x), 1e-9)


def test_posterior_without_noise_is_the_limit_and_meets_its_constraints():
    law = low_rank(6, rank=2)
    a, y = normal(2, 6, seed=8), normal(2, seed=9)
    exact = law.posterior(a, y, 0.0)
    close(exact.sample(50) @ a.T, y.expand(50, 2), 1e-9)
    nearly = law.posterior(a, y, 1e-5)
    close(exact.mean(), nearly.mean(), 1e-6)
    close(exact.cov(), nearly.cov(), 1e-6)
    close(exact.weights, nearly.weights, 1e-6)
    # a mask given as a square matrix repeats no information: its empty rows count for nothing
    mask = torch.diag(torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=torch.float64))
    kept = law.posterior(mask, mask @ normal(6, seed=1), 0.0)
    close(kept.mean(), law.posterior(mask[[0, 3]], (mask @ normal(6, seed=1))[[0, 3]], 0.0).mean(), 1e-12)
    # the law without density still denoises, and ends on the constraint
    x = exact.flow(VP(), normal(5, 6), 1.0, 0.0)
    close(x @ a.T, y.expand(5, 2), 1e-9)
    with pytest.raises(FokkerError, match="no density"):
        exact.log_prob(x)
    with pytest.raises(FokkerError, match="contradict"):
        law.posterior(torch.cat([a, a]), torch.cat([y, y + 1]), 0.0)
    with pytest.raises(FokkerError, match="no variance in a measured direction"):
        exact.posterior(a, y + 1, 0.0)
    with pytest.raises(FokkerError, match="do not fit"):
        law.posterior(normal(2, 5), y, 0.1)


def test_empirical_posterior_reweights_the_points():
    data = normal(30, 3, seed=2)
    a, y = normal(2, 3, seed=3), normal(2, seed=4)
    posterior = Empirical(data).posterior(a, y, 0.5)
    weights = torch.softmax(-0.5 * ((y - data @ a.T) / 0.5).square().sum(1), 0)
    close(posterior.weights, weights, 1e-12)
    close(posterior.means, data, 1e-12)
    assert isinstance(posterior, Empirical)


def proportional(law: GaussianMixture, log_density: Tensor, x: Tensor, tol: float = 1e-9) -> None:
    """log p - log_density is one constant over the points."""
    ratio = law.log_prob(x) - log_density
    assert float(ratio.max() - ratio.min()) <= tol * (1 + float(log_density.abs().max()))


def test_products_powers_and_quotients():
    x = normal(40, 2, seed=6)
    p, q = dense(2, 3, seed=0), dense(2, 2, seed=20)
    single = GaussianMixture([1.0], [[0.3, -0.2]], 2.0 * torch.eye(2))
    proportional(laws.product([p, q]), p.log_prob(x) + q.log_prob(x), x)
    proportional(laws.product([p, q], [2, 3]), 2 * p.log_prob(x) + 3 * q.log_prob(x), x)
    proportional(
        laws.product([p, q, single], [1, 1, -0.2]), p.log_prob(x) + q.log_prob(x) - 0.2 * single.log_prob(x), x
    )
    proportional(single.tempered(0.37), 0.37 * single.log_prob(x), x)
    cube = p.tempered(3)
    assert cube.components == math.comb(5, 3)
    proportional(cube, 3 * p.log_prob(x), x)
    # normalised: the density integrates to one
    points, cell = grid()
    assert float(cube.log_prob(points).exp().sum() * cell) == pytest.approx(1, abs=1e-9)
    with pytest.raises(FokkerError, match="not a mixture"):
        p.tempered(1.5)
    with pytest.raises(FokkerError, match="not a mixture"):
        laws.product([single, p], [1, -1])
    with pytest.raises(FokkerError, match="cannot be normalised"):
        laws.product([single, single.affine(2.0)], [0.1, -1])
    with pytest.raises(FokkerError, match="more than 20000"):
        p.tempered(500)


def test_products_stay_low_rank():
    p, q = low_rank(9, seed=0), low_rank(9, components=2, rank=3, seed=1)
    x = 0.5 * (p.sample(10) + q.sample(10))
    both = laws.product([p, q])
    assert both.rank == 5 and both.components == 8
    proportional(both, p.log_prob(x) + q.log_prob(x), x)
    proportional(laws.product([p, q], [2, 1]), 2 * p.log_prob(x) + q.log_prob(x), x)


def test_guided_law_of_gaussians():
    """p(x | c)^w p(x)^(1 - w) for single Gaussians: what guidance of scale w aims at."""
    wide, narrow = GaussianMixture([1.0], [[0.0, 0.0]], 1.0), GaussianMixture([1.0], [[1.0, 0.5]], 0.3)
    x = normal(20, 2)
    w = 4.0
    proportional(laws.product([narrow, wide], [w, 1 - w]), w * narrow.log_prob(x) + (1 - w) * wide.log_prob(x), x)


@pytest.mark.parametrize("law", [dense(3), low_rank(5)], ids=["dense", "low-rank"])
def test_tilts(law: GaussianMixture):
    x, b = normal(40, law.dim, seed=6), normal(law.dim, seed=7)
    q = normal(law.dim, law.dim, seed=8)
    q = q @ q.T
    proportional(law.tilt(b), law.log_prob(x) + x @ b, x)
    proportional(law.tilt(b, 0.7), law.log_prob(x) + x @ b - 0.35 * x.square().sum(1), x)
    proportional(law.tilt(b, q), law.log_prob(x) + x @ b - 0.5 * (x @ q * x).sum(1), x)
    down = 0.5 / float(law.eigenvalues.max())
    proportional(law.tilt(None, -down), law.log_prob(x) + 0.5 * down * x.square().sum(1), x)
    assert law.tilt(b).rank == law.rank and law.tilt(b, 0.7).rank == law.rank
    with pytest.raises(FokkerError, match="cannot be normalised"):
        law.tilt(None, -1e6)


def test_mixtures_of_laws():
    p, q = low_rank(6, rank=2), dense(6, 2)
    both = laws.mixture([p, q], [1.0, 3.0], labels=[4, 0])
    x = normal(10, 6)
    expected = torch.logaddexp(math.log(0.25) + p.log_prob(x), math.log(0.75) + q.log_prob(x))
    close(both.log_prob(x), expected, 1e-11)
    close(both.log_prob(x, 4), p.log_prob(x), 1e-11)
    close(both.denoiser(VP())(x, 0.3, label=torch.full((10,), 0)), q.denoiser(VP())(x, 0.3), 1e-11)
    with pytest.raises(FokkerError, match="shape"):
        laws.mixture([p, dense(2)])


def test_marginals_and_affine_maps():
    law = low_rank(8, rank=3)
    index = [6, 0, 3]
    marginal = law.marginal(index)
    x = normal(10, 3)
    close(marginal.log_prob(x), as_dense(law).affine(torch.eye(8)[index]).log_prob(x), 1e-10)
    close(marginal.cov(), law.cov()[index][:, index], 1e-12)
    a, b = normal(3, 8, seed=4), normal(3, seed=5)
    moved = law.affine(a, b)
    close(moved.mean(), a @ law.mean() + b, 1e-12)
    close(moved.cov(), a @ law.cov() @ a.T, 1e-12)
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(law.weights),
        torch.distributions.MultivariateNormal(law.means @ a.T + b, a @ law.covs @ a.T),
    )
    close(moved.log_prob(x), theirs.log_prob(x), 1e-9)
    turn = torch.linalg.qr(normal(8, 8))[0] * 1.7
    z = normal(5, 8)
    close(law.affine(turn, 0.3).log_prob(z @ turn.T + 0.3), law.log_prob(z) - 8 * math.log(1.7), 1e-10)
    assert law.affine(turn).rank == 3
    close(law.affine(2.0).log_prob(2 * z), law.log_prob(z) - 8 * math.log(2), 1e-11)
    with pytest.raises(FokkerError, match="different integers"):
        law.marginal([0, 0])


# --- the flow ------------------------------------------------------------------------------------------------------


def refined(law: GaussianMixture, process: Process, x: Tensor, t: float, s: float, steps: int) -> tuple[Tensor, Tensor]:
    """dx/dt in the process's own time by classical Runge-Kutta on `steps`, twice and four times as many: the answer
    extrapolated (Richardson) and its change by the last refinement. Shares nothing with the flow but the belief."""

    def run(n: int) -> Tensor:
        # t = u^2, so that steps shrink towards the data
        u = torch.linspace(math.sqrt(t), math.sqrt(s), 2 * n + 1, dtype=torch.float64)
        alpha, sigma = process.alpha(u**2), process.sigma(u**2)
        rates = [
            torch.func.jvp(lambda v, f=f: f(v**2), (u,), (torch.ones_like(u),))[1]
            for f in (process.alpha, process.sigma)
        ]
        table = torch.stack([u**2, alpha, sigma, *rates], 1).tolist()
        denoiser, z, h = law.denoiser(process), x, float(u[2] - u[0])

        def velocity(state: Tensor, i: int) -> Tensor:
            time, a, b, d_a, d_b = table[i]
            belief = denoiser(state, time)
            return d_a * belief + d_b * (state - a * belief) / b

        for i in range(0, 2 * n, 2):
            k1 = velocity(z, i)
            k2 = velocity(z + h / 2 * k1, i + 1)
            k3 = velocity(z + h / 2 * k2, i + 1)
            k4 = velocity(z + h * k3, i + 2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return z

    first, second, third = (run(k * steps) for k in (1, 2, 4))
    one, two = second + (second - first) / 15, third + (third - second) / 15
    return two + (two - one) / 31, (two - one).norm(dim=1)


@pytest.mark.parametrize(("process", "t", "s"), [(VP(), 0.9, 0.05), (Flow(), 0.95, 0.1)], ids=["VP", "Flow"])
def test_flow_agrees_with_another_integrator(process: Process, t: float, s: float):
    law = low_rank()
    x = process.add_noise(law.sample(16), normal(16, 9, seed=2), t)
    ours = law.flow(process, x, t, s)
    theirs, change = refined(law, process, x, t, s, 100)
    assert bool(((ours - theirs).norm(dim=1) <= 1e-8 * ours.norm(dim=1) + change / 31).all())
    assert float((change / ours.norm(dim=1)).median()) < 31e-8


def test_flow_of_one_gaussian_is_a_change_of_scale():
    """x_s = alpha_s m + V_s^(1/2) V_t^(-1/2) (x_t - alpha_t m), V = alpha^2 C + sigma^2 I, the ends included."""
    c = torch.tensor([[1.0, 0.6], [0.6, 0.7]], dtype=torch.float64)
    m = torch.tensor([0.5, -2.0], dtype=torch.float64)
    law, x = GaussianMixture([1.0], m[None], c), normal(10, 2)
    values, basis = torch.linalg.eigh(c)
    for process in PLAIN:
        for t, s in ((1.0, 0.0), (0.0, 1.0), (0.9, 0.2), (0.4, 0.4)):
            (a_t, _, s_t), (a_s, _, s_s) = process.at(t), process.at(s)
            scale = torch.sqrt((a_s**2 * values + s_s**2) / (a_t**2 * values + s_t**2))
            z = a_t * m + x * max(a_t, s_t)
            expected = a_s * m + ((z - a_t * m) @ basis * scale) @ basis.T
            close(law.flow(process, z, t, s), expected, 1e-10)


def test_flow_composes_inverts_and_is_one_for_all_processes():
    law = low_rank()
    x = normal(24, 9)
    there = law.flow(VP(), x, 1.0, 1e-3)
    # two parts make the whole; and back again (through the modes' boundaries, errors grow: the map's stretch is allowed)
    close(law.flow(VP(), law.flow(VP(), x, 1.0, 0.4), 0.4, 1e-3), there, 1e-8)
    close(law.flow(VP(), there, 1e-3, 1.0), x, 1e-8)
    # the same curve under a change of scale and clock
    for process in (EDM(), VE(), Flow(), Cosine()):
        t, s = (float(process.time(VP().logsnr(u))) for u in (0.6, 0.05))
        scale = [math.hypot(*process.at(b)[::2]) / math.hypot(*VP().at(a)[::2]) for a, b in ((0.6, t), (0.05, s))]
        z = law.flow(VP(), x, 0.6, 0.05)
        close(law.flow(process, x * scale[0], t, s), z * scale[1], 1e-9)
    # the noiseless end is the limit of ends with little noise
    close(law.flow(VP(), x, 1.0, 0.0), law.flow(VP(), x, 1.0, 1e-9), 1e-6)
    # each sample its own times
    t = torch.linspace(0.1, 1.0, 24, dtype=torch.float64)
    s = torch.linspace(0.9, 0.0, 24, dtype=torch.float64)
    each = law.flow(VP(), x, t, s)
    for i in (0, 11, 23):
        close(each[i], law.flow(VP(), x[i : i + 1], float(t[i]), float(s[i]))[0], 1e-10)
    assert law.flow(VP(), x.float(), 1.0, 0.0).dtype == torch.float32


def test_flow_of_an_anchored_process_is_the_plain_one_shifted():
    law, process = dense(3), MeanReverting()
    x, y = normal(6, 3), normal(6, 3, seed=1)
    moved = law.flow(process, x + process.at(0.9)[1] * y, 0.9, 0.1, y=y)
    plain, change = refined(law, _Plain(), x, 0.9, 0.1, 100)
    close(moved - process.at(0.1)[1] * y, plain, 1e-8 + float(change.max()))
    bridge = BrownianBridge()
    z = law.flow(bridge, bridge.start(normal(6, 3), y), 1.0, 0.0, y=y)
    close(z, law.flow(Flow(), normal(6, 3), 1.0, 0.0), 1e-9)
    with pytest.raises(FokkerError, match="anchored"):
        law.flow(process, x, 0.9, 0.1)


class _Plain(Process):
    """MeanReverting without its anchor."""

    def _alpha(self, t: Tensor) -> Tensor:
        return MeanReverting()._alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return MeanReverting()._sigma(t)


def test_density_through_the_flow_is_the_density():
    law = dense(3, labels=True)
    x = law.sample(10)
    close(law.flow_log_prob(VP(), x), law.log_prob(x), 1e-9)
    close(law.flow_log_prob(EDM(), x, 0.0, 0.3, label=1), law.log_prob(x, 1), 1e-9)
    x_t = VP().add_noise(x, normal(10, 3), 0.3)
    close(law.flow_log_prob(VP(), x_t, 0.3, 0.05), law.log_prob_t(x_t, 0.3, VP()), 1e-9)
    with pytest.raises(FokkerError, match="PFGMPP"):
        law.flow_log_prob(PFGMPP(), x)


def test_flow_carries_the_noise_to_the_law():
    """The end points of unit noise have the law's moments, and with a label those of the class."""
    law = dense(2, 4, labels=True)
    x = noise((4000, 2), seed=5, dtype=torch.float64)
    for target, end in ((law, law.flow(Cosine(), x, 1.0, 0.0)), (law.conditional(1), law.flow(Flow(), x, 1.0, 0.0, 1))):
        assert bool(((end.mean(0) - target.mean()).abs() <= 5 * end.std(0) / math.sqrt(4000)).all())
        products = (end - target.mean())[:, :, None] * (end - target.mean())[:, None]
        assert bool(((products.mean(0) - target.cov()).abs() <= 5 * products.std(0) / math.sqrt(4000)).all())


def test_flow_of_students_kernel():
    """PFGM++ has the same equation with its own belief."""
    data, process = Empirical(normal(20, 3)), PFGMPP(D=16.0, sigma_max=5.0)
    x = 2 * normal(8, 3, seed=3)
    theirs, change = refined(data, process, x, 0.8, 0.02, 100)
    close(data.flow(process, x, 0.8, 0.02), theirs, 1e-8 + float(change.max()))
    assert float((data.flow(EDM(sigma_max=5.0), x, 0.8, 0.02) - theirs).abs().max()) > 1e-2
    law, process = dense(2), PFGMPP(D=128.0, sigma_max=40.0)
    start = process.start(process.sample_noise((100, 2), seed=1, dtype=torch.float64))
    end = law.flow(process, start, 1.0, 0.0, tol=1e-7)
    # at sigma = 40 the start forgets the data up to |x_0| / 40, which biases the mean by at most that share of its spread
    slack = 5 * end.std(0) / math.sqrt(100) + end.std(0) / 40
    assert bool(((end.mean(0) - law.mean()).abs() <= slack).all())


# --- data ----------------------------------------------------------------------------------------------------------


def test_empirical_denoiser_is_a_softmax_over_the_data():
    data, x = normal(50, 2, 3, seed=1), normal(7, 2, 3, seed=2)
    labels = torch.arange(50) % 3
    law = Empirical(data, labels)
    alpha, _, sigma = VP().at(0.4)
    away = (x[:, None] - alpha * data).square().flatten(2).sum(-1) / (2 * sigma**2)
    expected = torch.einsum("nk,kab->nab", torch.softmax(-away, 1), data)
    close(law.denoiser(VP())(x, 0.4), expected, 1e-12)
    mask = away.masked_fill(labels != 2, torch.inf)
    chosen = law.denoiser(VP())(x, 0.4, label=torch.full((7,), 2))
    close(chosen, torch.einsum("nk,kab->nab", torch.softmax(-mask, 1), data), 1e-12)
    log_p = torch.logsumexp(-away, 1) - math.log(50) - 3 * math.log(2 * math.pi * sigma**2)
    close(law.log_prob_t(x, 0.4, VP()), log_p, 1e-12)
    far = PFGMPP(D=10.0, sigma_max=80.0)
    weights = -(6 + 10) / 2 * torch.log1p((x[:, None] - data).square().flatten(2).sum(-1) / (10 * 0.8**2))
    close(law.denoiser(far)(x, 0.01), torch.einsum("nk,kab->nab", torch.softmax(weights, 1), data), 1e-12)


def test_empirical_flow_ends_on_the_data_and_samples_are_data():
    data = normal(40, 5, seed=1)
    law = Empirical(data)
    end = law.flow(VP(), normal(12, 5), 1.0, 0.0)
    assert float((end[:, None] - data).abs().amax(2).amin(1).max()) < 1e-9
    assert float((law.sample(20)[:, None] - data).abs().amax(2).amin(1).max()) == 0
    # a point of the data is its own belief at no noise
    close(law.denoiser(VP())(data, 0.0), data, 1e-12)
    with pytest.raises(FokkerError, match="no density"):
        law.log_prob(data)
    with pytest.raises(FokkerError, match="start at a small t"):
        law.flow(VP(), data, 0.0, 1.0)


def test_fit_recovers_a_law_and_classes():
    even = laws.lowrank(6, 3, 2, seed=3, std=0.1)
    truth = laws.mixture([even.conditional(c) for c in range(3)], [1.0, 2.0, 5.0])
    x, label = truth.sample_labelled(3000, seed=1)
    fresh = truth.sample(3000, seed=2)
    fitted = GaussianMixture.fit(x, 3, 2, seed=0)
    best = truth.log_prob(fresh)
    # the fit has 3 (6 + 2 * 6 + 2) parameters and some: its deficit in log-likelihood is about parameters / (2 n)
    deficit = float((best - fitted.log_prob(fresh)).mean())
    assert deficit <= 5 * 60 / (2 * 3000)
    classes = GaussianMixture.fit(x, 1, 2, labels=label)
    guess = torch.stack([classes.log_prob(fresh, c) for c in range(3)]).argmax(0)
    assert float((guess == truth.sample_labelled(3000, seed=2)[1]).double().mean()) > 0.99
    again = GaussianMixture.fit(x, 3, 2, seed=0)
    assert torch.equal(again.means, fitted.means)
    with pytest.raises(FokkerError, match="components"):
        GaussianMixture.fit(x[:5], 10, 2)


def test_fit_of_real_digits_classifies_held_out_digits():
    from sklearn.datasets import load_digits

    images, names = load_digits(return_X_y=True)
    data = torch.as_tensor(images, dtype=torch.float64).reshape(-1, 1, 8, 8) / 8 - 1
    names = torch.as_tensor(names)
    law = GaussianMixture.fit(data[:1200], 1, 12, labels=names[:1200])
    assert law.shape == (1, 8, 8)
    guess = torch.stack([law.log_prob(data[1200:], c) for c in range(10)]).argmax(0)
    assert float((guess == names[1200:]).double().mean()) >= 0.93


# --- named laws and mistakes -----------------------------------------------------------------------------------------


def test_named_laws_are_what_they_say():
    ring = laws.ring()
    assert ring.components == 8 and float(ring.means.norm(dim=1).std()) < 1e-15
    close(ring.cov(), (1 + 0.01) * torch.eye(2, dtype=torch.float64), 1e-12)
    law = laws.lowrank(dim=64, components=10, rank=8, seed=0)
    assert (law.dim, law.components, law.rank) == (64, 10, 8)
    assert float(law.cov().trace()) / 64 == pytest.approx(1, abs=1e-12)
    assert float(law.mean().abs().max()) < 1e-12
    close(law.eigenvalues[:, 0] / law.eigenvalues[:, 3], torch.full((10,), 16.0, dtype=torch.float64), 1e-12)
    assert torch.equal(laws.lowrank(seed=1).means, laws.lowrank(seed=1).means)
    assert not torch.equal(laws.lowrank(seed=1).means, laws.lowrank(seed=0).means)
    with pytest.raises(FokkerError, match="rank"):
        laws.lowrank(dim=4, rank=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, -1.0], [[0.0], [1.0]], 1.0), "not negative"),
        (([1.0], [[0.0], [1.0]], 1.0), "weights"),
        (([1.0], [[0.0, 1.0]], -1.0), "negative"),
        (([1.0], [[0.0, 1.0]], torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (([1.0], [[0.0, 1.0]], torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "negative eigenvalue"),
        (([1.0], [[0.0, 1.0]], torch.ones(3, 3)), "shape"),
        (([1.0], [[0.0, 1.0]], (torch.ones(1, 2, 1), torch.ones(1, 1), torch.ones(1))), "orthonormal"),
        (([1.0], [[0.0, float("nan")]], 1.0), "finite"),
        (([1.0], [[0.0, 1.0]], 1.0, [-1]), "labels"),
        (([1.0], [[0.0, 1.0]], 1.0, None, (3,)), "shape"),
    ],
)
def test_mistakes_are_told(arguments: tuple[object, ...], message: str):
    with pytest.raises(FokkerError, match=message):
        GaussianMixture(*arguments)  # type: ignore[arg-type]
