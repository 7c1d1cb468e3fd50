"""RED-Diff (Mardani et al. 2024, arXiv 2305.04391): one image, optimised with the denoiser's residual as regulariser.

Theory: on one Gaussian, with noise in antithetic pairs and all levels summed, the gradient vanishes where
v A^T (A mu - y) / dim y + lam / dim x mean_t sigma^2 (alpha^2 C + sigma^2)^{-1} (mu - m) = 0. Held-out digits, half of the
pixels of each, noise 0.05, under an exact mixture prior: PSNR against DPS at the best of its steps, at equal evaluations,
and against the constant weight. The null takes the prior away (lam = 0).
"""

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._inverse import PROCESS, held_out, prior, psnr, restored
from fokker.keyed import uniform
from fokker.laws import GaussianMixture
from fokker.restore.dps import DPS
from fokker.restore.operators import Mask
from fokker.restore.variational import REDDiff

EXPECT = (
    "one Gaussian: relative gradient <= 1e-8 at the closed-form minimiser; PSNR >= DPS at 100 evaluations and >= DPS + 1 dB at "
    "1,000; weight sigma / alpha >= constant + 0.3 dB at lam 0.25"
)
N, NOISE, LAM = 128, 0.05, 0.25
STEPS = (0.2, 0.5, 1.0, 2.0)


def check(seed: int, null: bool = False) -> Outcome:
    x, A = held_out(N, seed), Mask((uniform((N, 1, 8, 8), seed, stream="check", index=5) < 0.5).double())
    y, lam = A.measure(x, NOISE, seed), 0.0 if null else LAM
    denoiser = prior().denoiser(PROCESS)
    measured = {"relative gradient": gradient(seed, lam)}
    baseline: dict[str, float] = {}
    criteria = [Criterion("relative gradient", measured["relative gradient"], "<=", 1e-8)]
    for nfe, more in ((100, 0.0), (1000, 1.0)):
        ours, constant = (
            psnr(restored(REDDiff(denoiser, A, y, lam=lam, weight=w), x.shape, "ddim", nfe, seed).x0, x)
            for w in ("snr", "constant")
        )
        dps = {k: psnr(restored(DPS(denoiser, A, y, step=k), x.shape, "ddpm", nfe, seed).x0, x) for k in STEPS}
        best = max(dps, key=lambda k: dps[k])
        measured[f"PSNR at {nfe}"] = ours
        baseline |= {
            f"PSNR of DPS at {nfe}": dps[best],
            f"step of DPS at {nfe}": best,
            f"PSNR of the constant weight at {nfe}": constant,
        }
        criteria += [
            Criterion(f"dB over DPS at {nfe}", ours - dps[best], ">=", more),
            Criterion(f"dB over the constant weight at {nfe}", ours - constant, ">=", 0.3),
        ]
    return Outcome(measured, baseline, criteria)


def gradient(seed: int, lam: float) -> float:
    """The norm of the summed gradient at the closed-form minimiser of lam = 0.25, relative to that of its data part."""
    digits = prior()
    law = GaussianMixture([1.0], digits.mean()[None], digits.cov(), shape=(1, 8, 8))
    A = Mask(0.5, (1, 8, 8), seed)
    y = A.measure(law.sample(1, seed), NOISE, seed)
    times = PROCESS.end + (1 - PROCESS.end) * torch.linspace(0, 1, 1000, dtype=torch.float64)
    alpha, sigma = PROCESS.alpha(times), PROCESS.sigma(times)
    values, vectors = torch.linalg.eigh(law.cov())
    mean = law.mean().flatten()
    shrink = (sigma[:, None] ** 2 / (alpha[:, None] ** 2 * values + sigma[:, None] ** 2)).mean(0)
    known = A.mask.expand(1, 8, 8).flatten()
    of_prior = LAM / 64 * (vectors * shrink) @ vectors.T
    right = y.flatten() / known.sum() + of_prior @ mean
    mu = torch.linalg.solve(torch.diag(known) / known.sum() + of_prior, right).reshape(1, 1, 8, 8)
    method = REDDiff(law.denoiser(PROCESS), A, y, lam=lam)
    eps = fk.noise((1000, 1, 8, 8), seed, dtype=torch.float64)
    pulls = [method.gradient(mu.expand(1000, 1, 8, 8), sign * eps, times) for sign in (1.0, -1.0)]
    total = (pulls[0] + pulls[1]).mean(0) / 2
    return float(total.norm() / (A.adjoint(A(mu) - y) / known.sum()).norm())
