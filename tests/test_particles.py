"""Particles against laws in closed form: tilts, products, normalising constants; and what resampling must keep."""

import math

import pytest
import torch
from laws_for_tests import F64, LAW, PROCESSES
from torch import Tensor

import fokker as fk
from fokker.errors import FokkerError
from fokker.feynman_kac import FeynmanKacWeight, RewardWeight, corrected
from fokker.guide.cfg import CFG
from fokker.guide.compose import Compose
from fokker.laws import GaussianMixture, product
from fokker.particles import Particles, Passage, effective_sample_size, multinomial, systematic

VP = PROCESSES["vp"]


def grid(steps: int, **options: float) -> fk.grids.Grid:
    return fk.grids.get("logsnr")(steps, **options)


def nothing(step: Passage) -> Tensor:
    return torch.zeros(len(step.x_t), dtype=F64)


def test_systematic_children_are_as_many_as_the_weights_say():
    log_w = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]], dtype=F64))
    for seed in range(20):
        found = systematic(log_w + 3.0, seed)
        for g in range(2):
            share = 4 * log_w[g].exp()
            children = torch.bincount(found[g] - 4 * g, minlength=4)
            assert bool((children >= (share - 1e-9).floor()).all() and (children <= (share + 1e-9).ceil()).all())
    assert torch.equal(systematic(log_w, 3)[1], torch.arange(4, 8))
    assert torch.equal(systematic(log_w[:1], 5), systematic(log_w, 5)[:1])


def test_multinomial_frequencies():
    log_w = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]], dtype=F64)).repeat_interleave(1000, 1)
    share = torch.bincount(multinomial(log_w, 1)[0] // 1000, minlength=4) / 4000
    # four standard errors
    assert bool(((share - torch.tensor([0.1, 0.4, 0.3, 0.2])).abs() < 4 * 0.5 / 4000**0.5).all())


def test_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(torch.zeros(7)).item() == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(2)


@pytest.mark.parametrize("end", [None, 0])
def test_without_resampling_it_is_one_run(end):
    x = VP.start(fk.noise((8, 2), seed=1, dtype=F64))
    whole = fk.run(LAW.denoiser(VP), x, fk.solve.get("ddpm").plan(VP, grid(7, end=end)), seed=4)
    found = Particles(LAW.denoiser(VP), nothing).run(x, grid(7, end=end), seed=4)
    assert torch.equal(found.x, whole.x0) and found.nfe == whole.nfe == 7
    assert found.resampled == 0 and found.ess == pytest.approx([8.0] * 7)


@pytest.mark.parametrize("kind", ["difference", "max", "sum"])
def test_rewards_tilt_the_law(kind):
    """A linear reward has a closed form: mean and normalising constant of p(x) exp(a . x)."""
    a = torch.tensor([0.8, -0.5], dtype=F64)
    truth = LAW.tilt(linear=a)
    weight = RewardWeight(lambda x: x @ a, kind=kind)
    x = VP.start(fk.noise((6000, 2), seed=2, dtype=F64))
    scale = {"difference": 1.0, "max": 1.0, "sum": 0.05}[kind]
    found = Particles(LAW.denoiser(VP), RewardWeight(weight.reward, scale, kind), "ddpm").run(x, grid(40, end=0), seed=3)
    truth = LAW.tilt(linear=scale * a)
    constant = math.log(float((LAW.sample(400_000, seed=9) @ (scale * a)).exp().mean()))
    standard = float(truth.cov().diagonal().max().sqrt()) / min(found.ess) ** 0.5
    assert float((found.mean(found.x)[0] - truth.mean()).abs().max()) < 5 * standard + 0.02
    assert abs(float(found.log_normaliser) - constant) < 0.08
    # the same from the particles drawn with their weights
    assert float((found.drawn(1).mean(0) - truth.mean()).abs().max()) < 6 * standard + 0.02


def test_a_product_of_gaussians_is_exact_to_the_step():
    one = GaussianMixture([1.0], [[1.0, 0.0]], 0.5)
    two = GaussianMixture([1.0], [[-0.5, 0.8]], 0.3)
    truth = product([one, two])
    joint = Compose(one.denoiser(VP), models=[two.denoiser(VP)], base=False)
    found = corrected(joint, (5000, 2), grid(100), seed=1, total=2.0, solver="euler-maruyama")
    mean = found.mean(found.x)[0]
    spread = found.mean((found.x - mean).square())[0].sqrt()
    assert float((mean - truth.mean()).abs().max()) < 0.04
    assert torch.allclose(spread, truth.cov().diagonal().sqrt(), rtol=0.1)


def test_guidance_weights_vanish_where_guidance_is_off():
    labels = torch.tensor([1] * 16)
    x = VP.start(fk.noise((16, 2), seed=1, dtype=F64))
    off = Particles(CFG(LAW.denoiser(VP), 1.0), FeynmanKacWeight()).run(x, grid(6), seed=2, label=labels)
    assert torch.allclose(off.weights, torch.full((1, 16), 1 / 16, dtype=F64)) and abs(float(off.log_normaliser)) < 1e-9
    on = Particles(CFG(LAW.denoiser(VP), 2.0), FeynmanKacWeight(), ess=0.0).run(x, grid(6), seed=2, label=labels)
    # w (w - 1) D / 2 |s_c - s_u|^2 is never negative
    assert float(on.log_normaliser) > 0 and on.nfe == 12
    plain = fk.run(CFG(LAW.denoiser(VP), 2.0), x, fk.solve.get("ddpm").plan(VP, grid(6)), seed=2, label=labels)
    assert torch.allclose(on.x, plain.x0, atol=1e-9)


def test_groups_do_not_see_each_other():
    reward = RewardWeight(lambda x: 2 * x[:, 0])
    x = VP.start(fk.noise((40, 2), seed=1, dtype=F64))
    both = Particles(LAW.denoiser(VP), reward, ess=0.9).run(x, grid(8), groups=2, seed=3)
    alone = Particles(LAW.denoiser(VP), reward, ess=0.9).run(x[:20], grid(8), seed=3)
    assert torch.equal(both.x[:20], alone.x) and torch.equal(both.log_weights[:1], alone.log_weights)
    assert both.resampled > 0 and both.mean(both.x).shape == (2, 2)


def test_interval_and_clip_bound_the_increments():
    def one(step: Passage) -> Tensor:
        return torch.arange(len(step.x_t), dtype=F64)

    x = VP.start(fk.noise((4, 2), seed=1, dtype=F64))
    clipped = Particles(LAW.denoiser(VP), one, ess=0.0, clip=0.5).run(x, grid(4))
    assert torch.allclose(clipped.log_weights[0].diff(), torch.tensor([2.0, 0, 0], dtype=F64))
    never = Particles(LAW.denoiser(VP), one, ess=0.0, interval=(1e5, 1e6)).run(x, grid(4))
    assert torch.allclose(never.weights, torch.full((1, 4), 0.25, dtype=F64))


def test_refusals():
    denoiser, x = LAW.denoiser(VP), VP.start(fk.noise((4, 2), seed=1, dtype=F64))
    for options, says in (({"resample": "sistematic"}, "systematic"), ({"ess": 2.0}, "ess"), ({"interval": (2, 1)}, "low")):
        with pytest.raises(FokkerError, match=says):
            Particles(denoiser, nothing, **options)
    with pytest.raises(FokkerError, match="groups"):
        Particles(denoiser, nothing).run(x, grid(2), groups=3)
    with pytest.raises(FokkerError, match="one evaluation"):
        Particles(denoiser, nothing, solver="heun").run(x, grid(2))
    with pytest.raises(FokkerError, match="composition"):
        Particles(denoiser, FeynmanKacWeight()).run(x, grid(2))
    with pytest.raises(FokkerError, match="did you mean 'max'"):
        RewardWeight(lambda x: x[:, 0], kind="maxx")
    with pytest.raises(FokkerError, match="total"):
        corrected(denoiser, (4, 2), grid(2), total=0.0)
