"""Posteriors, products, tilts, marginals and fits against brute force and unnormalised densities."""

import math

import pytest
import torch
from mixtures import as_dense, close, dense, grid, low_rank, normal
from torch import Tensor

from fokker import laws
from fokker.electric import PFGMPP
from fokker.errors import FokkerError
from fokker.laws import Empirical, GaussianMixture
from fokker.process import VP


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
