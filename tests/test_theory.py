"""Predictions of theory at points that are known by hand."""

import math

import numpy as np
import pytest
import torch

import fokker as fk
from fokker.errors import FokkerError
from fokker.theory import LearningCurve, SelfDistillation, effective_rank, feature_influence, gradient_flow
from fokker.theory.jepa import gradient_descent

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


@pytest.mark.parametrize("kind", ["jepa", "mae"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_networks_of_matrices_follow_the_equation(kind, depth):
    law, rho = SelfDistillation(depth, kind), 0.7
    gains = gradient_descent(kind, depth, np.ones(2), np.array([rho, 0.9]), 0.3, 600, 2e-3, 100, seed=1)
    path = law.path(2e-3 * 100 * torch.arange(7, dtype=F64), 0.3, 1.0, rho)
    assert float((torch.from_numpy(gains[:, 0]) - path).abs().max()) < 2e-3
    assert float(law.rate(torch.tensor(law.fixed(rho), dtype=F64), 1.0, rho).abs()) < 1e-12
    reached = law.path(torch.tensor([0.0, law.time_to(0.8, 0.05, 1.0, rho)], dtype=F64), 0.05, 1.0, rho, 4000)[-1]
    assert float(reached) == pytest.approx(0.8 * law.fixed(rho), rel=1e-5)


def test_influence_of_features_that_are_known():
    n = 40_000
    z = fk.noise((n, 6), 1, dtype=F64)
    turn = torch.linalg.qr(fk.noise((3, 3), 2, dtype=F64))[0]
    x = (torch.stack([z[:, 0], 2 * z[:, 1], z[:, 2]], 1)) @ turn.T
    y = torch.stack([0.9 * z[:, 0] + z[:, 3], z[:, 1] + z[:, 4], 0.1 * z[:, 2] + z[:, 5]], 1) @ turn.T
    covariance, rho, directions = feature_influence(x, y)
    assert torch.allclose(rho, torch.tensor([0.9, 0.5, 0.1], dtype=F64), atol=0.03)
    assert torch.allclose(covariance, torch.tensor([0.9, 2.0, 0.1], dtype=F64), atol=0.06)
    assert torch.allclose((turn.T @ directions).abs(), torch.eye(3, dtype=F64), atol=0.05)
    with pytest.raises(FokkerError, match="same shape"):
        feature_influence(x, y[:5])
    with pytest.raises(FokkerError, match="did you mean 'jepa'"):
        SelfDistillation(2, "jeppa")
