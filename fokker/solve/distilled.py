"""A sampler for distilled students: it jumps twice as far as it goes, and comes back half of the way."""

from dataclasses import dataclass
from typing import ClassVar

from fokker.plan import Draft, Node, Term
from fokker.solve import Solver


@dataclass(frozen=True)
class DistilledStochastic(Solver):
    """A DDIM step of twice the length, then noise back by one: for students of progressive distillation, `overlapping`.

        x_u = (sigma_u / sigma_t) x_t + (alpha_u - sigma_u alpha_t / sigma_t) D,
        x_s = (alpha_s / alpha_u) x_u + sqrt(sigma_s^2 - (alpha_s sigma_u / alpha_u)^2) z

    over the grid's times t > s > u; the last jump ends there. A grid of n > 1 steps takes n - 1 evaluations. Order 1.
    Reference: Meng et al. 2023, arXiv 2210.03142.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        jumps = list(zip(nodes, nodes[1:], nodes[2:], strict=False)) or [(nodes[0], nodes[1], nodes[1])]
        for k, (t, s, u) in enumerate(jumps, 1):
            D = draft.ask(x, t)
            keep = u.sigma / t.sigma
            landed = D if u.data else keep * x + (u.alpha - keep * t.alpha) * D
            if k == len(jumps):
                x = landed
            else:
                back = s.alpha / u.alpha
                x = back * landed + (s.sigma**2 - (back * u.sigma) ** 2) ** 0.5 * draft.noise(t, s)
        return x
