"""UniPC: a predictor and a corrector of any order from one formula."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver
from fokker.solve.multistep import between
from fokker.solve.onestep import transition


@dataclass(frozen=True)
class UniPC(Solver):
    """Multistep predictor-corrector on the belief in half-log-SNR, one evaluation a step.

    x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^{-h}) D_t - alpha_s B(h) sum_m rho_m (D_m - D_t) / r_m, where the points m are
    past beliefs (predictor) and, once it is known, the one at s (corrector), and rho solves the moment conditions up to the
    number of points. B(h) = -h for `variant` "bh1", e^{-h} - 1 for "bh2"; with one point rho is 1/2, as published.

    `order` is the predictor's; the corrector raises it by one, except for the last step, which cannot be corrected. Nothing is
    forced to a lower order at the end (the published code does, which makes it second order).

    Reference: Zhao et al. 2023, arXiv 2302.04867.
    """

    order: int = 3  # type: ignore[misc]
    variant: str = "bh2"
    correct: bool = True
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise FokkerError(f"order={self.order} is not accepted; UniPC has orders 1 to 4 here")
        if self.variant not in ("bh1", "bh2"):
            raise unknown("variant", self.variant, ["bh1", "bh2"])

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        past: list[tuple[Node, Term]] = []
        redo: tuple[Term, Term] | None = None
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if redo is not None:
                start, before = redo
                x = draft.keep(self.step(start, past, t, D) if past else between(start, before, D, nodes[0], t))
            if s.data:
                return D
            if bool((t.alpha == 0).all()):
                # no signal, no place on the lambda axis
                redo, x = (x, D), transition(draft, x, D, t, s)
                continue
            past = [*past, (t, D)][-self.order :]
            redo = (x, D) if self.correct or len(past) < self.order - 1 else None
            x = self.step(x, past, s, None)
        return x

    def step(self, x: Term, past: list[tuple[Node, Term]], s: Node, ahead: Term | None) -> Term:
        """From the last node of `past` to s; a corrector step if the belief `ahead` at s is given."""
        t, D = past[-1]
        h = s.lam - t.lam
        x = (s.sigma / t.sigma) * x + (s.alpha * -torch.expm1(-h)) * D
        shares = [(n.lam - t.lam) / h for n, _ in past[:-1]]
        slopes = [(P - D) / r for (_, P), r in zip(past[:-1], shares, strict=True)]
        if ahead is not None:
            shares, slopes = [*shares, torch.ones_like(h)], [*slopes, ahead - D]
        if not shares:
            return x
        scale = -h if self.variant == "bh1" else torch.expm1(-h)
        for rho, slope in zip(self.weights(h, scale, shares), slopes, strict=True):
            x = x - (s.alpha * scale * rho) * slope
        return x

    def weights(self, h: Tensor, scale: Tensor, shares: list[Tensor]) -> list[Tensor]:
        """rho of the moment conditions sum_m rho_m r_m^{i-1} = i! phi_{i+1}(-h) (-h) / B(h), i = 1 .. the number of points."""
        if len(shares) == 1:
            return [torch.full_like(h, 0.5)]
        moments = []
        phi = torch.expm1(-h) / -h
        for i in range(1, len(shares) + 1):
            phi = (phi - 1 / math.factorial(i)) / -h
            moments.append(math.factorial(i) * phi * -h / scale)
        r = torch.stack(shares, -1)
        powers = torch.stack([r**i for i in range(len(shares))], -2)
        rho: Tensor = torch.linalg.solve(powers, torch.stack(moments, -1)[..., None])[..., 0]
        return list(rho.unbind(-1))
