"""The reverse SDE by the rule of Euler and Maruyama."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver
from fokker.solve.onestep import transition


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """u_s = u_t + d (D - u_t) / rho_t^2 + sqrt(d) z for u = x / alpha, with d = rho_t^2 - rho_s^2 and rho = sigma / alpha.

    The step has the whole noise of the SDE, where the ancestral one (`ddpm`) has the share that is right when x_0 is known. For
    sums of scores of several models, whose posterior is not that of one, it is the one to take; particle weights and density
    estimators are laid out for it. A first step without signal is the ancestral one. One evaluation a step; order 1.

    Reference: Song et al. 2021, arXiv 2011.13456 (the reverse SDE); Maruyama 1955.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data or bool((t.alpha == 0).any()):
                x = transition(draft, x, D, t, s, 1.0)
                continue
            removed = t.rho**2 - s.rho**2
            share = removed / t.rho**2
            x = (s.alpha / t.alpha * (1 - share)) * x + (s.alpha * share) * D
            x = x + (s.alpha * torch.sqrt(removed)) * draft.noise(t, s)
        return x
