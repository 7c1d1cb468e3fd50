"""Pseudo-numerical methods: classical schemes whose every move is DDIM's transfer of a combined noise prediction."""

from dataclasses import dataclass
from typing import ClassVar

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.onestep import transition

# Adams-Bashforth on equal steps, newest first
BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def transfer(x: Term, eps: Term, t: Node, s: Node) -> Term:
    """x_s of the same x_0 and noise: (alpha_s / alpha_t) x + (sigma_s - sigma_t alpha_s / alpha_t) eps."""
    return (s.alpha / t.alpha) * x + (s.sigma - t.sigma * s.alpha / t.alpha) * eps


@dataclass(frozen=True)
class PNDM(Solver):
    """Adams-Bashforth weights for equal steps in t on the noise prediction, moved by DDIM's transfer.

    warmup  "rk" starts with pseudo Runge-Kutta steps (three of 4 evaluations at order 4, one improved Euler step at order 2);
            "ramp" with orders 1, 2, 3 (iPNDM): one evaluation a step throughout;
            "plms" with one improved Euler step and orders 2, 3 (as latent diffusion does, and diffusers without its prk steps)

    The weights assume equal steps: on other grids the order is 1. A last step to x_0 is the belief, and so are steps from no
    signal (alpha = 0) taken at order 1.

    Reference: Liu et al. 2022, arXiv 2202.09778; Zhang & Chen 2023, arXiv 2204.13902 (iPNDM).
    """

    history: int = 4
    warmup: str = "rk"
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.warmup not in ("rk", "ramp", "plms"):
            raise unknown("warmup", self.warmup, ["rk", "ramp", "plms"])
        if self.history not in ((2, 4) if self.warmup == "rk" else BASHFORTH):
            raise FokkerError(f"history={self.history} with warmup={self.warmup!r} is not accepted; use 2 or 4")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        past: list[Term] = []
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data:
                return D
            if bool((t.alpha == 0).any()):
                x = transition(draft, x, D, t, s)
                continue
            eps = draft.keep((x - t.alpha * D) / t.sigma)
            past = [eps, *past][: self.history]
            if self.warmup == "rk" and len(past) < self.history:
                x = self.start(draft, x, eps, t, s, self.history)
            elif self.warmup == "plms" and len(past) == 1 < self.history:
                x = self.start(draft, x, eps, t, s, 2)
            else:
                weights = BASHFORTH[len(past)]
                combined = sum((w * e for w, e in zip(weights[1:], past[1:], strict=True)), weights[0] * past[0])
                x = transfer(x, combined, t, s)
        return x

    def start(self, draft: Draft, x: Term, first: Term, t: Node, s: Node, order: int) -> Term:
        """One pseudo Runge-Kutta step of order 4, or 2 (improved Euler)."""

        def noise_at(u: Term, node: Node) -> Term:
            D = draft.ask(u, node)
            return draft.keep((u - node.alpha * D) / node.sigma)

        if order == 2:
            second = noise_at(transfer(x, first, t, s), s)
            return transfer(x, 0.5 * (first + second), t, s)
        process: Process = t.process
        m = Node.at(process, (t.t + s.t) / 2)
        second = noise_at(transfer(x, first, t, m), m)
        third = noise_at(transfer(x, second, t, m), m)
        fourth = noise_at(transfer(x, third, t, s), s)
        return transfer(x, (1 / 6) * (first + 2.0 * second + 2.0 * third + fourth), t, s)


@dataclass(frozen=True)
class Momentum(Solver):
    """Heavy-ball momentum on Adams-Bashforth in sigma / alpha: HB damps any base method, GHVB keeps the order.

    In z = x / alpha and rho = sigma / alpha, v_n = (1 - beta) v_{n-1} + beta u_n and z += d_rho v_n, with u the
    Adams-Bashforth combination of eps (`generalised=False`, first order for beta < 1); or v_n = (1 - beta) v_{n-1} + beta eps_n
    and z += (d_rho / beta) sum c_i v_{n-i} with the c of the paper (`generalised=True`, order `history` for every beta on
    equal steps of rho). beta = 1 is Adams-Bashforth. One evaluation a step.

    Reference: Wizadwongsa et al. 2024, arXiv 2307.11118.
    """

    history: int = 2
    beta: float = 0.8
    generalised: bool = True
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.history not in BASHFORTH or not 0 < self.beta <= 1:
            raise FokkerError(
                f"history={self.history}, beta={self.beta} are not accepted; history is 1 to 4 and beta in (0, 1]"
            )

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        b = self.beta
        v: Term | None = None
        past: list[Term] = []
        for t, s in pairs(nodes):
            D = draft.ask(x, t)
            if s.data:
                return D
            if bool((t.alpha == 0).any()):
                x = transition(draft, x, D, t, s)
                continue
            eps = draft.keep((x - t.alpha * D) / t.sigma)
            if self.generalised:
                v = draft.keep((1 - b) * v + b * eps) if v is not None else draft.keep(b * eps + (1 - b) * eps)
                past = [v, *past][: self.history]
                weights = self.weights(len(past))
                move = sum((w * e for w, e in zip(weights[1:], past[1:], strict=True)), weights[0] * past[0]) / b
            else:
                past = [eps, *past][: self.history]
                weights = BASHFORTH[len(past)]
                u = sum((w * e for w, e in zip(weights[1:], past[1:], strict=True)), weights[0] * past[0])
                v = move = draft.keep((1 - b) * (v if v is not None else eps) + b * u)
            x = (s.alpha / t.alpha) * x + (s.alpha * (s.rho - t.rho)) * move
        return x

    def weights(self, k: int) -> tuple[float, ...]:
        """The c of GHVB, newest first."""
        b = self.beta
        return {
            1: (b,),
            2: ((2 + b) / 2, -(2 - b) / 2),
            3: ((18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12),
            4: ((46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24),
        }[k]
