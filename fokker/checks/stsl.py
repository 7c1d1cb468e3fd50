"""STSL (Rout et al. 2024, arXiv 2312.00852): the trace of the score's Jacobian, and a start that knows the measurement.

Latents of 8 dimensions, a random mixture as exact prior, a linear decoder without stretch to 24 numbers of which 5 are
measured. The estimated trace against the analytic one of the law; the mean squared error of decoded samples from the start
by DDIM upwards against a random start; the second-order term, weighted by sigma^2, against the first-order sampler, whose
bits it must have at strength 0. The gain of the term itself is reported. 50 levels of 5 inner steps. The null has the random
start for its own. The error of exact posterior samples is reported beside: what is left for a start to gain.

That is little. In a level of length dt the exact likelihood moves a state by beta(t) dt / 2 of its score, about the gradient of
-|misfit|^2 / (2 s^2) with s^2 the variance of a measured number given the state; K inner steps move it by K lam of that of
-|misfit|^2. The two are equal at lam = beta(t) dt / (4 K s^2), about 0.015 where modes are decided (t = 0.5, s^2 = 0.7). At 0.1
the misfit is stronger than that and finds the mode from any start. Below, a start stays what it is, and the noise that DDIM
found above the measurement beats a random one: the error at 0.1 / 24, which is a mean over the decoded numbers in place of the
sum of the paper's norm, is reported beside, unjudged.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._mixture import mixture
from fokker.grids import Uniform
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.restore.operators import Matrix
from fokker.restore.tweedie import STSL, forward_start, hutchinson_trace

EXPECT = (
    "trace within 3 standard errors of the exact one at probe scale 0.1, beyond 3 at 1.0; DDIM-forward start: error <= 0.5 x a "
    "random start's; eta 0 is the first-order sampler to the bit; weighted by sigma^2 at eta 0.02 <= 1.05 x the first order"
)
PROCESS, GRID = fk.VP(), Uniform(50, end=0)
N, PROBES, NOISE, LAM, WEAK = 100, 500, 0.05, 0.1, 0.1 / 24


@dataclass(frozen=True)
class Scene:
    """A law of latents with its denoiser, the decoder, what is measured of it, the latents and their measurements."""

    law: GaussianMixture
    denoiser: fk.Denoiser
    decoder: Tensor
    A: Matrix
    z: Tensor
    y: Tensor

    def error(self, x: Tensor) -> float:
        """The mean squared error of what is decoded."""
        return float(((x - self.z) @ self.decoder.T).square().mean())


@cache
def scene(seed: int) -> Scene:
    law = mixture(8, 4, seed, spread=1.5)
    decoder = torch.linalg.qr(noise((24, 8), seed, stream="check", index=20, dtype=torch.float64))[0]
    A, z = Matrix(decoder[:5]), law.sample(N, seed)
    return Scene(law, law.denoiser(PROCESS), decoder, A, z, A.measure(z, NOISE, seed))


def start(seed: int, forward: bool) -> Tensor:
    """The state at t = 1: the encoded measurement by DDIM upwards, or noise."""
    s = scene(seed)
    random: Tensor = PROCESS.start(noise((N, 8), seed, dtype=torch.float64))
    return forward_start(s.denoiser, s.y @ s.decoder[:5], Uniform(50)) if forward else random


@cache
def run(seed: int, forward: bool, eta: float, lam: float = LAM) -> Tensor:
    s, plan = scene(seed), fk.solve.get("ddim").plan(PROCESS, GRID)
    out: Tensor = fk.sample(STSL(s.denoiser, s.A, s.y, NOISE, lam=lam, eta=eta), start(seed, forward), plan, seed=seed)
    return out


def check(seed: int, null: bool = False) -> Outcome:
    s, forward = scene(seed), not null
    first, second = run(seed, forward, 0.0), run(seed, forward, 0.02)
    from_noise, spread = s.error(run(seed, False, 0.0)), {h: trace(seed, h) for h in (0.1, 1.0)}
    gap = float((first - by_hand(s.denoiser, s.A, s.y, start(seed, forward))).norm(dim=1).median())
    # the latents have the draws of `seed` themselves
    exact = [s.law.posterior(s.decoder[:5], y, NOISE).sample(1, seed + 1, ids=[k]) for k, y in enumerate(s.y)]
    beliefs: list[Tensor] = [
        STSL(s.denoiser, s.A, s.y, NOISE, lam=LAM, eta=0.0, probe=h)(start(seed, False), 0.9) for h in (0.1, 1.0)
    ]
    return Outcome(
        measured={
            "error, second order": s.error(second),
            "error, first order": s.error(first),
            "trace at 0.1, standard errors off": spread[0.1],
            "trace at 1.0, standard errors off": spread[1.0],
            "error over a random start's at lam / 24": s.error(run(seed, forward, 0.0, WEAK))
            / s.error(run(seed, False, 0.0, WEAK)),
        },
        baseline={
            "error from a random start": from_noise,
            "error of exact posterior samples": s.error(torch.cat(exact)),
        },
        criteria=[
            Criterion("trace at 0.1, standard errors off", spread[0.1], "<=", 3.0),
            Criterion("trace at 1.0, standard errors off", spread[1.0], ">", 3.0),
            Criterion("error over a random start's", s.error(first) / from_noise, "<=", 0.5),
            exactly("eta 0 to the bit whatever the probe", torch.equal(*beliefs)),
            Criterion("eta 0 from the first-order loop by hand", gap, "<=", 1e-8),
            Criterion("second order over first", s.error(second) / s.error(first), "<=", 1.05),
        ],
    )


def by_hand(denoiser: fk.Denoiser, A: Matrix, y: Tensor, x: Tensor) -> Tensor:
    """Gradient steps on the misfit, five a level, and DDIM between the levels."""
    times = GRID.times(PROCESS).tolist()
    for t, s in pairwise(times):
        (alpha, _, sigma), (alpha_s, _, sigma_s) = PROCESS.at(t), PROCESS.at(s)
        for _ in range(5):
            at = x.clone().requires_grad_()
            (LAM * (y - A(denoiser(at, t))).square().sum()).backward()
            assert at.grad is not None
            x = x - at.grad
        D = denoiser(x, t)
        x = D if s == 0 else alpha_s * D + sigma_s * (x - alpha * D) / sigma
    return x


@cache
def trace(seed: int, h: float) -> float:
    """How many standard errors the estimated trace is off the exact one, the mean over 20 states at t = 0.3."""
    law, t = scene(seed).law, 0.3
    x = PROCESS.add_noise(law.sample(20, seed), noise((20, 8), seed, dtype=torch.float64), t)
    alpha, _, sigma = PROCESS.at(t)
    cov = law.posterior_cov(x, t, PROCESS).diagonal(dim1=-2, dim2=-1).sum(-1)
    exact = (alpha**2 / sigma**2 * cov - 8) / sigma**2
    many = x.repeat(PROBES, 1)  # one probe a row, so one batch
    found = hutchinson_trace(lambda v: law.score(v, t, PROCESS), many, 1, h, seed).reshape(PROBES, 20).T
    standard = float(found.var(1).sum().sqrt()) / math.sqrt(PROBES) / 20
    return abs(float((found.mean(1) - exact).mean())) / standard
