"""Linear multistep methods with variable coefficients: one class for exponential Adams, DEIS and velocity Adams-Bashforth.

Every one of them writes the exact solution of the probability-flow ODE as

    x_s = A x_t + C int_t^s P(v) dm,

with a prediction P that varies slowly and a measure m that carries the rest, replaces P by the polynomial in some variable
through its last values, and integrates that exactly:

    prediction   A                    C        m                    P
    x0           sigma_s / sigma_t    sigma_s  alpha / sigma        the belief D
    eps          alpha_s / alpha_t    alpha_s  sigma / alpha        (x - alpha D) / sigma
    v            r_s / r_t            r_s      atan(sigma / alpha)  (alpha eps - sigma D) / r,  r^2 = alpha^2 + sigma^2
    flow         1                    1        t                    alpha' D + sigma' eps
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process, derivative
from fokker.solve import Solver
from fokker.solve.multistep import between
from fokker.solve.onestep import transition

PREDICTIONS = ("x0", "eps", "v", "flow")
VARIABLES = ("lambda", "time", "sigma", "angle")


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth of `order` for a `prediction`, with the polynomial in `variable`, on any grid. One evaluation a step.

    prediction  what is interpolated: "x0", "eps", "v" or "flow" (the velocity)
    variable    in what: "lambda" (half-log-SNR), "time", "sigma" (sigma / alpha) or "angle" (atan of it)
    correct     do each step again with the prediction at its end once that is known, which costs no evaluation and raises the
                order of the error by one (a predictor-corrector in PEC mode)

    The first steps have less history; where that would cost the order they are corrected, which is free and keeps up to order
    3 (the first belief after the start stays that of a first-order step). A last step to x_0 is the belief.

    Reference: Zhang & Chen 2023, arXiv 2204.13902 (eps, time: tAB-DEIS; eps, sigma: rhoAB); Lu et al. 2022, arXiv 2211.01095
    (x0, lambda); Hairer, Norsett, Wanner 1993, III.5 (variable coefficients).
    """

    order: int = 2  # type: ignore[misc]
    prediction: str = "v"
    variable: str = "angle"
    correct: bool = False
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and 1 <= self.order <= 6):
            raise FokkerError(f"order={self.order} is not accepted; Adams methods here have orders 1 to 6")
        if self.prediction not in PREDICTIONS:
            raise unknown("prediction", self.prediction, PREDICTIONS)
        if self.variable not in VARIABLES:
            raise unknown("variable", self.variable, VARIABLES)

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        past: list[tuple[Node, Term]] = []
        # done again once the belief at its end is known: (x, D) at the start of the last step
        redo: tuple[Term, Term] | None = None
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            P = self.predicted(draft, x, D, t)
            if redo is not None:
                x = draft.keep(self.step(redo[0], past, t, [*past, (t, P)]) if past else between(*redo, D, nodes[0], t))
            if s.data:
                return D
            if not all(bool(torch.isfinite(v).all()) for v in (place(t, self.variable), measure(self.prediction, t))):
                # no signal at all: the belief is the mean of the data, and its change is linear in alpha / sigma
                redo, x = (x, D), transition(draft, x, D, t, s)
                continue
            past = [*past, (t, P)][-self.order :]
            redo = (x, D) if self.correct or len(past) < self.order - 1 else None
            x = self.step(x, past, s, past)
        return x

    def predicted(self, draft: Draft, x: Term, D: Term, t: Node) -> Term:
        """The prediction at t as a combination of state and belief, stored where it is more than the belief."""
        if self.prediction == "x0":
            return D
        eps = (x - t.alpha * D) / t.sigma
        if self.prediction == "eps":
            return draft.keep(eps)
        if self.prediction == "v":
            r = torch.sqrt(t.alpha**2 + t.sigma**2)
            return draft.keep((t.alpha / r) * eps - (t.sigma / r) * D)
        d_alpha, d_sigma = t.rates()
        return draft.keep(d_alpha * D + d_sigma * eps)

    def step(self, x: Term, past: list[tuple[Node, Term]], s: Node, points: list[tuple[Node, Term]]) -> Term:
        """From the last node of `past` to s, with the polynomial through `points`."""
        t = past[-1][0]
        A, C = linear_part(self.prediction, t, s)
        weights = integrated(self.prediction, self.variable, t, s, [n for n, _ in points])
        x = A * x
        for w, (_, P) in zip(weights, points, strict=True):
            x = x + (C * w) * P
        return x


def linear_part(prediction: str, t: Node, s: Node) -> tuple[Tensor, Tensor]:
    """(A, C) of the table in this module's docstring."""
    if prediction == "x0":
        return s.sigma / t.sigma, s.sigma
    if prediction == "eps":
        return s.alpha / t.alpha, s.alpha
    if prediction == "v":
        r = torch.sqrt((s.alpha**2 + s.sigma**2) / (t.alpha**2 + t.sigma**2))
        return r, torch.sqrt(s.alpha**2 + s.sigma**2)
    return torch.ones_like(t.t), torch.ones_like(t.t)


def measure(prediction: str, node: Node) -> Tensor:
    """m of the table, at a node."""
    if prediction == "x0":
        return node.alpha / node.sigma
    if prediction == "eps":
        return node.sigma / node.alpha
    return torch.atan2(node.sigma, node.alpha) if prediction == "v" else node.t


def place(node: Node, variable: str) -> Tensor:
    """The variable of interpolation at a node."""
    if variable == "lambda":
        return node.lam
    if variable == "time":
        return node.t
    return node.rho if variable == "sigma" else torch.atan2(node.sigma, node.alpha)


@cache
def gauss(n: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], float64."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def integrated(prediction: str, variable: str, t: Node, s: Node, points: list[Node]) -> list[Tensor]:
    """int_t^s l_j dm for the Lagrange basis l_j of `points` in `variable`; one weight a point, the shape of t.t.

    The weights add up to the exact measure of the step. The quadrature runs over log-SNR where that is finite at both ends
    (the integrands are entire functions of it) and over time otherwise.
    """
    total = measure(prediction, s) - measure(prediction, t)
    if len(points) == 1:
        return [total]
    between, rate = quadrature(prediction, t, s)
    at = place(between, variable)
    known = [place(n, variable) for n in points]
    weights = []
    for j, here in enumerate(known):
        basis = torch.ones_like(at)
        for i, other in enumerate(known):
            if i != j:
                basis = basis * (at - other) / (here - other)
        weights.append((rate * basis).sum(0))
    # what rounding and quadrature leave over goes to the newest point, so that a constant prediction is integrated exactly
    weights[-1] = weights[-1] + total - sum(weights[1:], weights[0])
    return weights


def quadrature(prediction: str, t: Node, s: Node) -> tuple[Node, Tensor]:
    """Gauss nodes between t and s (stacked in a leading dimension) and dm times their weights."""
    x, w = gauss()
    shape = (-1, *[1] * t.t.ndim)
    x, w = x.reshape(shape), w.reshape(shape)
    process: Process = t.process
    if bool((torch.isfinite(t.lam) & torch.isfinite(s.lam)).all()):
        h = s.lam - t.lam
        at = t.lam + x * h
        middle = Node.at(process, process.time(2 * at))
        if prediction == "flow":
            return middle, (2 * h * w) / derivative(process.logsnr, middle.t)
        ratio = torch.exp(at)
        slope = {"x0": ratio, "eps": -1 / ratio, "v": -1 / (ratio + 1 / ratio)}[prediction]
        return middle, h * w * slope
    h = s.t - t.t
    middle = Node.at(process, t.t + x * h)
    if prediction == "flow":
        return middle, (h * w).expand_as(middle.t)
    d_alpha, d_sigma = middle.rates()
    turn = d_alpha * middle.sigma - middle.alpha * d_sigma
    size = {"x0": middle.sigma**2, "eps": -(middle.alpha**2), "v": -(middle.alpha**2 + middle.sigma**2)}[prediction]
    return middle, h * w * turn / size
