"""The implicit bias of deep linear self-distillation: predictable features first, noisy ones late or hardly.

Theory: the gain of a feature follows an ordinary differential equation; of two features of equal covariance the one with the
smaller regression coefficient is later, the more so the deeper the encoder, and masked autoencoding shows no such order.
Networks of full matrices in random bases are trained by gradient descent beside the equations. The start, 0.05, is that for
which the equations give the stated ratios.

Null: the loss of the masked autoencoder in place of self-distillation.
"""

import numpy as np
import torch

from fokker.checks import Criterion, Outcome, within
from fokker.theory.jepa import SelfDistillation, gradient_descent

EXPECT = (
    "gradient descent within 1e-3 of the equations, fixed points rho^L and rho^(L/(L+1)) to 2 %; ratio of times to 80 % of the "
    "fixed point (rho 0.5 over 0.9, lambda 1): 1.06, 1.44, 1.90 for L = 1, 2, 3 (+-5 %), growing; masked autoencoding within "
    "[0.88, 1.02]"
)
START, LR, RHO = 0.05, 0.0018, (0.9, 0.5)
STATED = (1.06, 1.44, 1.90)


def ratio(kind: str, depth: int, gains: np.ndarray, every: int) -> float:
    """Time to 80 % of the fixed point of the noisy feature over that of the clean one, in what was trained."""
    law = SelfDistillation(depth, kind)
    times = []
    for k, rho in enumerate(RHO):
        goal = 0.8 * law.fixed(rho)
        after = int(np.argmax(gains[:, k] >= goal))
        before = gains[after - 1, k]
        times.append((after - 1 + (goal - before) / (gains[after, k] - before)) * every * LR)
    return float(times[1] / times[0])


def check(seed: int, null: bool = False) -> Outcome:
    every, deviation, ends, ratios = 200, 0.0, 0.0, dict[tuple[str, int], float]()
    for kind in ("jepa", "mae"):
        trained_as = "mae" if null else kind
        for depth in (1, 2, 3):
            law = SelfDistillation(depth, kind)
            steps = round(2.5 * max(law.time_to(0.8, START, 1.0, rho) for rho in RHO) / LR / every) * every
            gains = gradient_descent(trained_as, depth, np.ones(2), np.array(RHO), START, steps, LR, every, seed)
            times = LR * every * torch.arange(len(gains), dtype=torch.float64)
            for k, rho in enumerate(RHO):
                path = law.path(times, START, 1.0, rho, 4).numpy()
                deviation = max(deviation, float(np.abs(gains[:, k] - path).max()))
                ends = max(ends, abs(float(gains[-1, k]) / law.fixed(rho) - 1))
            ratios[kind, depth] = ratio(kind, depth, gains, every)
    jepa, mae = ([ratios[kind, depth] for depth in (1, 2, 3)] for kind in ("jepa", "mae"))
    return Outcome(
        measured={
            "largest deviation from the equations": deviation,
            "largest deviation of fixed points": ends,
            **{f"ratio of times, depth {k + 1}": v for k, v in enumerate(jepa)},
        },
        baseline={f"ratio of times, masked autoencoder, depth {k + 1}": v for k, v in enumerate(mae)},
        criteria=[
            Criterion("deviation of gradient descent from the equations", deviation, "<=", 1e-3),
            Criterion("deviation of fixed points", ends, "<=", 0.02),
            *(
                row
                for v, s in zip(jepa, STATED, strict=True)
                for row in within("ratio of times", v, 0.95 * s, 1.05 * s)
            ),
            Criterion("least growth with depth", min(jepa[1] - jepa[0], jepa[2] - jepa[1]), ">", 0.0),
            *(row for v in mae for row in within("ratio of times, masked autoencoder", v, 0.88, 1.02)),
        ],
    )
