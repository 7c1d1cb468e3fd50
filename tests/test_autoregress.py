"""Tokens one after another: the order, the budget, keyed noise, and the straightness of a path."""

import pytest
import torch
from mixtures import normal
from torch import Tensor

import fokker as fk
from fokker.solve.autoregress import StepAnnealing, TokenDiffusion, path_straightness

FLOW = fk.Flow()


def test_budgets() -> None:
    assert [StepAnnealing(20, 2)(k / 4) for k in range(5)] == [20, 16, 11, 6, 2]
    assert [StepAnnealing(20, 2, "two-stage")(u) for u in (0.0, 0.49, 0.5, 1.0)] == [20, 20, 2, 2]
    assert [StepAnnealing(20, 2, "cosine")(u) for u in (0.0, 1.0)] == [20, 2]
    with pytest.raises(fk.FokkerError, match="did you mean 'linear'"):
        StepAnnealing(kind="liner")


def test_each_group_sees_what_came_before_and_has_noise_of_its_own() -> None:
    seen = []

    def belief(x_t: Tensor, t: float, total: Tensor) -> Tensor:
        return x_t * 0 + 1 + total[:, None, None]

    def context(tokens: Tensor, done: list[int], group: list[int]) -> dict[str, Tensor]:
        seen.append((list(done), list(group)))
        return {"total": tokens[:, done].sum((1, 2))}

    sampler = TokenDiffusion(fk.as_denoiser(belief, FLOW), context, StepAnnealing(3, 1), solver="ddim", end=0)
    drawn = sampler.sample((4, 3, 1), [[2], [0, 1]], seed=1)
    assert seen == [([], [2]), ([2], [0, 1])] and drawn.steps == (3, 1) and drawn.nfe == (3.0, 1.0)
    assert torch.equal(drawn.tokens[0, :, 0], torch.tensor([2.0, 2.0, 1.0]))
    with pytest.raises(fk.FokkerError, match="each of the 3 places once"):
        sampler.sample((4, 3, 1), [[2], [0]])


def test_a_sample_is_the_same_alone_and_in_a_batch() -> None:
    head = fk.laws.ring().denoiser(FLOW)
    sampler = TokenDiffusion(head, lambda *_: {}, StepAnnealing(3, 2), solver=fk.DPMSolverPP(sde=True), grid="logsnr")
    both = sampler.sample((6, 2, 2), [[0], [1]], seed=3).tokens
    alone = sampler.sample((1, 2, 2), [[0], [1]], seed=3, ids=[4]).tokens
    assert torch.allclose(both[4], alone[0], atol=1e-6)


def test_straightness_is_zero_for_one_point_and_its_closed_form_for_a_gaussian() -> None:
    x1 = normal(5, 2)
    point = fk.as_denoiser(lambda x, t: torch.zeros_like(x), FLOW)
    assert float(path_straightness(point, x1).max()) < 1e-20
    # N(0, 1) on the flow process: x_t = x_1 sqrt(t^2 + (1 - t)^2)
    gaussian = fk.laws.GaussianMixture([1.0], torch.zeros(1, 2), 1.0).denoiser(FLOW)
    t = torch.linspace(1e-3, 1, 20001, dtype=torch.float64)
    rate = (2 * t - 1) / torch.sqrt(t**2 + (1 - t) ** 2)
    expected = torch.trapezoid((rate - 1 / 0.999 * (1 - (1e-6 + 0.999**2) ** 0.5)) ** 2, t) * x1.square().sum(1)
    assert torch.allclose(path_straightness(gaussian, x1, 400), expected, rtol=1e-2)
