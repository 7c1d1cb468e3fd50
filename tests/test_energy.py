"""Energies: exact ones are the law's denoiser and sampler, the chain is a constant to the loss, and what is refused."""

import math

import pytest
import torch
from laws_for_tests import F64
from torch import nn

import fokker as fk
from fokker.checks import cdrl
from fokker.energy import CooperativeEnergy, Ladder, ResidualEnergy
from fokker.errors import FokkerError
from fokker.net.mlp import MLP
from fokker.train import Key
from fokker.train.recovery import RecoveryLikelihood

LAW = fk.laws.GaussianMixture([0.5, 0.5], [[-0.6, 0.2], [0.7, -0.3]], 0.15)
LADDER = Ladder()


class ExactEnergy(nn.Module):
    """log p of y = r x_k, from the law."""

    def forward(self, y, k):
        r = LADDER.steps()[0][k][:, None]
        return LAW.log_prob_t(y.to(F64) / r, k.to(F64) / LADDER.levels, LADDER).to(y.dtype)


def exact(moves=15, step=0.4, initialiser=None):
    return CooperativeEnergy(ExactEnergy(), initialiser, LADDER, moves, step)


def test_the_rungs_are_a_markov_chain_of_unit_variance():
    a, s = LADDER.rungs()
    r, v = LADDER.steps()
    assert torch.allclose(a**2 + s**2, torch.ones(7, dtype=F64))
    true_r = a[1:] / a[:-1]
    assert torch.allclose(true_r**2 * s[:-1] ** 2 + v, s[1:] ** 2)
    assert torch.equal(r[:-1], true_r[:-1]) and r[-1] == 1
    assert LADDER.logsnr(0.0).item() == pytest.approx(9.8) and LADDER.logsnr(1.0).item() == pytest.approx(-5.1)


def test_an_exact_energy_is_the_laws_denoiser():
    denoiser = exact().denoiser()
    for k in range(LADDER.levels):
        t = k / LADDER.levels
        x = LADDER.add_noise(LAW.sample(6, seed=1), fk.noise((6, 2), dtype=F64), t)
        truth = LAW.denoiser(LADDER)(x, t)
        assert torch.allclose(denoiser(x, t), truth, atol=2e-5), k
        assert torch.allclose(denoiser.log_density(x, t).to(F64), LAW.log_prob_t(x, t, LADDER), atol=1e-4)
    times = torch.tensor([0, 1, 2, 3, 4, 5], dtype=F64) / 6
    assert torch.allclose(denoiser(x, times)[2], denoiser(x[2:3], 2 / 6)[0], atol=1e-6)


def test_long_chains_of_an_exact_energy_sample_the_law():
    x = exact(moves=100, step=0.3).sample((1000, 2), seed=1).to(F64)
    assert (x.mean(0) - LAW.mean()).abs().max() < 0.12
    assert (torch.cov(x.T) - LAW.cov()).abs().max() < 0.1


@pytest.mark.parametrize("part", [0.3, 0.6])
def test_strides_leave_a_mode_as_wide_as_they_say(part):
    """Langevin moves on a normal energy: the stationary variance is that of the conditional over 1 - part / 4."""
    std, n = 0.1, 4000
    law = fk.laws.GaussianMixture([1.0], [[0.0, 0.0]], std**2)

    class One(nn.Module):
        def forward(self, y, k):
            return law.log_prob_t(y.to(F64) / LADDER.steps()[0][k][:, None], k.to(F64) / LADDER.levels, LADDER).to(y.dtype)

    model = CooperativeEnergy(One(), None, LADDER, 40, LADDER.strides(std, part))
    a, s = LADDER.rungs()
    r, v = LADDER.steps()
    for level in (0, 3, 5):
        k = torch.full((n,), level)
        y = model.refine(torch.zeros(n, 2), torch.zeros(n, 2), k, fk.noise((n, 40, 2), seed=level))
        tied = 0.0 if level == 5 else 1 / v[level]
        exact = 1 / (1 / (r**2 * (a[:-1] ** 2 * std**2 + s[:-1] ** 2))[level] + tied)
        # the variance of 2 n normal numbers has the relative deviation 1 / sqrt(n)
        assert float(y.var(0).mean() / exact) == pytest.approx(1 / (1 - part / 4), rel=4 / math.sqrt(n))


def test_shares_make_a_residual_about_its_centre_the_energy_of_a_mode():
    std = 0.1
    law = fk.laws.GaussianMixture([1.0], [[0.0, 0.0]], std**2)

    class Centre(nn.Module):
        def forward(self, y, c):
            return torch.zeros_like(y)

    energy = ResidualEnergy(Centre(), LADDER, LADDER.shares(std))
    denoiser = CooperativeEnergy(energy, None, LADDER).denoiser()
    for k in range(LADDER.levels):
        x = fk.noise((6, 2), dtype=F64)
        assert torch.allclose(denoiser(x, k / 6), law.denoiser(LADDER)(x, k / 6), rtol=1e-4, atol=1e-5), k


def test_a_new_initialiser_starts_where_there_is_none():
    model = CooperativeEnergy.of_vectors(2, 16)
    x, k = fk.noise((6, 2)), torch.arange(6)
    assert torch.equal(model.aim(x, k), x)
    start = model.begin(x, k, torch.ones(6, 2)) - x
    assert torch.allclose(start, model.spread[:, None].expand(6, 2), atol=1e-6)


def test_samples_belong_to_their_number():
    model = CooperativeEnergy.of_vectors(2, 16, moves=3)
    whole = model.sample((5, 2), seed=1)
    assert torch.allclose(model.sample((1, 2), seed=1, ids=[3])[0], whole[3], atol=1e-5)


def test_the_contrast_vanishes_where_the_energy_is_exact():
    """From y itself the chain is stationary up to its step: f(y_K) and f(y) have the same mean."""
    model, n = exact(moves=20, step=0.1), 4000
    drawn = RecoveryLikelihood(shared=False).draw(model, {"x": LAW.sample(n, seed=3)}, Key(0, 0, n, torch.arange(n)))
    k = drawn["k"]
    here = model.part("a", k, drawn["x"]) * drawn["x"] + model.part("s", k, drawn["x"]) * drawn["e"]
    v = model.part("v", k, here)
    y, x_next = model.part("r", k, here) * here, torch.sqrt(1 - v) * here + torch.sqrt(v) * drawn["e2"]
    found = model.refine(y, x_next, k, drawn["z"][:, 1:])
    # at the last level the energy is that of x itself, and the chain is not tied to the noisier state
    gap = model.energy(found, k) - model.energy(y, k)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(n) + 0.02


def test_shared_noise_has_the_gradient_of_the_markov_pairs():
    """The loss knows data by the law of y and the chain by the law of x_{k+1}, and both are the same."""
    n, blocks = 30_000, 30
    step, share = LADDER.strides(0.15), LADDER.shares(0.15)
    model = CooperativeEnergy.of_vectors(2, 8, 1, initialiser=False, moves=2, step=step, share=share)
    drawn = RecoveryLikelihood().draw(model, {"x": LAW.sample(n, seed=4).float()}, Key(0, 0, n, torch.arange(n)))

    def gradients(shared):
        found = []
        for rows in torch.arange(n).chunk(blocks):
            loss = RecoveryLikelihood(shared=shared).loss(model, {name: v[rows] for name, v in drawn.items()}).mean()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        return torch.stack(found)

    apart = gradients(True) - gradients(False)
    # of the mean of the blocks, as they themselves tell: chi square with one degree of freedom a parameter
    error = apart.std(0) / math.sqrt(blocks)
    moved = error > 0
    assert moved.sum() > 100
    assert ((apart.mean(0) / error)[moved].abs() < 5).all()


@pytest.mark.parametrize(("share", "stays"), [(0.8, True), (1.25, False)])
def test_moves_leave_a_mode_that_is_steeper_than_they_bear(share, stays):
    """A move multiplies deviations by 1 - d^2 c / 2, c the curvature of f - |y - x|^2 / 2 v: beyond d^2 c / 4 = 1 they grow."""
    d2 = (LADDER.strides(0.1)[0]) ** 2 * LADDER.steps()[1][0]
    curvature = 4 * share / d2 - 1 / LADDER.steps()[1][0]

    class Steep(nn.Module):
        def forward(self, y, k):
            return -curvature.float() * y.square().sum(1) / 2

    model, n = CooperativeEnergy(Steep(), None, LADDER, 40, LADDER.strides(0.1)), 4000
    k, x = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 2)
    y = model.refine(x, x, k, fk.noise((n, 40, 2), seed=3))
    factor = float((1 - 2 * share) ** 2)
    variance = float(d2) * (1 - factor**40) / (1 - factor)
    assert float(y.var(0).mean() / variance) == pytest.approx(1, rel=4 / math.sqrt(n))
    assert (float(y.std()) < 0.2) == stays


def test_nothing_is_differentiated_through_the_chain():
    model = CooperativeEnergy.of_vectors(2, 16, moves=3)
    batch, key = {"x": LAW.sample(8).float()}, Key(0, 0, 8, torch.arange(8))
    for share, touched in ((0.0, False), (1.0, True)):
        model.zero_grad()
        objective = RecoveryLikelihood(share=share)
        objective.loss(model, objective.draw(model, batch, key)).mean().backward()
        start = [p.grad for p in model.initialiser.parameters() if p.grad is not None]
        assert any(bool(g.abs().sum() > 0) for g in start) == touched
        assert all(p.grad is not None for p in model.energy.parameters())
    with torch.no_grad():
        loss = RecoveryLikelihood().loss(model, RecoveryLikelihood().draw(model, batch, key))
    assert loss.shape == (8,) and bool(torch.isfinite(loss).all())


def test_the_check_judges_averaged_weights_of_a_slow_initialiser(monkeypatch):
    made = []

    class Kept(cdrl.Trainer):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(cdrl, "Trainer", Kept)
    monkeypatch.setattr(cdrl, "UPDATES", 6)
    model = cdrl.trained.__wrapped__(10, True)
    average = made[0].ema.copy
    assert len(average) > 20
    assert all(torch.equal(p, average[f"denoiser.{name}"]) for name, p in model.named_parameters())
    shares = {id(p): group["factor"] for group in made[0].optimiser.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert shares[id(p)] == (0.1 if name.startswith("initialiser") else 1.0)


def test_draws_belong_to_their_position():
    model, x = CooperativeEnergy.of_vectors(2, 16, moves=2), LAW.sample(6).float()
    whole = RecoveryLikelihood().draw(model, {"x": x}, Key(1, 0, 6, torch.arange(6)))
    some = RecoveryLikelihood().draw(model, {"x": x[4:]}, Key(1, 0, 6, torch.tensor([4, 5])))
    assert all(torch.equal(v, whole[name][4:]) for name, v in some.items())
    assert whole["z"].shape == (6, 3, 2) and not torch.equal(whole["z"][:, 0], whole["z"][:, 1])


def test_spectral_norms_stand_still_in_a_chain():
    model = CooperativeEnergy.of_vectors(2, 16, moves=4, spectral=True).train()
    before = [b.clone() for b in model.buffers()]
    x = fk.noise((5, 2))
    model.refine(x, x, torch.tensor([0, 1, 2, 3, 5]), fk.noise((5, 4, 2)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True)) and model.training


def test_a_residual_energy_has_tails():
    energy = ResidualEnergy(MLP(2, width=16), LADDER)
    far = energy(torch.tensor([[50.0, 0.0], [0.0, -80.0]]), torch.tensor([0, 5]))
    assert bool((far < -500).all())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Ladder(levels=1), "at least 2 levels"),
        (lambda: Ladder(high=-6.0), "low < high"),
        (lambda: LADDER.strides(0.1, 1.0), "a part in"),
        (lambda: LADDER.shares(-0.1), "at least 0"),
        (lambda: ResidualEnergy(MLP(2, width=16), LADDER, (0.2, 0.3)), "one a level"),
        (lambda: exact(moves=0), "at least 1 move"),
        (lambda: exact(step=(0.4, 0.3)), "one for each level"),
        (lambda: RecoveryLikelihood(share=-1.0), "not negative"),
        (lambda: exact(moves=40, step=8.0).sample((4, 2)), "finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(FokkerError, match=says):
        call()
