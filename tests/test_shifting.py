"""The published chains of processes that lead to an observation."""

import pytest
import torch

import fokker as fk
from fokker.anchored import ResidualDenoising, ResidualShift
from fokker.errors import FokkerError
from fokker.plan import Row
from fokker.solve.shifting import chain

LAW = fk.laws.lowrank(dim=6, components=3, rank=2, seed=0)


def asked(plan) -> list[float]:
    return [float(row.t) for row in plan.rows if isinstance(row, Row) and row.t is not None]


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_the_chain_of_resshift_is_the_published_one(steps: int) -> None:
    """sqrt(eta_k) = a (b / a)^(u^p), u = (k - 1) / (T - 1), and the output is the last belief itself."""
    process = ResidualShift(kappa=2.0, least=0.2)
    plan = chain(process, steps)
    u = torch.linspace(1, 0, steps, dtype=torch.float64)
    eta = (0.1 * (0.99 / 0.1) ** u**0.3).square()
    assert torch.allclose(process.beta(torch.tensor(asked(plan))), eta, rtol=1e-7)
    y = LAW.sample(5, seed=1)
    beliefs = []
    x = fk.sample(
        LAW.denoiser(process),
        process.start(fk.noise((5, 6), seed=2, dtype=torch.float64), y),
        plan,
        y=y,
        watch=lambda run, x_t, belief: beliefs.append(belief),
    )
    assert len(beliefs) == steps and torch.equal(x, beliefs[-1])


def test_the_chain_of_rddm_has_the_times_k_over_n() -> None:
    plan = chain(ResidualDenoising(noise=0.1), 5, eta=0.0)
    assert asked(plan) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2]) and plan.end is None and not plan.noises


def test_the_least_noise_is_left_at_time_zero() -> None:
    assert ResidualShift(kappa=2.0, least=0.2).sigma(0.0) == pytest.approx(0.2)
    assert ResidualShift(kappa=0.5, least=0.2).sigma(0.0) == pytest.approx(0.1)
    with pytest.raises(FokkerError, match="steps=0"):
        chain(ResidualShift(), 0)
