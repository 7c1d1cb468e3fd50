"""Exactly invertible solvers: `plan.inverse()` leads back to the start to rounding, whatever the denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Plan, Row, Term, pairs
from fokker.solve import Solver
from fokker.solve.onestep import transition


def move(x: Term, D: Term, seen: Term, t: Node, s: Node) -> Term:
    """DDIM's move of x from t to s with the noise that the belief D implies at the state `seen` it was asked about."""
    ratio = s.alpha / t.alpha
    return ratio * x + ((s.sigma - ratio * t.sigma) / t.sigma) * (seen - t.alpha * D)


@dataclass(frozen=True)
class EDICT(Solver):
    """Two copies that each move by the noise found at the other, then mix: every line can be solved for its old state.

        x' = A x + B eps(y, t),  y' = A y + B eps(x', t),  x_s = p x' + (1 - p) y',  y_s = p y' + (1 - p) x_s

    with A = alpha_s / alpha_t, B = sigma_s - A sigma_t; the copies change roles from step to step. The plan starts from two
    states (one given state stands for both) and returns two; two evaluations a step. `mix` = p near 1 lets the copies drift
    apart, well below 1 the inverse grows like 1 / p^2 a step; use float64. Needs alpha > 0 at the start, and no last step
    to x_0, which forgets the state.

    Reference: Wallace, Gokul, Naik 2023, arXiv 2211.12446.
    """

    mix: float = 0.93
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 2
    inputs: ClassVar[int] = 2
    invertible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.mix <= 1:
            raise FokkerError(f"mix={self.mix} is not accepted; use a share in (0, 1], such as 0.93")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Sequence[Term]:
        _needs_signal(self, nodes)
        y, p = draft.given(1), self.mix
        for k, (t, s) in enumerate(pairs(nodes)):
            if k % 2:
                x, y = y, x
            x = draft.keep(move(x, draft.ask(y, t), y, t, s))
            y = draft.keep(move(y, draft.ask(x, t), x, t, s))
            x = draft.keep(p * x + (1 - p) * y)
            y = draft.keep(p * y + (1 - p) * x)
            if k % 2:
                x, y = y, x
        return x, y


@dataclass(frozen=True)
class BDIA(Solver):
    """DDIM's increments to both sides of a state, averaged: x_s = x_t + gamma (x_u - x_t - D_b) + D_f.

    D_f is the increment from t to s and D_b that from t back to the time u before, both from the one belief at t; the first
    step is DDIM. gamma = 0 is DDIM, gamma = 1 a symmetric leapfrog of second order. One evaluation a step. The plan returns
    the last two states, from which `inverse` recovers the first; for gamma < 1 it amplifies rounding by 1 / gamma a step.
    Needs alpha > 0 at the start.

    Reference: Zhang, Lewis, Kleijn 2024, arXiv 2307.10829.
    """

    gamma: float = 1.0
    evaluations: ClassVar[int] = 1
    invertible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise FokkerError(f"gamma={self.gamma} is not accepted; use a share in [0, 1]")

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.gamma == 1 else 1

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Sequence[Term]:
        _needs_signal(self, nodes)
        before: Term | None = None
        for k, (t, s) in enumerate(pairs(nodes)):
            D = draft.ask(x, t)
            ahead = transition(draft, x, D, t, s)
            if before is not None and self.gamma > 0:
                back = transition(draft, x, D, t, nodes[k - 1]) - x
                ahead = ahead + self.gamma * (before - x - back)
            before, x = x, draft.keep(ahead)
        assert before is not None
        return x, before


def from_two(plan: Plan) -> Plan:
    """BDIA's plan that is given its first two states instead of making the second: then all of it can be undone.

    Raises FokkerError for a plan of one step.
    """
    first, second = plan.rows[0], plan.rows[1]
    if len(plan.rows) < 3 or not isinstance(first, Row) or not isinstance(second, Row):
        raise FokkerError("a leapfrog needs two steps to be undone; use more steps")
    return replace(plan, rows=(Row(()), Row((), second.t), *plan.rows[2:]), inputs=2, config={"from_two": plan.config})


def _needs_signal(solver: Solver, nodes: list[Node]) -> None:
    name = type(solver).__name__
    if bool((nodes[0].alpha == 0).any()):
        raise FokkerError(f"{name} cannot start where alpha is 0, for no inverse leads there; use start=0.999 or lower")
    if nodes[-1].data:
        raise FokkerError(f"{name} cannot take the last step to x_0, which forgets the state; end at a time above 0")
