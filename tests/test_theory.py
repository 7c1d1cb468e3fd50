"""Predictions of theory at points that are known by hand."""

import math

import pytest
import torch

from fokker.errors import FokkerError
from fokker.theory import LearningCurve, effective_rank, gradient_flow

F64 = torch.float64


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_the_density_has_its_mass_and_moments(ratio):
    values, shares, frozen = LearningCurve(ratio).modes()
    # white inputs: mass min(1, ratio), mean ratio, second moment ratio + ratio^2
    assert float(shares.sum()) + frozen == pytest.approx(1.0, abs=1e-3)
    assert float((shares * values).sum()) == pytest.approx(ratio, rel=1e-6)
    assert float((shares * values**2).sum()) == pytest.approx(ratio + ratio**2, rel=1e-6)


def test_limits_of_the_curve():
    curve = LearningCurve(0.5, noise=0.1, signal=2.0, start=0.3)
    assert float(curve(0.0)) == pytest.approx(2.3 + 0.1, rel=1e-3)
    # late, the data's span is fitted: noise / l has the mean ratio / (1 - ratio) over the modes
    late = LearningCurve(0.5, noise=0.1, signal=2.0)(1e6)
    assert float(late) == pytest.approx(0.5 * 2.0 + 0.1 * 0.5 / 0.5 + 0.1, rel=1e-3)
    assert float(LearningCurve(2.0, noise=0.1)(1e6)) == pytest.approx(0.1 / (2 - 1) + 0.1, rel=1e-3)


def test_a_measured_spectrum_predicts_its_own_network():
    """With the eigenvalues of the very data, only the draw of teacher and noise is left to chance."""
    times = torch.tensor([0.5, 5.0, 50.0], dtype=F64)
    found = torch.stack([gradient_flow(100, 80, times, 0.4, seed=k) for k in range(40)]).mean(0)
    predicted = LearningCurve(0.8, noise=0.16)(times)
    assert bool(((found - predicted).abs() < 0.08 * predicted).all())
    flat = LearningCurve(1.0, noise=0.0, spectrum=torch.tensor([2.0, 2.0, 0.0], dtype=F64))
    assert torch.allclose(flat(times), 2 / 3 * torch.exp(-4 * times) + 1 / 3)


def test_stopping_and_rank():
    curve = LearningCurve(1.0, noise=0.3)
    time, error = curve.stop()
    assert 0.5 < time < 50 and curve.ridge() < error < 1.05 * curve.ridge()
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(math.exp(1.5 * math.log(2)))
    with pytest.raises(FokkerError, match="ratio above 0"):
        LearningCurve(0.0)
