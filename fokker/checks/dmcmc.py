"""Denoising MCMC: a Gibbs chain over data and noise level, finished by a short Heun run.

Theory: with the exact p(t | x) and a small step the chain leaves p(x, t) as it is; its low-noise visits skip most of the way
from noise to data, so at 9 evaluations a sample it beats Heun from the top. The weights of the modes come from the start.

Null: the level drawn without looking at x.
"""

import itertools
import math

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.keyed import noise, uniform
from fokker.laws import GaussianMixture
from fokker.measure import frechet_distance
from fokker.solve.chain import ChainState, DenoisingMCMC, LevelPosterior

EXPECT = (
    "at 9 evaluations a sample the Frechet distance is <= 0.2 x Heun's at 9 from sigma 50, for eta 0.02 to 0.2; from 600 exact "
    "draws the mean of log sigma moves < 3 standard errors in 30 updates at eta 0.005; component weights within 0.06"
)
PROCESS = fk.VE(sigma_min=0.01, sigma_max=50.0)
CHAINS, EMISSIONS, DIM, LEVELS = 500, 5, 16, 250


def check(seed: int, null: bool = False) -> Outcome:
    weights = 0.5 + uniform((6, 1), seed, stream="check", index=1)[:, 0]
    law = GaussianMixture(weights, noise((6, DIM), seed, stream="check", dtype=torch.float64), 0.25**2)
    denoiser = law.denoiser(PROCESS)
    exact = LevelPosterior(law, PROCESS)

    def levels(x: Tensor, times: Tensor) -> Tensor:
        return torch.zeros(len(x), len(times), dtype=torch.float64) if null else exact(x, times)

    def distance(x: Tensor) -> float:
        return frechet_distance(x.mean(0), torch.cov(x.T), law.mean(), law.cov())

    x1 = PROCESS.start(noise((CHAINS * EMISSIONS, DIM), seed, dtype=torch.float64))
    heun = fk.run(denoiser, x1, solver="heun", grid="karras", nfe=9, end=0)
    far = distance(heun.x0)
    measured: dict[str, float] = {}
    criteria: list[Criterion] = []
    for eta in (0.02, 0.2):
        sampler = DenoisingMCMC(denoiser, levels, eta=eta, count=LEVELS)
        state = sampler.start((CHAINS, DIM), seed)
        drawn = list(itertools.islice(sampler.samples(state, seed), EMISSIONS))
        x = torch.cat([d.x0 for d in drawn])
        share = law.responsibilities(x).mean(0)
        apart = float((share - law.weights).abs().sum() / 2)
        before, after = (law.responsibilities(v.x0).argmax(1) for v in (drawn[0], drawn[-1]))
        measured[f"distance at eta {eta}"] = distance(x)
        measured[f"evaluations at eta {eta}"] = drawn[-1].nfe
        measured[f"weights off at eta {eta}"] = apart
        measured[f"chains that changed modes at eta {eta}"] = float((before != after).double().mean())
        criteria += [
            Criterion(f"distance over Heun's at eta {eta}", measured[f"distance at eta {eta}"] / far, "<=", 0.2),
            Criterion(f"evaluations at eta {eta}", drawn[-1].nfe, "<=", heun.nfe),
            Criterion(f"weights off at eta {eta}", apart, "<=", 0.06),
        ]
    chain = DenoisingMCMC(denoiser, levels, eta=0.005, count=LEVELS)
    level = (uniform((600, 1), seed, stream="check", index=5)[:, 0] * chain.count).long()
    x0, eps = law.sample(600, seed), noise((600, DIM), seed, stream="check", index=6, dtype=torch.float64)
    state = ChainState(PROCESS.add_noise(x0, eps, chain.times[level]), level)
    for _ in range(30):
        state = chain.update(state, seed)
    log_sigma = [torch.log(PROCESS.sigma(chain.times[v])) for v in (level, state.level)]
    moved = float((log_sigma[1].mean() - log_sigma[0].mean()).abs())
    standard = float(log_sigma[0].std()) / math.sqrt(600)
    measured["mean log sigma moved"] = moved
    criteria.append(Criterion("mean log sigma moved, in standard errors", moved / standard, "<", 3.0))
    floor = distance(law.sample(CHAINS * EMISSIONS, seed + 50))
    return Outcome(measured, {"Heun's distance": far, "evaluations of Heun": heun.nfe, "floor": floor}, criteria)
