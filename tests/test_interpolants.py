"""Bridges between two laws: closed forms against draws, conversions to denoisers, training, and what is refused."""

import math
from typing import Any, cast

import pytest
import torch
from laws_for_tests import F64

import fokker as fk
from fokker.data.source import Arrays
from fokker.errors import FokkerError
from fokker.interpolants import Bridge, ExactField, Interpolation, NetworkField, couple
from fokker.laws import GaussianMixture
from fokker.net.mlp import MLP
from fokker.train import Key, Rate, Trainer
from fokker.train.interpolating import Interpolating

LEFT = GaussianMixture([0.4, 0.6], [[-2.0, 0.5], [-1.0, -0.8]], torch.tensor([[0.2, 0.1], [0.1, 0.3]]))
RIGHT = GaussianMixture([0.5, 0.5], [[1.5, 1.0], [1.2, -1.2]], 0.1)
PATHS = [
    Interpolation(),
    Interpolation("trigonometric", "quadratic"),
    Interpolation("linear", "squared-sine", 0.7),
    Interpolation("encoding-decoding", "squared-sine", 1.0),
]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.path}-{p.gamma}")


@paths
def test_the_path_has_its_ends_and_its_rates(path):
    t = torch.tensor([0.0, 1.0], dtype=F64)
    c = path.at(t)
    assert torch.allclose(c.alpha, torch.tensor([1.0, 0.0], dtype=F64)) and torch.allclose(c.beta, 1 - c.alpha)
    assert c.gamma.abs().max() < 1e-15
    t = torch.tensor([0.1, 0.31, 0.77], dtype=F64)
    a, b, step = path.at(t - 1e-6), path.at(t + 1e-6), 2e-6
    for k in range(3):
        assert torch.allclose(path.at(t)[3 + k], (b[k] - a[k]) / step, atol=1e-6)


@paths
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_exact_fields_are_the_regressions_of_draws(path, t):
    """E[(dx_t/dt - b) f(x_t)] = 0 for any f: judged on f = 1, x, x^2, in units of the sampling error."""
    n = 100_000
    x_0, x_1, z = LEFT.sample(n, seed=1), RIGHT.sample(n, seed=2), fk.noise((n, 2), seed=3, dtype=F64)
    c = path.at(t)
    x_t = path.add_noise(x_0, x_1, z, t)
    b, eta = ExactField(couple(LEFT, RIGHT), path).fields(x_t, t)
    for miss in (c.d_alpha * x_0 + c.d_beta * x_1 + c.d_gamma * z - b, z - eta):
        for f in (torch.ones_like(x_t), x_t, x_t.flip(1), x_t.square()):
            product = miss * f
            assert (product.mean(0).abs() < 4.5 * product.std(0) / math.sqrt(n) + 1e-12).all()


def test_a_coupling_may_be_correlated():
    """x_1 = x_0 + (1, 0) exactly but for a little noise: the velocity is then (1, 0) everywhere."""
    covs = torch.eye(4, dtype=F64) * 1e-4
    covs[:2, :2] = covs[2:, 2:] = covs[:2, 2:] = covs[2:, :2] = LEFT.covs[0]
    coupling = GaussianMixture([1.0], torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), covs + 1e-9 * torch.eye(4, dtype=F64))
    field = ExactField(coupling, Interpolation(gamma="none"))
    x = fk.noise((5, 2), dtype=F64)
    assert torch.allclose(field.velocity(x, 0.4), torch.tensor([1.0, 0.0], dtype=F64), atol=1e-4)
    with pytest.raises(FokkerError, match="no score"):
        field.score(x, 0.4)


def test_the_score_is_the_gradient_of_the_density():
    path = Interpolation()
    field = ExactField(couple(LEFT, RIGHT), path)
    c, x = path.at(0.35), fk.noise((7, 2), seed=1, dtype=F64)
    mixed = couple(LEFT, RIGHT)
    both = torch.cat([c.alpha * torch.eye(2, dtype=F64), c.beta * torch.eye(2, dtype=F64)], 1)
    x_t = mixed.affine(both)
    noised = GaussianMixture(x_t.weights, x_t.means, x_t.covs + c.gamma**2 * torch.eye(2, dtype=F64))
    x.requires_grad_()
    truth = torch.autograd.grad(noised.log_prob(x).sum(), x)[0]
    assert torch.allclose(field.score(x.detach(), 0.35), truth, atol=1e-9)
    times = torch.full((7,), 0.35, dtype=F64)
    assert torch.allclose(field.score(x.detach(), times), truth, atol=1e-9)


@pytest.mark.parametrize("path", [PATHS[0], PATHS[1]], ids=["linear", "trigonometric"])
def test_one_sided_is_the_laws_own_denoiser(path):
    normal = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    denoiser = ExactField(couple(LEFT, normal), path).one_sided()
    x = fk.noise((6, 2), seed=2, dtype=F64)
    for t in (0.1, 0.5, 0.9):
        assert torch.allclose(denoiser(x, t), LEFT.denoiser(denoiser.process)(x, t), atol=1e-8)


@pytest.mark.parametrize("eps", [0.0, 1.0, lambda t: 2 * t * (1 - t)])
@pytest.mark.parametrize("backward", [False, True])
def test_a_bridge_arrives_with_mean_and_covariance(eps, backward):
    start, goal = (RIGHT, LEFT) if backward else (LEFT, RIGHT)
    field = ExactField(couple(LEFT, RIGHT))
    x = Bridge(60, eps)(field, start.sample(3000, seed=1), backward, seed=2)
    assert (x.mean(0) - goal.mean()).abs().max() < 0.08
    assert (torch.cov(x.T) - goal.cov()).abs().max() < 0.12


def test_a_sample_is_its_own_and_the_ode_goes_back():
    field, x = ExactField(couple(LEFT, RIGHT)), LEFT.sample(4, seed=1)
    whole = Bridge(20, 1.0)(field, x, seed=3, ids=[5, 6, 7, 8])
    assert torch.allclose(Bridge(20, 1.0)(field, x[2:3], seed=3, ids=[7]), whole[2:3], atol=1e-12)
    there = Bridge(400)(field, x, path=True)
    assert there.shape == (401, 4, 2)
    assert torch.allclose(Bridge(400)(field, there[-1], backward=True), x, atol=5e-3)


@pytest.mark.parametrize("learn", ["b", "v"])
def test_training_finds_the_fields(learn):
    """Relative error of both fields after 800 updates of a small network: the loss has the right minimiser."""
    n = 4096
    net = MLP(2, 4, width=64, depth=2)
    field = NetworkField(net, None, Interpolation(), learn)
    source = Arrays({"x": LEFT.sample(n, seed=1).float()}, "left", "a mixture", bounds=None)
    objective = Interpolating(RIGHT.sample(n, seed=2).float(), margin=0.02)
    rate = Rate(peak=3e-3, warmup=2000)
    trainer = Trainer(cast(Any, field), source, objective, 800 * 128, 128, rate, quiet=True, cpu=True)
    trainer.run()
    exact = ExactField(couple(LEFT, RIGHT))
    for t in (0.25, 0.5, 0.75):
        x = field.interpolation.add_noise(LEFT.sample(500, seed=8), RIGHT.sample(500, seed=9), fk.noise((500, 2), dtype=F64), t)
        with torch.no_grad():
            got = field.fields(x, t)
        for mine, true in zip(got, exact.fields(x, t), strict=True):
            assert float((mine - true).square().mean() / true.square().mean()) < 0.1


def test_pairs_of_noise_cancel_near_the_ends():
    field, n = ExactField(couple(LEFT, RIGHT)), 4000
    drawn = {"x": LEFT.sample(n), "other": RIGHT.sample(n, seed=1), "z": fk.noise((n, 2), dtype=F64)}
    drawn["t"] = torch.full((n,), 1e-3, dtype=F64)
    single = Interpolating(antithetic=False).loss(field, drawn)
    assert Interpolating().loss(field, drawn).var() < 0.25 * single.var()


def test_partners_come_from_the_data_or_from_the_other_law():
    key = Key(3, 0, 4, torch.arange(4))
    batch = {"x": torch.zeros(4, 2), "label": torch.arange(4)}
    pool = torch.arange(10.0)[:, None].expand(10, 2).contiguous()
    drawn = Interpolating(pool).draw(None, batch, key)
    again = Interpolating(pool).draw(None, {k: v[2:] for k, v in batch.items()}, Key(3, 0, 4, torch.tensor([2, 3])))
    assert torch.equal(again["other"], drawn["other"][2:]) and torch.equal(again["z"], drawn["z"][2:])
    assert set(drawn) == {"x", "other", "z", "t", "label"}
    stated = Interpolating().draw(None, batch | {"other": torch.ones(4, 2)}, key)
    assert torch.equal(stated["other"], torch.ones(4, 2))
    with pytest.raises(FokkerError, match="no 'other'"):
        Interpolating().draw(None, batch, key)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Interpolation("linaer"), "did you mean 'linear'"),
        (lambda: Interpolation(gamma="brown"), "unknown gamma"),
        (lambda: Interpolation(a=0.0), "above 0"),
        (lambda: Interpolation("encoding-decoding"), "squared-sine"),
        (lambda: Bridge(0), "at least 1 step"),
        (lambda: Bridge(5, -1.0), "not negative"),
        (lambda: Bridge(5, solver="rk"), "unknown solver"),
        (lambda: couple(LEFT, fk.laws.lowrank(dim=4, rank=2)), "equal ones"),
        (lambda: ExactField(LEFT), r"shape \(2, dim\)"),
        (lambda: NetworkField(MLP(2, 4), learn="x"), "unknown learn"),
        (lambda: MLP(0), "at least 1"),
        (lambda: MLP(2)(torch.zeros(1, 3), torch.zeros(1)), "this network takes"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(FokkerError, match=says):
        call()
