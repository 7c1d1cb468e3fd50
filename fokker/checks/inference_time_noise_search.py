"""Search over noise: compute spent on choosing the noise, against compute spent on steps.

Theory: random search returns the largest of N independent rewards, whose mean is an order statistic of the reward's law, here
from 20,000 samples of their own. More steps move a sample to where its noise leads, which the reward does not care about. A
neighbour of a good noise is good more often than a new one, so that a local search beats random search once it has rounds
enough.

The mixture has 12 modes in 8 dimensions, the reward is -|x - x*|^2 with x* near the mode that is farthest from the mean, so
that there is something to be found; 10 steps of DDIM, 256 searches. The search over paths has 640 evaluations too and is
reported, not judged: nothing was published for such a law.

Null: the verifier judges by numbers that have nothing to do with the sample.
"""

import math

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.checks._mixture import mixture
from fokker.keyed import noise, uniform
from fokker.noise_search import Algorithm, NoiseSearch, Paths, Random, ZeroOrder
from fokker.verifier import Verifier

EXPECT = (
    "random search equals the mean of the largest of N within 3 standard errors, N = 4, 16, 64; at N = 16 it gains >= 5 where "
    "16 x the steps gain < 1; zero-order search (keep 0.7, 4 neighbours) beats it at 64 candidates by more than 3 standard "
    "errors"
)
DIM, STEPS, SEARCHES, POOL = 8, 10, 256, 20_000


def largest(rewards: Tensor, n: int) -> tuple[float, float]:
    """The mean of the largest of n rewards, and its deviation: every subset of n of the pool counts once."""
    r = rewards.sort().values
    i = torch.arange(1, len(r) + 1, dtype=torch.float64)
    log = torch.lgamma(i) - torch.lgamma((i - n + 1).clamp_min(1)) - math.lgamma(n)
    all_subsets = math.lgamma(len(r) + 1) - math.lgamma(n + 1) - math.lgamma(len(r) - n + 1)
    w = torch.where(i >= n, torch.exp(log - all_subsets), torch.zeros_like(log))
    mean = float(w @ r)
    return mean, float((w @ (r - mean) ** 2).sqrt())


def check(seed: int, null: bool = False) -> Outcome:
    law, process = mixture(DIM, 12, seed), fk.VP()
    denoiser = law.denoiser(process)
    farthest = (law.means - law.mean()).norm(dim=1).argmax()
    target = law.means[farthest] + 0.2 * noise((1, DIM), seed, stream="check", index=5, dtype=torch.float64)

    def reward(x: Tensor) -> Tensor:
        return -(x - target).square().sum(1)

    def blind(x: Tensor) -> Tensor:
        return uniform((len(x), 1), seed, None, "check", 6)[:, 0]

    verifier: Verifier = blind if null else reward
    grid = fk.grids.get("uniform")(STEPS, end=0)

    def searched(count: int, algorithm: Algorithm) -> Tensor:
        search = NoiseSearch(
            denoiser, verifier, count * STEPS, algorithm, solver="ddim", grid=grid, batch=1 << 14, dtype=torch.float64
        )
        found = search.run((SEARCHES, DIM), seed)
        assert found.nfe <= count * STEPS
        return reward(found.x0)

    def sampled(n: int, steps: int, index: int) -> Tensor:
        x1 = process.start(noise((n, DIM), seed, stream="check", index=index, dtype=torch.float64))
        return reward(fk.sample(denoiser, x1, solver="ddim", grid="uniform", steps=steps, end=0))

    pool = sampled(POOL, STEPS, 7)
    base, finer = float(pool.mean()), float(sampled(4000, 16 * STEPS, 8).mean())
    ours, exact, off = {}, {}, {}
    for count in (4, 16, 64):
        r = searched(count, Random())
        mean, deviation = largest(pool, count)
        error = deviation * (1 / SEARCHES + count / POOL) ** 0.5
        ours[count], exact[count], off[count] = r, mean, abs(float(r.mean()) - mean) / error
    local, paths = searched(64, ZeroOrder(4, 0.7)), searched(64, Paths())
    ahead = (local - ours[64]).mean() / ((local - ours[64]).std() / SEARCHES**0.5)
    return Outcome(
        measured={
            **{f"random search, {count} candidates": float(r.mean()) for count, r in ours.items()},
            "zero-order search, 64 candidates": float(local.mean()),
            "search over paths, 640 evaluations": float(paths.mean()),
        },
        baseline={
            "one sample": base,
            "one sample, 16 x the steps": finer,
            **{f"mean of the largest of {count}": mean for count, mean in exact.items()},
        },
        criteria=[
            *(Criterion(f"standard errors to the largest of {count}", value, "<=", 3.0) for count, value in off.items()),
            Criterion("gain of 16 candidates", float(ours[16].mean()) - base, ">=", 5.0),
            Criterion("gain of 16 x the steps", finer - base, "<", 1.0),
            Criterion("zero-order over random search, standard errors", float(ahead), ">", 3.0),
        ],
    )
