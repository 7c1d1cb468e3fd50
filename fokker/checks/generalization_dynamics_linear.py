"""Learning curves of linear networks from random-matrix theory, against networks that are trained.

Theory: modes of the sample covariance learn independently and their density is Marchenko-Pastur's. The late error peaks where
parameters equal samples, because of small eigenvalues; stopping early removes the peak; the subspace that data do not span is
frozen at the initial weights. Eighty draws, because the mean of twenty is itself uncertain by 2 per cent.

Null: all modes learn at the mean rate (the spectrum is replaced by its mean).
"""

import math

import torch

from fokker.checks import Criterion, Outcome, within
from fokker.theory import LearningCurve, gradient_flow

EXPECT = (
    "error of E_g over t = 0.1 .. 1000 (N = 200, 80 draws) <= 5 % for P / N of 0.25, 0.5, 2, 4 and <= 15 % at 1; E_g(1000) is "
    "greatest at 1 and >= 3 x its early-stopped value; initial weights of unit variance add 0.5 +- 0.1 at P / N = 0.5; the "
    "best moment to stop is within 5 % of optimal ridge"
)
DIM, DRAWS, NOISE = 200, 80, 0.2
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
TIMES = torch.tensor([0.1, 1.0, 5.0, 20.0, 100.0, 1000.0], dtype=torch.float64)


def measured(ratio: float, seed: int, start: float = 0.0) -> torch.Tensor:
    """E_g (times,), the mean of the draws."""
    rows = [
        gradient_flow(DIM, round(ratio * DIM), TIMES, math.sqrt(NOISE), math.sqrt(start), 1000 * seed + k)
        for k in range(DRAWS)
    ]
    return torch.stack(rows).mean(0)


def check(seed: int, null: bool = False) -> Outcome:
    found = {ratio: measured(ratio, seed) for ratio in RATIOS}
    curves = {
        r: LearningCurve(r, NOISE, spectrum=torch.full((DIM,), r, dtype=torch.float64) if null else None)
        for r in RATIOS
    }
    errors = {r: float(((curves[r](TIMES) - found[r]) / found[r]).abs().max()) for r in RATIOS}
    late = {r: float(found[r][-1]) for r in RATIOS}
    added = float(measured(0.5, seed, 1.0)[-1] - found[0.5][-1])
    predicted = float(LearningCurve(0.5, NOISE, start=1.0)(1000.0) - LearningCurve(0.5, NOISE)(1000.0))
    stopped = curves[1.0].stop()[1]
    ridge = max(curves[r].stop()[1] / LearningCurve(r, NOISE).ridge() for r in RATIOS)
    return Outcome(
        measured={
            **{f"largest deviation, P / N = {r:g}": e for r, e in errors.items()},
            "E_g(1000) at P / N = 1, trained": late[1.0],
            "added by unit initial weights at 0.5": added,
            "early stopping over ridge, worst": ridge,
        },
        baseline={
            **{f"E_g(1000) at P / N = {r:g}, trained": v for r, v in late.items() if r != 1.0},
            "E_g at the best moment, P / N = 1": stopped,
            "predicted to be added": predicted,
        },
        criteria=[
            Criterion("deviation away from 1", max(e for r, e in errors.items() if r != 1.0), "<=", 0.05),
            Criterion("deviation at 1", errors[1.0], "<=", 0.15),
            Criterion(
                "late error at 1 over the next greatest",
                late[1.0] / max(v for r, v in late.items() if r != 1),
                ">",
                1.0,
            ),
            Criterion("late error at 1 over the early-stopped", late[1.0] / stopped, ">=", 3.0),
            *within("added by unit initial weights", added, 0.4, 0.6),
            Criterion("early stopping over optimal ridge, worst", ridge, "<=", 1.05),
        ],
    )
