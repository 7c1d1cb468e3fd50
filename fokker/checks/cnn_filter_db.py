"""Statistics of 3 x 3 kernels that tell trained, random and degenerate layers apart.

The paper: the entropy of explained variances of random kernels is bounded below by a curve in their number; degenerate layers
show low entropy or high sparsity; the distribution of trained kernels is its own. Gaussian kernels, layers made degenerate on
purpose, and the photographs' network of the zoo against the same network without training. The least of 300 draws is itself
uncertain by 0.03 at n = 4, so its mean over repeats is held against the curve. Between the numbers below, at n = 8, that mean
lies 0.03 above the curve.

Null: singular values in place of their squares.
"""

import torch

import fokker as fk
from fokker.checks import Criterion, Outcome
from fokker.net import build
from fokker.net.filters import filter_shift, random_threshold, scaled, sparsity, variance_entropy

EXPECT = (
    "least entropy of 300 Gaussian layers within 0.025 of the curve for n = 4, 16, 64, 256, 1024, 4096; a layer of one "
    "pattern: 0 to 1e-6; half the kernels zero: sparsity 0.5; shift to itself 0, symmetric, trained to random >= 3 x between "
    "two halves"
)
NUMBERS = (4, 16, 64, 256, 1024, 4096)


def unsquared(rows: torch.Tensor) -> float:
    """The entropy of singular values themselves."""
    s = torch.linalg.svdvals(rows - rows.mean(0))
    v = s / s.sum()
    return float(-torch.xlogy(v, v).sum()) / torch.log(torch.tensor(10.0)).item()


def check(seed: int, null: bool = False) -> Outcome:
    entropy = unsquared if null else variance_entropy
    gaps = {}
    for place, n in enumerate(NUMBERS):
        repeats = 40 if n <= 16 else 2
        least = [
            min(
                entropy(rows)
                for rows in fk.noise((300, n, 9), seed, stream="check", index=64 * place + k, dtype=torch.float64)
            )
            for k in range(repeats)
        ]
        gaps[n] = sum(least) / repeats - random_threshold(n)
    pattern = fk.noise((1, 9), seed, stream="check", index=1000, dtype=torch.float64)
    gains = fk.noise((64, 1), seed, stream="check", index=1001, dtype=torch.float64)
    rank_one = variance_entropy(gains * pattern)
    half = fk.noise((64, 9), seed, stream="check", index=1002, dtype=torch.float64)
    half[::2] = 0
    trained = scaled(fk.load("photos").denoiser.net)
    fresh = scaled(build("photos", seed=seed + 1))
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(seed))
    first, second = trained[order].chunk(2)
    apart, own = filter_shift(trained, fresh), filter_shift(first, second)
    worst = max(abs(g) for g in gaps.values())
    return Outcome(
        measured={
            **{f"least entropy minus the curve, n = {n}": g for n, g in gaps.items()},
            "entropy of one pattern": rank_one,
            "sparsity with half zero": sparsity(half),
            "shift, trained to random": apart,
        },
        baseline={"shift, two halves of the trained": own},
        criteria=[
            Criterion("least entropy from the curve, worst", worst, "<=", 0.025),
            Criterion("entropy of one pattern", abs(rank_one), "<=", 1e-6),
            Criterion("sparsity with half zero", sparsity(half), "==", 0.5),
            Criterion("shift to itself", filter_shift(trained, trained), "<=", 1e-12),
            Criterion("asymmetry of the shift", abs(apart - filter_shift(fresh, trained)), "<=", 1e-9),
            Criterion("shift to random over that between halves", apart / own, ">=", 3.0),
        ],
    )
