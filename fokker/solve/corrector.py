"""Predictor and corrector: a step of the reverse process, then Langevin moves that bring the state back to its law."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.onestep import transition

PREDICTORS = ("ancestral", "reverse-diffusion", "euler", "flow", "none")
NORMS = ("expected", "batch")


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A predictor from t to s, then `corrections` Langevin moves at s: x += h score + sqrt(2 h) z.

    With a = alpha_t / alpha_s and G^2 = sigma_t^2 - a^2 sigma_s^2, the forward step from s to t being a x + G z, predictors are

        ancestral          the exact Gaussian transition for the belief (DDPM's)
        reverse-diffusion  (2 - a) x + G^2 score + G z: the forward step's discretisation, reversed
        flow               (2 - a) x + G^2 score / 2: the same for the probability-flow ODE, without noise
        euler              Euler-Maruyama, x - (f x - g^2 score) (t - s) + g sqrt(t - s) z
        none               x itself: only the corrector moves (annealed Langevin dynamics)

    and h = 2 a^2 (snr |z| / |score|)^2. norms="batch" measures both norms as means over the batch, as published: a sample
    then depends on its batch. norms="expected" puts sigma_s in the place of |z| / |score|, its value where the data are thin
    beside the noise: a table, in which every sample is its own. 1 + corrections evaluations a step; grids that lead to x_0
    (end=0) finish with the belief, which is the paper's last denoising step.

    Reference: Song et al. 2021, arXiv 2011.13456, algorithms 1 to 5.
    """

    corrections: int = 1
    snr: float = 0.16
    predictor: str = "ancestral"
    norms: str = "expected"
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.corrections < 0 or not 0 < self.snr < 1:
            raise FokkerError(f"corrections={self.corrections}, snr={self.snr}: use corrections >= 0 and snr in (0, 1)")
        if self.predictor not in PREDICTORS:
            raise unknown("predictor", self.predictor, PREDICTORS)
        if self.norms not in NORMS:
            raise unknown("norms", self.norms, NORMS)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.corrections > 0 or self.predictor not in ("flow", "none")

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return (self.predictor != "none") + self.corrections

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            x = draft.ask(x, t) if s.data else self.predict(draft, x, t, s)
            if s.data:
                return x
            shrink = (t.alpha / s.alpha) ** 2
            for _ in range(self.corrections):
                x = draft.keep(x)
                if self.norms == "batch":
                    move = partial(_measured, draft.process, self.snr, float(shrink.mean()))
                    x = draft.adaptive(x, move, s, s, draws=True)
                    continue
                h = 2 * shrink * (self.snr * s.sigma) ** 2
                score = (s.alpha * draft.ask(x, s) - x) / s.sigma**2
                x = x + h * score + torch.sqrt(2 * h) * draft.noise(s, s)
        return x

    def predict(self, draft: Draft, x: Term, t: Node, s: Node) -> Term:
        """x at s by the predictor alone."""
        if self.predictor == "none":
            return x
        D = draft.ask(x, t)
        if bool((t.alpha == 0).any()):
            # no signal yet: the score is that of the noise, and the transition leaves it exactly
            return transition(draft, x, D, t, s, 0.0)
        if self.predictor == "ancestral":
            return transition(draft, x, D, t, s, 1.0)
        score = (t.alpha * D - x) / t.sigma**2
        if self.predictor == "euler":
            d_alpha, d_sigma = t.rates()
            drift = d_alpha / t.alpha
            g2, step = 2 * t.sigma * (d_sigma - t.sigma * drift), t.t - s.t
            return (1 - step * drift) * x + (step * g2) * score + torch.sqrt(step * g2) * draft.noise(t, s)
        a = t.alpha / s.alpha
        g2 = t.sigma**2 - (a * s.sigma) ** 2
        if self.predictor == "flow":
            return (2 - a) * x + (g2 / 2) * score
        return (2 - a) * x + g2 * score + torch.sqrt(g2) * draft.noise(t, s)


def _measured(
    process: Process,
    snr: float,
    shrink: float,
    x: Tensor,
    t: float,
    s: float,
    predict: Callable[[Tensor, float], Tensor],
    state: Any,
    draw: Callable[[tuple[int, ...]], Tensor],
) -> tuple[Tensor, Any]:
    """One Langevin move whose size is measured on the batch."""
    alpha, _, sigma = process.at(s)
    score = (alpha * predict(x, s) - x) / sigma**2
    z = (math.sqrt(2) * torch.erfinv(2 * draw(tuple(x.shape)) - 1)).to(x)
    # norms of the batch's means, not of each sample: a sample near a mode has hardly any score
    ratio = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
    h = 2 * shrink * (snr * ratio) ** 2
    return x + h * score + torch.sqrt(2 * h) * z, state
