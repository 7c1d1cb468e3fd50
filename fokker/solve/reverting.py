"""The sampler of mean-reverting diffusion, which is a plain solver once the anchor is subtracted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term
from fokker.solve import Solver
from fokker.solve.adams import Adams
from fokker.solve.multistep import DPMSolverPP


@dataclass(frozen=True)
class MRS(Solver):
    """Semi-analytic ODE and SDE solvers of mean-reverting processes, x_t = alpha x_0 + (1 - alpha) mu + sigma eps.

    On x - (1 - alpha) mu, which is how the loop runs every anchored process, the method is DPM-Solver++ (`sde`: its SDE
    form). `phi_form` weighs the slope of order 2 by the exact integral instead of the midpoint,

        x_s = (sigma_s / sigma_t) x + alpha_s ((1 - e^{-h}) D + (1 - (1 - e^{-h}) / h) (D - D_prev) / r),

    and `prediction="eps"` does the same to the noise, with -sigma_s (e^h - 1) and -sigma_s ((e^h - 1) / h - 1). One evaluation
    a step; runs on every process.

    Reference: Li et al. 2025, arXiv 2502.07856.
    """

    order: int = 2  # type: ignore[misc]
    prediction: str = "x0"
    phi_form: bool = False
    sde: bool = False
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise FokkerError(f"order={self.order} is not accepted; MRS has orders 1 and 2")
        if self.prediction not in ("x0", "eps"):
            raise FokkerError(f"prediction={self.prediction!r} is not accepted; use 'x0' or 'eps'")
        if self.sde and (self.phi_form or self.prediction == "eps"):
            raise FokkerError(
                "the SDE form predicts x0 with the midpoint; use sde=True without phi_form or prediction='eps'"
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term | Sequence[Term]:
        if self.phi_form or self.prediction == "eps":
            return Adams(self.order, self.prediction, "lambda").lay(draft, x, nodes)
        return DPMSolverPP(self.order, self.sde).lay(draft, x, nodes)
