"""Solvers that reuse past beliefs: DPM-Solver++."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver
from fokker.solve.onestep import transition


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """Exponential multistep integration of the belief in half-log-SNR (lambda), exact for the linear part.

    With h = lambda_s - lambda_t and r = h_prev / h, order 2 is

        x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^{-h}) ((1 + 1/2r) D_t - 1/2r D_prev),

    order 3 the exact integral of the parabola through the last three beliefs. (The published formula of order 3 lacks a factor
    2 in its second difference and is second order; `published=True` gives it.) To be of order 3 from the first step on, the
    steps that lack history are done again with the belief at their end, which costs no evaluation. `sde=True` integrates the
    reverse SDE instead. One evaluation a step; the last step to x_0 is the belief.

    Reference: Lu et al. 2022, arXiv 2211.01095.
    """

    order: int = 2  # type: ignore[misc]
    sde: bool = False
    published: bool = False
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise FokkerError(f"order={self.order} is not accepted; DPM-Solver++ has orders 1, 2 and 3")
        if self.sde and self.order == 3:
            raise FokkerError("the SDE form has orders 1 and 2; use order=2")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        past: list[tuple[Node, Term]] = []
        redo: tuple[Term, Term, Node] | None = None
        for t, s in pairs(nodes):
            D = draft.ask(x := draft.keep(x), t)
            if redo is not None:
                x = draft.keep(between(redo[0], redo[1], D, redo[2], t))
            # a belief without any signal (alpha = 0) has no place on the lambda axis
            past = [*past, (t, D)][-self.order :] if bool((t.alpha > 0).all()) else []
            short = len(past) < min(self.order, 2) and self.order == 3 and not self.published and not s.data
            redo = (x, D, t) if short else None
            x = self.step(draft, x, D, t, s, past)
        return x

    def step(self, draft: Draft, x: Term, D: Term, t: Node, s: Node, past: list[tuple[Node, Term]]) -> Term:
        """From t to s with the beliefs in `past`, oldest first, the last of them D at t."""
        if s.data:
            return D
        if bool((s.alpha == 0).any()):
            # upwards, to no signal at all: an infinite step on the lambda axis
            return transition(draft, x, D, t, s)
        h = s.lam - t.lam
        if len(past) > 1:
            (u, D1), r0 = past[-2], (t.lam - past[-2][0].lam) / h
            first = (D - D1) / r0
        if self.sde:
            ahead = D + 0.5 * first if len(past) > 1 else D
            gain = -torch.expm1(-2 * h)
            fresh = s.sigma * torch.sqrt(gain) * draft.noise(t, s)
            return (s.sigma / t.sigma * torch.exp(-h)) * x + (s.alpha * gain) * ahead + fresh
        gain = -torch.expm1(-h)
        x = (s.sigma / t.sigma) * x + (s.alpha * gain) * D
        if len(past) == 2:
            return x + (s.alpha * (gain / 2 if self.order == 2 or self.published else slope_weight(h))) * first
        if len(past) == 3:
            (v, D2) = past[-3]
            r1 = (u.lam - v.lam) / h
            second = (first - (D1 - D2) / r1) / (r0 + r1)
            weight = slope_weight(h)
            bend = 1 - 2 * weight / h
            x = x + (s.alpha * weight) * (first + r0 * second)
            return x + (s.alpha * (bend / 2 if self.published else bend)) * second
        return x


def slope_weight(h: Tensor) -> Tensor:
    """The weight of a belief's slope over a step, int_0^1 h e^{-h (1 - u)} u du = 1 - (1 - e^{-h}) / h."""
    series = h / 2 - h**2 / 6 + h**3 / 24 - h**4 / 120 + h**5 / 720
    away = torch.where(h.abs() < 1e-2, torch.ones_like(h), h)
    return torch.where(h.abs() < 1e-2, series, 1 + torch.expm1(-away) / away)


def between(x: Term, D: Term, ahead: Term, t: Node, s: Node) -> Term:
    """The step from t to s with the belief linear between D at t and `ahead` at s (in alpha / sigma where t has no signal)."""
    ratio = s.sigma / t.sigma
    if bool((t.alpha == 0).all()):
        return ratio * x + (0.5 * s.alpha) * (D + ahead)
    h = s.lam - t.lam
    return ratio * x + (s.alpha * -torch.expm1(-h)) * D + (s.alpha * slope_weight(h)) * (ahead - D)
