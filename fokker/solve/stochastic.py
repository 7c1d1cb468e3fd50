"""Solvers that add noise on the way: churn, restarts, ancestral forms of second order."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver
from fokker.solve.onestep import Heun, transition


def renoised(draft: Draft, x: Term, a: Node, b: Node) -> Term:
    """x at a, taken up to the noisier node b by the forward process: (alpha_b / alpha_a) x + fresh noise."""
    ratio = b.alpha / a.alpha
    return ratio * x + torch.sqrt(b.sigma**2 - (ratio * a.sigma) ** 2) * draft.noise(a, b)


@dataclass(frozen=True)
class Churn(Heun):
    """Heun with churn: before a step at noise rho = sigma / alpha in [low, high], noise is raised by a factor 1 + gamma.

    gamma = min(churn / steps, sqrt(2) - 1). Fresh noise corrects errors of earlier steps. Times cannot exceed t = 1, where
    the churn is left out. Order 2 as churn goes to 0; two evaluations a step.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """

    churn: float = 40.0
    low: float = 0.05
    high: float = 50.0
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.churn < 0 or not 0 <= self.low < self.high:
            raise FokkerError(
                f"churn={self.churn}, low={self.low}, high={self.high} are not accepted; use churn >= 0 and 0 <= low < high"
            )

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        variable = self.chosen(nodes)
        gamma = min(self.churn / (len(nodes) - 1), math.sqrt(2) - 1)
        top = nodes[0].rho
        for t, s in pairs(nodes):
            inside = bool(((t.rho >= self.low) & (t.rho <= self.high)).all())
            if gamma > 0 and inside and bool((t.rho * (1 + gamma) <= top).all()):
                raised = Node.at(t.process, t.process.time(2 * (t.lam - math.log1p(gamma))))
                x, t = renoised(draft, x, t, raised), raised
            x = draft.ask(x, t) if s.data else self.step(draft, x, t, s, variable)
        return x


@dataclass(frozen=True)
class Restart(Heun):
    """Heun down the grid, and from the grid's node nearest to noise `low` back up to `high`, `times` times, by fresh noise.

    `low` and `high` are levels of sigma / alpha; the way down again uses the grid's own nodes between them. The large added
    noise contracts earlier errors, and the steps are deterministic, so discretisation errors stay small.

    Reference: Xu et al. 2023, arXiv 2306.14878.
    """

    low: float = 0.1
    high: float = 0.6
    times: int = 2
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low < self.high or self.times < 0:
            raise FokkerError(f"low={self.low}, high={self.high}, times={self.times}: use 0 < low < high and times >= 0")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        variable = self.chosen(nodes)
        levels = [float(n.rho.mean()) if not n.data else 0.0 for n in nodes]
        inner = [k for k in range(1, len(nodes)) if levels[k] > 0 and math.isfinite(levels[k])]
        if len(inner) < 2:
            raise FokkerError("a restart needs at least two inner grid points; use more steps")
        bottom = min(inner, key=lambda k: abs(math.log(levels[k] / self.low)))
        top = min(inner, key=lambda k: abs(math.log(levels[k] / self.high)))
        top = min(top, bottom - 1)
        if top < 0:
            raise FokkerError("the grid has no room above the restart's low level; use more steps")
        for k, (t, s) in enumerate(pairs(nodes)):
            x = draft.ask(x, t) if s.data else self.step(draft, x, t, s, variable)
            if k + 1 == bottom and math.isfinite(levels[top]):
                for _ in range(self.times):
                    x = renoised(draft, x, nodes[bottom], nodes[top])
                    for a, b in pairs(nodes[top : bottom + 1]):
                        x = self.step(draft, x, a, b, variable)
        return x


@dataclass(frozen=True)
class AncestralHeun(Solver):
    """A deterministic second-order step down to sigma_down, then fresh noise up to sigma_s: the ancestral DPM-2.

    sigma_down^2 = sigma_s^2 - eta^2 sigma_s^2 (1 - SNR_t / SNR_s) in units of alpha_s, as in DDIM with eta; the deterministic
    part is the exponential midpoint. Two evaluations a step. Reference: Katherine Crowson, k-diffusion (dpm_2_ancestral).
    """

    eta: float = 1.0
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise FokkerError(f"eta={self.eta} is not accepted; use a share in (0, 1]")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data or bool((t.alpha == 0).any()):
                x = transition(draft, x, D, t, s)
                continue
            new = self.eta**2 * s.sigma**2 * (1 - (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2)
            down_sigma = torch.sqrt(s.sigma**2 - new)
            # alpha_s with less noise is a node of the same signal: the midpoint lies half way to it in log-SNR
            lam_down = torch.log(s.alpha) - torch.log(down_sigma)
            m = Node.at(t.process, t.process.time(t.lam + torch.minimum(lam_down, 2 * s.lam - t.lam)))
            u = transition(draft, x, D, t, m)
            middle = draft.ask(u, m)
            keep = down_sigma / t.sigma
            x = keep * x + (s.alpha - keep * t.alpha) * middle + torch.sqrt(new) * draft.noise(t, s)
        return x
