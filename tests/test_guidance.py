"""Guidance against the tilted law, in closed form for single Gaussians."""

import pytest
import torch
from laws_for_tests import F64

import fokker as fk
from fokker.errors import FokkerError

PROCESSES = [fk.VP(), fk.EDM(), fk.Flow()]
# two classes, one component each: p(x), p(x | 0), p(x | 1); and one Gaussian whose "classes" are itself
SPREAD = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.8]]], dtype=F64)
LAW = fk.laws.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], SPREAD, labels=[0, 1])


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.name)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_the_guided_score_is_that_of_the_tilted_marginal(process, scale):
    # grad log p_t(x)^{1 - w} p_t(x | c)^w = (1 - w) grad log p_t(x) + w grad log p_t(x | c)
    x = 2 * fk.noise((16, 2), seed=1, dtype=F64)
    label = torch.zeros(16, dtype=torch.int64)
    t = process.time(0.5).item()
    guided = fk.guide.CFG(LAW.denoiser(process), scale=scale).predict("score", x, t, label=label)
    expected = (1 - scale) * LAW.score(x, t, process) + scale * LAW.conditional(0).score(x, t, process)
    assert torch.allclose(guided, expected, rtol=1e-9, atol=1e-9)


def test_a_negative_condition_takes_the_place_of_none():
    process, x = fk.VP(), fk.noise((8, 2), seed=2, dtype=F64)
    zero, one = (torch.full((8,), k) for k in (0, 1))
    denoiser = LAW.denoiser(process)
    guided = fk.guide.CFG(denoiser, scale=3.0, negative={"label": one})(x, 0.4, label=zero)
    expected = denoiser(x, 0.4, label=one) + 3 * (denoiser(x, 0.4, label=zero) - denoiser(x, 0.4, label=one))
    assert torch.allclose(guided, expected, atol=1e-12)


def test_outside_its_interval_guidance_costs_nothing():
    process = fk.EDM()
    label = torch.zeros(4, dtype=torch.int64)
    x1 = process.start(fk.noise((4, 2), dtype=F64))
    plan = fk.solve.get("ddim").plan(process, fk.grids.karras(10))
    ratios = [process.at(float(t))[2] for t in plan.times]
    low, high = 0.1, 5.0
    trace = fk.run(fk.guide.CFG(LAW.denoiser(process), 4.0, interval=(low, high)), x1, plan, label=label)
    assert trace.nfe == 10 + sum(low <= r <= high for r in ratios)


def test_branches_in_one_batch_are_the_branches_one_by_one():
    process, x = fk.VP(), fk.noise((5, 2), dtype=F64)
    label = torch.tensor([0, 1, 0, 1, 1])
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    one, many = (fk.guide.CFG(LAW.denoiser(process), 2.5, batched=b)(x, t, label=label) for b in (False, True))
    assert torch.allclose(one, many, atol=1e-12)


def test_a_scale_for_each_sample():
    process, x = fk.VP(), fk.noise((3, 2), dtype=F64)
    label = torch.tensor([0, 1, 1])
    scales = torch.tensor([1.0, 2.0, 5.0])
    together = fk.guide.CFG(LAW.denoiser(process), scales)(x, 0.5, label=label)
    for k, scale in enumerate(scales.tolist()):
        alone = fk.guide.CFG(LAW.denoiser(process), scale)(x[k : k + 1], 0.5, label=label[k : k + 1])
        assert torch.allclose(together[k : k + 1], alone, atol=1e-12)


def test_an_interval_that_cannot_be_is_refused():
    with pytest.raises(FokkerError, match="interval"):
        fk.guide.CFG(LAW.denoiser(fk.VP()), 2.0, interval=(3.0, 1.0))
