"""Feynman-Kac correctors against laws known in closed form: a square, a product, and what guidance stands for.

The square of a mixture has other masses than the mixture where widths differ, and a product those of the overlap: summing
scores alone finds neither, weights must. Guidance of scale 3 stands for p(x|c)^3 / p(x)^2, whose mean is integrated on a grid.

Null: the weights left out, which is the summed score alone.
"""

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.feynman_kac import corrected
from fokker.guide.cfg import CFG
from fokker.guide.compose import Compose
from fokker.keyed import uniform
from fokker.laws import GaussianMixture, product
from fokker.particles import Population

EXPECT = (
    "4,000 particles, 100 steps, mean of 4 runs: total variation of the mode masses to q^2 <= 0.08 where the unweighted score "
    "gives >= 0.25; error of the mean of a product of mixtures <= 0.3 x and of guidance at scale 3 <= 0.5 x unweighted"
)
COUNT, RUNS = 4000, 4


def check(seed: int, null: bool = False) -> Outcome:
    process = fk.VP()
    # widths and places of the modes, moved a little by the seed
    jitter = uniform((6, 2), seed, stream="check") - 0.5
    places = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]], dtype=torch.float64)
    narrow = torch.tensor([0.1, 0.5, 0.3], dtype=torch.float64).square()
    first = GaussianMixture([0.4, 0.35, 0.25], places + 0.5 * jitter[:3], narrow, labels=[0, 1, 1])
    second = GaussianMixture([0.5, 0.5], torch.tensor([[-1.0, 0.0], [1.0, 1.0]]) + 0.5 * jitter[3:5], torch.tensor([0.6, 0.2]))
    denoiser, labels = first.denoiser(process), torch.ones(COUNT, dtype=torch.int64)

    def runs(composed: fk.Denoiser, total: float, weighed: bool, count: int, cond: dict[str, Tensor]) -> list[Population]:
        # never resampled and with increments of nothing, the weights stay equal
        ess, clip = (0.9, None) if weighed else (0.0, 1e-300)
        grid = fk.grids.get("logsnr")(100)
        seeds = [RUNS * seed + k for k in range(count)]
        return [corrected(composed, (COUNT, 2), grid, s, total, ess=ess, clip=clip, cond=cond) for s in seeds]

    def masses(x: Tensor, weights: Tensor) -> Tensor:
        nearest = torch.cdist(x, first.means).argmin(1)
        return torch.zeros(3, dtype=torch.float64).index_add(0, nearest, weights)

    truth = product([first, first])
    exact = masses(truth.sample(100_000, seed), torch.full((100_000,), 1e-5, dtype=torch.float64))
    squared = Compose(denoiser, weights=[2.0], base=False)
    joint = Compose(denoiser, models=[second.denoiser(process)], base=False)
    targets: dict[str, tuple[fk.Denoiser, float, Tensor, dict[str, Tensor]]] = {
        "product": (joint, 2.0, product([first, second]).mean(), {}),
        "guidance": (CFG(denoiser, 3.0), 1.0, guided(first), {"label": labels}),
    }

    def measure(weighed: bool) -> dict[str, float]:
        # what the unweighted score misses is a bias: one run shows it
        many, few = (RUNS, 2) if weighed else (1, 1)
        squares = runs(squared, 2.0, weighed, many, {})
        out = {"total variation, q^2": sum(_apart(masses(p.x, p.weights[0]), exact) for p in squares) / many}
        for name, (composed, total, mean, cond) in targets.items():
            found = runs(composed, total, weighed, few, cond)
            out[f"error of the mean, {name}"] = sum(float((p.mean(p.x)[0] - mean).norm()) for p in found) / few
        return out

    plain = measure(False)
    found = plain if null else measure(True)
    return Outcome(
        measured=found,
        baseline={f"{name}, unweighted": value for name, value in plain.items()},
        criteria=[
            Criterion("total variation, q^2", found["total variation, q^2"], "<=", 0.08),
            Criterion("total variation, q^2, unweighted", plain["total variation, q^2"], ">=", 0.25),
            *(
                Criterion(f"error of the mean, {name}, over unweighted", found[key] / plain[key], "<=", bound)
                for name, bound in (("product", 0.3), ("guidance", 0.5))
                for key in [f"error of the mean, {name}"]
            ),
        ],
    )


def _apart(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum()) / 2


def guided(law: GaussianMixture) -> Tensor:
    """The mean of p(x | 1)^3 / p(x)^2, on a grid that is fine against every mode."""
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(3 * law.log_prob(points, label=1) - 2 * law.log_prob(points), 0)
    return weights @ points
