"""DDIM with a share of the noise renewed at every step, whatever the step's length."""

from dataclasses import dataclass
from typing import ClassVar

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver


@dataclass(frozen=True)
class Renoise(Solver):
    """x_s = alpha_s D + sigma_s (sqrt(1 - eta^2) eps + eta z) with eps = (x_t - alpha_t D) / sigma_t.

    eta = 0 is DDIM; eta = 1 takes nothing from x_t but the belief. For restorers, whose corrected belief no longer belongs to
    the noise in x_t. (With a plain denoiser and eta > 0 the spread shrinks with the number of steps: eta multiplies sigma_s
    here, where DDIM's own multiplies what the ancestral step would draw.) One evaluation a step; order 1.

    Reference: Zhu et al. 2023, arXiv 2305.08995 (eta = sqrt(zeta)); Chung, Lee, Ye 2024, arXiv 2303.05754.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise FokkerError(f"eta={self.eta} is not accepted; 0 keeps the noise and 1 draws it anew")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data:
                return D
            keep = (1 - self.eta**2) ** 0.5 * s.sigma / t.sigma
            x = keep * x + (s.alpha - keep * t.alpha) * D
            if self.eta:
                x = x + (self.eta * s.sigma) * draft.noise(t, s)
        return x
