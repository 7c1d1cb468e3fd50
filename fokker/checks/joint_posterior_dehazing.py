"""Joint posterior sampling of signal and clutter (Stevens et al. 2023, arXiv 2307.11204).

y = x + h + noise 0.05 in 16 dimensions, x from a mixture of six components, the haze h from a strong one of four of rank 3,
both denoisers exact. DPS on the pair with guidance 0.3 in 300 steps against the exact posterior mean under white haze of
matched power, which is stronger than any sampler of that model, and against exact samples of the joint posterior. The null
takes the haze's prior for white noise of the same power.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._mixture import mixture
from fokker.keyed import noise, uniform
from fokker.laws import GaussianMixture
from fokker.restore.dps import DPS
from fokker.restore.sources import Sources, Sum

EXPECT = (
    "squared error of x <= 0.25 x that of the exact posterior mean under white haze of the same power, and <= 3 x that of "
    "exact samples of the joint posterior"
)
PROCESS, DIM, NOISE, N = fk.VP(), 16, 0.05, 64


def haze(seed: int) -> GaussianMixture:
    """Four components of rank 3, as strong as or stronger than the signal."""
    draws = noise((4, DIM, 4), seed, stream="check", index=30, dtype=torch.float64)
    basis = torch.linalg.qr(draws[:, :, :3])[0]
    weights = 0.5 + uniform((4, 1), seed, stream="check", index=31)[:, 0]
    values = torch.full((4, 3), 2.0, dtype=torch.float64) ** 2
    return GaussianMixture(weights, draws[:, :, 3], (basis, values, torch.full((4,), 0.05, dtype=torch.float64)))


def check(seed: int, null: bool = False) -> Outcome:
    signal, clutter = mixture(DIM, 6, seed), haze(seed)
    x, h = signal.sample(N, seed), clutter.sample(N, seed + 100)
    y = x + h + NOISE * noise((N, DIM), seed, stream="check", index=32, dtype=torch.float64)
    power = float(clutter.cov().diagonal().mean())
    white = GaussianMixture([1.0], clutter.mean()[None], power)
    pair = Sources([signal.denoiser(PROCESS), (white if null else clutter).denoiser(PROCESS)])
    start = PROCESS.start(noise((N, 2, DIM), seed, dtype=torch.float64))
    ours = fk.sample(DPS(pair, Sum(), y, NOISE, step=0.3), start, solver="ddpm", grid="uniform", steps=300, end=0, seed=seed)
    eye = torch.eye(DIM, dtype=torch.float64)
    centred = y - clutter.mean()
    means = torch.stack([signal.posterior(eye, v, (power + NOISE**2) ** 0.5).mean() for v in centred])

    def error(found: Tensor) -> float:
        return float((found - x).square().sum(1).mean())

    joint, blind = error(exact(signal, clutter, y, seed)), error(means)
    return Outcome(
        measured={"squared error": error(ours[:, 0]), "misfit": float((y - ours.sum(1)).square().mean().sqrt())},
        baseline={"posterior mean under white haze": blind, "exact joint samples": joint},
        criteria=[
            Criterion("error over the white model's", error(ours[:, 0]) / blind, "<=", 0.25),
            Criterion("error over exact samples'", error(ours[:, 0]) / joint, "<=", 3.0),
        ],
    )


def exact(signal: GaussianMixture, clutter: GaussianMixture, y: Tensor, seed: int) -> Tensor:
    """A sample of x | y under both priors: the product mixture of (x, h), given their sum."""
    pairs = [(i, j) for i in range(signal.components) for j in range(clutter.components)]
    weights = torch.stack([signal.weights[i] * clutter.weights[j] for i, j in pairs])
    means = torch.stack([torch.cat([signal.means[i], clutter.means[j]]) for i, j in pairs])
    covs = torch.stack([torch.block_diag(signal.covs[i], clutter.covs[j]) for i, j in pairs])
    both = GaussianMixture(weights, means, covs)
    total = torch.cat([torch.eye(DIM, dtype=torch.float64)] * 2, 1)
    return torch.cat([both.posterior(total, v, NOISE).sample(1, seed, ids=[k]) for k, v in enumerate(y)])[:, :DIM]
