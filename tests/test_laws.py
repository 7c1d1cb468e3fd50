"""Exact laws against independent answers: quadrature, autograd, Monte Carlo; and their borders."""

import math

import pytest
import torch
from mixtures import ANCHORED, PLAIN, as_dense, close, dense, grid, low_rank, normal

from fokker import laws
from fokker.anchored import BrownianBridge, MeanReverting
from fokker.electric import PFGMPP
from fokker.errors import FokkerError
from fokker.laws import Empirical, GaussianMixture
from fokker.laws import law as contract
from fokker.process import EDM, VE, VP, Flow, Process

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
