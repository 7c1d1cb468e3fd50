"""Exponential Runge-Kutta methods: several beliefs inside one step, no memory of earlier ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.grids import Grid
from fokker.plan import Draft, Node, Plan, Term, pairs
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.multistep import slope_weight
from fokker.solve.onestep import transition


@dataclass(frozen=True)
class DPMSolver(Solver):
    """Exponential Runge-Kutta in half-log-SNR on the noise prediction (DPM-Solver) or the belief (DPM-Solver++ S).

    With h = lambda_s - lambda_t and stages at shares r of it, order 2 (r = 1/2) on the noise prediction is

        u = (alpha_m / alpha_t) x - sigma_m (e^{r h} - 1) eps_t,
        x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) (eps_t + (eps(u) - eps_t) / 2r),

    order 3 has stages at 1/3 and 2/3; the belief form exchanges alpha with sigma and h with -h. A step costs as many
    evaluations as its order. `orders` sets the order of each step; laid out for a budget (`nfe=`), the steps are of full order
    except for the last one or two, so that the evaluations add up to it (the paper's "fast" schedule). A last step to x_0 is
    the belief, a first step from no signal (alpha = 0) has order 1.

    Reference: Lu et al. 2022, arXiv 2206.00927 (prediction "eps"); Lu et al. 2022, arXiv 2211.01095 ("x0").
    """

    order: int = 2  # type: ignore[misc]
    prediction: str = "eps"
    orders: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not {self.order, *self.orders} <= {1, 2, 3}:
            raise FokkerError(f"orders {[self.order, *self.orders]} are not accepted; DPM-Solver has orders 1, 2 and 3")
        if self.prediction not in ("eps", "x0"):
            raise unknown("prediction", self.prediction, ["eps", "x0"])

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return self.order

    def budget(self, nfe: int, process: Process, make_grid: Callable[[int], Grid]) -> Plan:
        whole, rest = divmod(nfe, self.order)
        orders = [self.order] * whole + ([rest] if rest else [])
        if self.order == 3 and rest == 0 and whole > 0:
            orders = [3] * (whole - 1) + [2, 1]
        plan = replace(self, orders=tuple(orders)).plan(process, make_grid(len(orders)))
        # a last step to x_0 and a first one from no signal ask once whatever their order: spend what that leaves
        spare = nfe - plan.nfe
        return plan if spare <= 0 or len(orders) == 1 else self._spend(nfe, spare, orders, process, make_grid)

    def _spend(self, nfe: int, spare: int, orders: list[int], process: Process, make_grid: Callable[[int], Grid]) -> Plan:
        at_end = make_grid(1).to_data
        wider = [*orders[:-1], *([1] * spare), orders[-1]] if at_end else [orders[0], *([1] * spare), *orders[1:]]
        plan = replace(self, orders=tuple(wider)).plan(process, make_grid(len(wider)))
        return plan

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        orders = self.orders or (self.order,) * (len(nodes) - 1)
        if len(orders) != len(nodes) - 1:
            raise FokkerError(f"{len(orders)} orders were given for a grid of {len(nodes) - 1} steps; give one a step")
        for order, (t, s) in zip(orders, pairs(nodes), strict=True):
            D = draft.ask(x, t)
            if order == 1 or s.data or bool((t.alpha == 0).any()):
                x = transition(draft, x, D, t, s)
            else:
                x = self.step(draft, x, D, t, s, order)
        return x

    def step(self, draft: Draft, x: Term, D: Term, t: Node, s: Node, order: int) -> Term:
        """One step of order 2 or 3 from t to s, with the belief D at t."""
        P = self.predicted(draft, x, D, t)
        if order == 2:
            m = t.toward(s, 0.5)
            u = self.moved(x, P, t, m)
            change = self.predicted(draft, u, draft.ask(u, m), m) - P
            return self.moved(x, P + change, t, s)
        m1, m2 = t.toward(s, 1 / 3), t.toward(s, 2 / 3)
        u1 = self.moved(x, P, t, m1)
        change = self.predicted(draft, u1, draft.ask(u1, m1), m1) - P
        u2 = self.moved(x, P, t, m2) + self.slope(t, m2) * (2.0 * change)
        change = self.predicted(draft, u2, draft.ask(u2, m2), m2) - P
        return self.moved(x, P, t, s) + self.slope(t, s) * (1.5 * change)

    def predicted(self, draft: Draft, x: Term, D: Term, t: Node) -> Term:
        """The belief, or the noise it implies."""
        return D if self.prediction == "x0" else draft.keep((x - t.alpha * D) / t.sigma)

    def moved(self, x: Term, P: Term, t: Node, s: Node) -> Term:
        """From t to s with the prediction held constant."""
        keep, gain, h = self.parts(t, s)
        return keep * x + (gain * -torch.expm1(-h)) * P

    def slope(self, t: Node, s: Node) -> Tensor:
        """The weight at s of the prediction's change over the step, were it linear in lambda."""
        _, gain, h = self.parts(t, s)
        return gain * slope_weight(h)

    def parts(self, t: Node, s: Node) -> tuple[Tensor, Tensor, Tensor]:
        h = s.lam - t.lam
        return (s.sigma / t.sigma, s.alpha, h) if self.prediction == "x0" else (s.alpha / t.alpha, s.sigma, -h)
