"""Potentials of particle methods: what turns heuristic scores and rewards into exact targets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid
from fokker.keyed import noise
from fokker.particles import Particles, Passage, Population
from fokker.process import expand
from fokker.solve import Solver

Reward = Callable[..., Tensor]  # (x_0 (n, ...), **cond) -> (n,)
KINDS = ("difference", "max", "sum")


@dataclass(frozen=True)
class FeynmanKacWeight:
    """The weight that a sum of scores S = sum_i a_i s_i lacks for the target prod_i q_{i,t}(x)^{a_i}:

        d log w = (D / 2) (|S|^2 - sum_i a_i |s_i|^2)

    with D the variance that a step removes in u = x / alpha (g^2 dt there, where the drift is 0 and with it the term of its
    divergence). The denoiser must be a composition: CFG, Compose. Weights a_i may not change with time.
    Reference: Skreta, Akhound-Sadegh, Ohanesian et al. 2025, arXiv 2503.02819.
    """

    def __call__(self, step: Passage) -> Tensor:
        if not step.terms:
            raise FokkerError("the denoiser tells no terms to weigh; use a composition such as CFG or Compose")
        if step.s is None:
            return torch.zeros(len(step.x_t), dtype=torch.float64, device=step.x_t.device)
        move = step.move
        scores = [move.score(D).to(torch.float64) for D in step.terms]
        weights = [expand(a, step.x_t).to(scores[0]) if isinstance(a, Tensor) else a for a in step.weights]
        both: Any = sum(a * s for a, s in zip(weights, scores, strict=True))
        each: Any = sum(a * s.square() for a, s in zip(weights, scores, strict=True))
        out: Tensor = (0.5 * move.removed * (both.square() - each)).flatten(1).sum(1)
        return out


@dataclass(frozen=True)
class RewardWeight:
    """Tilts the law by exp(scale r(x_0)) through potentials of the reward at the belief.

    "difference"  exp(scale (r_now - r_before)): telescopes to the reward of the final sample
    "max", "sum"  the largest reward so far, or their sum, in place of r_now; the last step makes up the difference, so that all
                  three have the same target

    Reference: Singhal et al. 2025, arXiv 2501.06848 (FK steering).
    """

    reward: Reward
    scale: float = 1.0
    kind: str = "difference"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of reward weight", self.kind, KINDS)

    def __call__(self, step: Passage) -> tuple[Tensor, Tensor]:
        where = step.x_s if step.s is None or step.number + 1 == step.steps else step.belief
        r = self.scale * self.reward(where, **step.cond).to(torch.float64)
        # of each particle: what was spent on it so far, and the largest reward
        spent, best = (torch.zeros_like(r), torch.full_like(r, -torch.inf)) if step.state is None else step.state.unbind(1)
        best = torch.maximum(best, r)
        if step.number + 1 == step.steps:
            change = r - spent
        else:
            change = {"difference": r - spent, "max": best - spent, "sum": r}[self.kind]
        return change, torch.stack([spent + change, best], 1)


def corrected(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    grid: Grid,
    seed: int = 0,
    total: float = 1.0,
    solver: str | Solver = "ddpm",
    ess: float = 0.5,
    resample: str = "systematic",
    interval: tuple[float, float] | None = None,
    clip: float | None = None,
    groups: int = 1,
    cond: dict[str, Cond] | None = None,
) -> Population:
    """Feynman-Kac corrected samples of a composition whose weights sum to `total`: `shape` is (particles, ...).

    Starts from prod_i q_{i,1}^{a_i} = N(0, sigma^2 / total), and runs `Particles`, whose options these are.

    In few steps the ancestral noise of ddpm is too little where the weights do not sum to 1, whose targets are not posteriors
    of one x_0: widths come out too small, masses and means do not. euler-maruyama has the right widths, at a higher variance.
    """
    process = denoiser.process
    if not total > 0:
        raise FokkerError(f"total={total} is not accepted; the weights of a density that can be sampled sum to more than 0")
    start = process.start(noise(shape, seed, dtype=torch.float64)) / total**0.5
    particles = Particles(denoiser, FeynmanKacWeight(), solver, ess, resample, interval, clip)
    return particles.run(start, grid, groups, seed, **(cond or {}))
