"""Solvers that look at one belief a stage: DDIM and its ancestral form, Euler, Heun."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.solve import Solver


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s D + sqrt(sigma_s^2 - n^2) eps + n z, with eps = (x - alpha_t D) / sigma_t and n^2 a share of the variance.

    n^2 = eta^2 sigma_s^2 (1 - SNR_t / SNR_s), so that eta = 0 is the probability-flow ODE (exponential Euler) and eta = 1 the
    ancestral sampler of DDPM, which is the Euler ancestral sampler too. One evaluation a step; order 1.

    Reference: Song, Meng, Ermon 2021, arXiv 2010.02502; Ho, Jain, Abbeel 2020, arXiv 2006.11239.
    """

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise FokkerError(f"eta={self.eta} is not accepted; 0 is deterministic and 1 ancestral")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def renewed(self, t: Node, s: Node) -> Tensor:
        """n^2, the variance that is drawn anew on the way from t to s; what subclasses say in another way."""
        return ancestral(t, s, self.eta)

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            x = D if s.data else move(draft, x, D, t, s, self.renewed(t, s) if self.eta else None)
        return x


def ancestral(t: Node, s: Node, eta: float) -> Tensor:
    """The share eta^2 of the variance of the exact reverse transition from t to s."""
    return eta**2 * s.sigma**2 * (1 - (t.alpha * s.sigma / (t.sigma * s.alpha)) ** 2)


def move(draft: Draft, x: Term, D: Term, t: Node, s: Node, new: Tensor | None) -> Term:
    """x_s for a belief D held constant, with a variance `new` of noise drawn anew and the rest kept; None draws nothing."""
    if new is None:
        return (s.sigma / t.sigma) * x + (s.alpha - t.alpha * s.sigma / t.sigma) * D
    keep = torch.sqrt(s.sigma**2 - new) / t.sigma
    return keep * x + (s.alpha - keep * t.alpha) * D + torch.sqrt(new) * draft.noise(t, s)


def transition(draft: Draft, x: Term, D: Term, t: Node, s: Node, eta: float = 0.0) -> Term:
    """The exact Gaussian transition from t to s for a belief D held constant (DDIM's step)."""
    if s.data:
        return D
    return move(draft, x, D, t, s, ancestral(t, s, eta) if eta else None)


def slope(draft: Draft, x: Term, node: Node, variable: str) -> Term:
    """dz/dv of the probability-flow ODE: eps for z = x / alpha in v = sigma / alpha, the velocity for z = x in v = t."""
    D = draft.ask(x, node)
    eps = (x - node.alpha * D) / node.sigma
    if variable == "sigma":
        return eps
    d_alpha, d_sigma = node.rates()
    return d_alpha * D + d_sigma * eps


def advance(x: Term, rate: Term, t: Node, s: Node, variable: str) -> Term:
    """x at s from x at t along a constant slope."""
    if variable == "sigma":
        return (s.alpha / t.alpha) * x + (s.alpha * (s.rho - t.rho)) * rate
    return x + (s.t - t.t) * rate


@dataclass(frozen=True)
class RungeKutta(Solver):
    """Explicit Runge-Kutta on the probability-flow ODE.

    `variable` says what is stepped: "sigma" integrates x / alpha in sigma / alpha (as k-diffusion does; Euler is then DDIM),
    "time" the velocity in t (as flow matching does). By default sigma, unless alpha is 0 at the start, where it is infinite.
    A last step to x_0 is taken at first order, which there is exact.
    """

    variable: str | None = None

    def __post_init__(self) -> None:
        if self.variable not in (None, "sigma", "time"):
            raise FokkerError(f"variable={self.variable!r} is not accepted; use 'sigma' or 'time'")

    def chosen(self, nodes: list[Node]) -> str:
        infinite = any(bool((n.alpha == 0).any()) for n in nodes)
        if self.variable == "sigma" and infinite:
            raise FokkerError("alpha is 0 at t=1, so sigma / alpha is infinite there; use variable='time' or start < 1")
        return self.variable or ("time" if infinite else "sigma")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        variable = self.chosen(nodes)
        for t, s in pairs(nodes):
            x = draft.ask(x, t) if s.data else self.step(draft, x, t, s, variable)
        return x

    def step(self, draft: Draft, x: Term, t: Node, s: Node, variable: str) -> Term:
        raise FokkerError(f"{type(self).__name__} does not define step(draft, x, t, s, variable)")


@dataclass(frozen=True)
class Euler(RungeKutta):
    """One slope a step. Order 1. In the variable sigma it is DDIM."""

    order: ClassVar[int] = 1

    def step(self, draft: Draft, x: Term, t: Node, s: Node, variable: str) -> Term:
        return advance(x, slope(draft, x, t, variable), t, s, variable)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """The mean of the slopes at both ends of a step. Order 2, two evaluations a step.

    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(self, draft: Draft, x: Term, t: Node, s: Node, variable: str) -> Term:
        x = draft.keep(x)
        first = draft.keep(slope(draft, x, t, variable))
        trial = draft.keep(advance(x, first, t, s, variable))
        second = slope(draft, trial, s, variable)
        return advance(x, 0.5 * (first + second), t, s, variable)
