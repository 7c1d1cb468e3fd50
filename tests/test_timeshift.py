"""Time shift: labels come from the variance, steps start at the label, and a window of 0 is the solver without shift."""

import pytest
import torch

import fokker as fk
from fokker.solve.timeshift import TimeShift, matched_time

VP = fk.VP()
F64 = torch.float64


def test_a_variance_gives_its_time_in_high_dimension() -> None:
    eps = fk.noise((20, 4096), seed=1, dtype=F64)
    x0 = 0.5 * fk.noise((20, 4096), seed=2, dtype=F64)
    found = matched_time(VP, VP.add_noise(x0, eps, 0.33), 0.3, 0.2, data_variance=0.25)
    assert float((found - 0.33).abs().mean()) < 0.01
    # relative error sqrt(2 / d) of the variance, here 0.02, over its slope
    blind = matched_time(VP, VP.sigma(0.33) * eps, 0.3, 0.2)
    assert float((blind - 0.33).abs().mean()) < 0.01
    assert matched_time(VP, 100 * eps, 0.3, 0.2).tolist() == pytest.approx([0.4] * 20)
    assert matched_time(VP, 100 * eps, 0.98, 0.2).max() <= 1


def test_where_nothing_can_be_told_the_time_stays() -> None:
    x = fk.noise((3, 64), seed=1, dtype=F64)
    assert matched_time(VP, x, 0.4, 0.2, data_variance=1.0).tolist() == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("history", [1, 4])
def test_without_a_window_it_is_the_plain_solver(history: int) -> None:
    law = fk.laws.lowrank(dim=6, components=3, rank=2)
    x = fk.noise((5, 6), seed=0, dtype=F64)
    grid = fk.grids.uniform(8)
    plain = fk.solve.get("ddim") if history == 1 else fk.solve.get("ipndm")
    ours = fk.run(law.denoiser(VP), x, TimeShift(history, window=0.0).plan(VP, grid))
    assert torch.allclose(ours.x0, fk.sample(law.denoiser(VP), x, plain.plan(VP, grid)), atol=1e-10)
    assert ours.nfe == 8
    data = fk.grids.uniform(8, end=0)
    ends = (fk.sample(law.denoiser(VP), x, s.plan(VP, data)) for s in (TimeShift(history, window=0.0), plain))
    assert torch.allclose(next(ends), next(ends), atol=1e-10)


def test_the_denoiser_is_asked_at_the_label_and_the_step_starts_there() -> None:
    asked: list[object] = []

    def x0(x: torch.Tensor, t: object) -> torch.Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    # all belief is 0, so that a step from label to s is x sigma_s / sigma_label
    x = fk.noise((2, 1024), seed=3, dtype=F64) * torch.tensor([[1.0], [0.97]], dtype=F64)
    times = [0.5, 0.4, 0.3, 0.2]
    out = fk.sample(fk.as_denoiser(x0, VP), x, TimeShift(window=0.1, cutoff=0.35).plan(VP, fk.grids.Times(times)))
    first = x * float(VP.sigma(0.4) / VP.sigma(0.5))
    label = matched_time(VP, first, 0.4, 0.1)
    assert asked[0] == 0.5 and isinstance(asked[1], torch.Tensor) and torch.equal(asked[1], label)
    assert float(label[0] - label[1]) > 0.005, "each sample has its own"
    assert asked[2] == 0.3, "below the cutoff nothing is shifted"
    expected = first * (VP.sigma(0.3) / VP.sigma(label))[:, None] * float(VP.sigma(0.2) / VP.sigma(0.3))
    assert torch.allclose(out, expected, atol=1e-12)


def test_each_sample_is_its_own_and_options_are_checked() -> None:
    law = fk.laws.lowrank(dim=64).affine(0.5)
    x = fk.noise((4, 64), seed=0, dtype=F64)
    plan = TimeShift(data_variance=0.25).plan(VP, fk.grids.uniform(6))
    assert torch.allclose(
        fk.sample(law.denoiser(VP), x, plan)[2:3], fk.sample(law.denoiser(VP), x[2:3], plan), atol=1e-12
    )
    with pytest.raises(fk.FokkerError, match="history=5"):
        TimeShift(5)
    with pytest.raises(fk.FokkerError, match="window=-1"):
        TimeShift(window=-1)
