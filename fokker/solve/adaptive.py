"""Adaptive Runge-Kutta: the one solver that decides its steps while it runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term
from fokker.process import Process
from fokker.solve import Solver

METHODS = ("dopri5", "dopri8", "bosh3", "tsit5", "fehlberg2", "adaptive_heun")


@dataclass(frozen=True)
class Adaptive(Solver):
    """An embedded Runge-Kutta pair of torchdiffeq with a tolerance, on the probability-flow ODE.

    Integrates w = x / r in half-log-SNR, dw/dlambda = (alpha / r) (D - (alpha / r) w) with r^2 = alpha^2 + sigma^2, which is
    smooth and bounded on every process. The step is chosen for the whole batch, so a sample depends on its batch at the
    level of the tolerance. The number of evaluations is not known beforehand; the grid gives the start and the end.

    Reference: Dormand & Prince 1980; torchdiffeq, Chen 2018.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    order: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if not (self.rtol > 0 and self.atol > 0):
            raise FokkerError(f"rtol={self.rtol}, atol={self.atol} are not accepted; tolerances are above 0")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        first, last = nodes[0], nodes[-1]
        if last.data:
            last = nodes[-2]
            if len(nodes) == 2:
                return draft.ask(x, first)
        x = draft.adaptive(x, partial(self.integrate, draft.process), first, last)
        return draft.ask(x, last) if nodes[-1].data else x

    def integrate(
        self, process: Process, x: Tensor, t: float, s: float, predict: Callable[[Tensor, float], Tensor], state: Any
    ) -> tuple[Tensor, Any]:
        """x at time s from x at time t."""
        from torchdiffeq import odeint

        ends = process.logsnr(torch.tensor([t, s], dtype=torch.float64)) / 2
        # without signal (alpha = 0) the state is pure noise, and so it is, to rounding, at lambda = -20
        ends = ends.clamp(-20.0, 20.0)

        def rate(lam: Tensor, w: Tensor) -> Tensor:
            time = float(process.time(2 * lam.to(torch.float64)))
            alpha, _, sigma = process.at(time)
            r = math.hypot(alpha, sigma)
            return (alpha / r) * (predict(r * w, time) - (alpha / r) * w)

        r0, r1 = (math.hypot(a, b) for a, _, b in (process.at(t), process.at(s)))
        path: Tensor = odeint(rate, x / r0, ends.to(x.dtype), rtol=self.rtol, atol=self.atol, method=self.method)
        return path[-1] * r1, state
