"""Robust recovery of a low-rank matrix by sub-gradients (Ma, Fattahi 2022, arXiv 2202.08788): a small start makes up for rank.

400 symmetric normal measurements of a 20 x 20 matrix of rank 2, of which a fifth are wrong by 10, where the true ones have a
standard deviation of about 1.4. Fitted with 2, 5 and 20 factors from starts of several sizes, 600 steps of 0.3 x 0.985^k; the
squared loss from the same start. Theory: under l1 the part outside the true range ends about where it began, so that the error
is that of the start; with the right rank there is no such part; and the size of an outlier does not enter. Errors are relative,
in the Frobenius norm.

Fits of the right rank have 600 log10(1 / start) steps, the schedule stretched with them. They had 600 at first, and one of 15
was not done growing its second factor (0.22 of an eigenvalue of 0.41): a small start takes log(1 / start) longer, and columns
that begin nearly across an eigenvector longer still. It loosens nothing: bounds, starts and null are as they were, and with as
many columns as rows, where the claim is, more steps would not help but harm.

Null: the squared loss in place of l1.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from fokker.checks import Criterion, Outcome
from fokker.keyed import noise, uniform
from fokker.restore.lowrank import robust_lowrank, sign_rip_deviation
from fokker.restore.operators import Matrix

EXPECT = (
    "rank 20 fitted to rank 2: error <= 1e-2 from a start of 1e-5 and <= 0.2 x that from 0.1, falling with the start; the "
    "right rank: <= 1e-3 from every start; squared loss >= 0.5; outliers 1,000 times larger change the error by less than a "
    "factor of 10"
)
SIDE, TRUE, ROWS, SHARE, SIZE = 20, 2, 400, 0.2, 10.0
STARTS, SMALL = (0.1, 1e-2, 1e-3, 1e-4, 1e-5), 1e-5


def problem(seed: int) -> tuple[Matrix, Tensor, Tensor]:
    """The measurement, the truth (1, 20, 20) and the outliers (1, 400)."""

    def normal(shape: tuple[int, ...], index: int) -> Tensor:
        return noise(shape, seed, stream="check", index=index, dtype=torch.float64)

    G, W = normal((ROWS, SIDE, SIDE), 0), normal((1, SIDE, TRUE), 1) / SIDE**0.5
    wrong = uniform((1, ROWS), seed, stream="check", index=2) < SHARE
    return Matrix(((G + G.mT) / 2).flatten(1), (SIDE, SIDE)), W @ W.mT, SIZE * normal((1, ROWS), 3).sign() * wrong


def check(seed: int, null: bool = False) -> Outcome:
    A, X, s = problem(seed)

    def error(
        rank: int, start: float, size: float = 1.0, squared: bool = null, normalised: bool = null, stretch: float = 1.0
    ) -> float:
        y, steps, decay = A(X) + size * s, round(600 * stretch), 1 - 0.015 / stretch
        found = robust_lowrank(
            A, y, rank, "l2" if squared else "l1", start, steps=steps, lr=0.3, decay=decay, normalised=normalised, seed=seed
        )
        return float((found.matrix - X).norm() / X.norm())

    full = [error(SIDE, a) for a in STARTS]
    right = [error(TRUE, a, stretch=-math.log10(a)) for a in STARTS]
    # a step of the squared loss is as long as the misfit is large, hence normalised
    squared = {rank: error(rank, SMALL, squared=True, normalised=True) for rank in (TRUE, 5, SIDE)}
    louder = error(SIDE, SMALL, 1000.0)
    scale, deviation = sign_rip_deviation(A, X, s)
    return Outcome(
        measured={
            **{f"error of rank 20, start {a:g}": e for a, e in zip(STARTS, full, strict=True)},
            "error of rank 5, start 1e-05": error(5, SMALL),
            "error of rank 2, the worst start": max(right),
            "error of rank 20, outliers of 10,000": louder,
            "error of rank 20, normalised steps": error(SIDE, SMALL, normalised=True),
            "scale of the sub-gradients": float(scale),
            "deviation of the sub-gradients, rank 4": float(deviation),
        },
        baseline={f"error of the squared loss, rank {rank}": e for rank, e in squared.items()},
        criteria=[
            Criterion("error of rank 20", full[-1], "<=", 1e-2),
            Criterion("over that of a start of 0.1", full[-1] / full[0], "<=", 0.2),
            Criterion("largest growth with a smaller start", max(b / a for a, b in pairwise(full)), "<", 1.0),
            Criterion("error of rank 2, the worst start", max(right), "<=", 1e-3),
            Criterion("error of the squared loss, rank 20", squared[SIDE], ">=", 0.5),
            Criterion("change by larger outliers", max(louder / full[-1], full[-1] / louder), "<", 10.0),
        ],
    )
