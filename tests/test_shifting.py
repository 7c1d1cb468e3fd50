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


def test_rddm_on_a_gaussian_is_the_published_loop() -> None:
    """I_{k-1} = I_k - (A_k - A_{k-1}) res - (B_k - B_{k-1}) eps for k = 5 .. 1, with the belief of N(m, C) in closed form."""
    process, steps = ResidualDenoising(noise=0.1), 5
    mean, mix = fk.noise((6,), seed=3).double(), fk.noise((6, 6), seed=4).double()
    C, eye = mix @ mix.T / 6, torch.eye(6, dtype=torch.float64)
    law = fk.laws.GaussianMixture([1.0], mean[None], C[None])
    y, eps = law.sample(5, seed=1), fk.noise((5, 6), seed=2, dtype=torch.float64)
    A, B = (lambda k: 1 - (1 - k / steps) ** 2), (lambda k: 0.1 * k / steps)
    x = y + 0.1 * eps
    for k in range(steps, 0, -1):
        alpha = 1 - A(k)
        gain = alpha * C @ torch.linalg.inv(alpha**2 * C + B(k) ** 2 * eye)
        D = mean + (x - A(k) * y - alpha * mean) @ gain.T
        noise = (x - alpha * D - A(k) * y) / B(k)
        x = x - (A(k) - A(k - 1)) * (y - D) - (B(k) - B(k - 1)) * noise
    found = fk.sample(law.denoiser(process), process.start(eps, y), chain(process, steps, eta=0.0), y=y)
    assert torch.allclose(found, x, atol=1e-10)


@pytest.mark.parametrize(("kappa", "share"), [(0.5, 0.3676), (2.0, 0.2362)])
def test_the_chain_of_resshift_keeps_the_share_of_the_variance_that_it_must(kappa: float, share: float) -> None:
    """v_s = (r + (1 - r) g)^2 v_t + kappa^2 eta_s (1 - r), r = eta_s / eta_t, on N(0, c): less for the larger kappa."""
    process, c, steps = ResidualShift(kappa=kappa, least=0.2), 0.4**2, 4
    low = min(0.2 / kappa, 0.2)
    eta = [(low * (0.99 / low) ** ((k / (steps - 1)) ** 0.3)) ** 2 for k in range(steps)]
    gain = [(1 - e) * c / ((1 - e) ** 2 * c + kappa**2 * e) for e in eta]
    v = kappa**2 * eta[-1]
    for k in range(steps - 1, 0, -1):
        r = eta[k - 1] / eta[k]
        v = (r + (1 - r) * gain[k]) ** 2 * v + kappa**2 * eta[k - 1] * (1 - r)
    v *= gain[0] ** 2
    assert v / c == pytest.approx(share, abs=1e-4)
    law = fk.laws.GaussianMixture([1.0], torch.zeros(1, 8, dtype=torch.float64), c)
    y = law.sample(4000, seed=1)
    x1 = process.start(fk.noise((4000, 8), seed=2, dtype=torch.float64), y)
    x = fk.sample(law.denoiser(process), x1, chain(process, steps), y=y)
    # the standard error of a variance of n normal numbers is sqrt(2 / n) of it
    assert x.square().mean().item() == pytest.approx(v, rel=4 * (2 / x.numel()) ** 0.5)
