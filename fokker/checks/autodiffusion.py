"""AutoDiffusion: evolution picks the times of four DDIM calls.

The paper expects searched times to beat any fixed spacing at so few calls. Judged on noises that the search never saw, by the
Frechet distance to the exact mean and covariance of a mixture. Elitism means that the search cannot end above its first
candidates, and an empty skip mask must not change a bit.

Null: fitness is a random number, so evolution selects nothing.
"""

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome, exactly
from fokker.checks._mixture import mixture
from fokker.keyed import uniform
from fokker.measure.frechet import frechet_distance
from fokker.net import UNet
from fokker.solve.layerskip import LayerSkip
from fokker.solve.timegrid import run_on, search_timegrid

EXPECT = (
    "Frechet distance at 4 DDIM calls on unseen noise <= 0.6 x the uniform grid's and <= 0.8 x the quadratic one's "
    "(mixture, d=8, 6 components; 400 noises and 150 evaluations for the search); never above the start; empty mask: same bits"
)


def check(seed: int, null: bool = False) -> Outcome:
    law = mixture(8, 6, seed)
    process = fk.VP()
    denoiser, ddim = law.denoiser(process), fk.DDIM()
    mean, cov = law.mean(), law.cov()

    def distance(x: torch.Tensor) -> float:
        return float(frechet_distance(x.mean(0), torch.cov(x.T), mean, cov))

    calls = iter(uniform((150, 1), seed, stream="check", index=9)[:, 0].tolist())

    def fitness(x: torch.Tensor) -> float:
        return next(calls) if null else distance(x)

    noise = fk.noise((400, 8), seed, dtype=torch.float64)
    unseen = fk.noise((3000, 8), seed + 1000, dtype=torch.float64)
    grid, found = search_timegrid(ddim, denoiser, noise, fitness, steps=4, budget=150, seed=seed)
    held = {
        name: distance(run_on(ddim, denoiser, unseen, g))
        for name, g in (("searched", grid), ("uniform", fk.grids.uniform(4)), ("quadratic", fk.grids.quadratic(4)))
    }
    floor = distance(law.sample(3000, seed + 1))
    on_search = [distance(run_on(ddim, denoiser, noise, g)) for g in (grid, fk.grids.uniform(4), fk.grids.quadratic(4))]
    criteria = [
        Criterion("over the uniform grid", held["searched"] / held["uniform"], "<=", 0.6),
        Criterion("over the quadratic grid", held["searched"] / held["quadratic"], "<=", 0.8),
        Criterion("on the search noises, over the best first candidate", on_search[0] / min(on_search[1:]), "<=", 1 + 1e-3),
        Criterion("evaluations", found.evaluations, "<=", 150),
        exactly("an empty mask keeps the bits", _same_bits(seed)),
    ]
    measured = {"held-out distance": held["searched"], "evaluations": found.evaluations, "floor": floor}
    return Outcome(measured, {f"{k} grid": v for k, v in held.items() if k != "searched"}, criteria)


def _same_bits(seed: int) -> bool:
    """Whether a small network with nothing to skip gives the bits that it gives alone."""
    net = UNet(width=16, mults=(1, 1), blocks=1)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    denoiser = fk.NetworkDenoiser(net, fk.VP())
    x = fk.noise((2, 1, 8, 8), seed)
    alone = fk.sample(denoiser, x, solver="ddim", steps=3)
    masked = fk.sample(LayerSkip(denoiser, [(), (), ()]), x, solver="ddim", steps=3)
    return torch.equal(alone, masked)
