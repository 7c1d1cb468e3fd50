"""Fixed-point inversion: each step of an inversion solves the equation that the sampling step states."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process
from fokker.solve import Solver

WAYS = ("anderson", "picard", "adam")
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedPoint(Solver):
    """DDIM upwards, with the noise found at the upper end of each step: `invert(denoiser, x_0, grid, FixedPoint(), ...)`.

    The sampling step from the unknown y at t to the known x at s holds exactly when y = f(y),

        f(y) = (alpha_t / alpha_s) (x - sigma_s eps(y, t)) + sigma_t eps(y, t),

    and DDIM inversion is its first substitution with eps(x, s). `way` says how it is solved, from that start:

    anderson  differences of the last `memory` iterates, least squares a sample; no gradients, fast where f is smooth
    picard    y <- (1 - damping) f(y) + damping y; diverges where f does not contract (guidance, few steps)
    adam      descent on the mean of |y - f(y)|^2 by AdamW with rate `rate`, as published, for at most `iterations`

    A sample whose mean squared residual is below `tolerance` is left alone. One evaluation an iteration and one for the start.

    Reference: Li, Li, Guo, Zhang 2024, arXiv 2403.11105.
    """

    way: str = "anderson"
    iterations: int = 10
    tolerance: float = 0.0
    memory: int = 5
    damping: float = 0.0
    rate: float = 1e-2
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown("way to solve a fixed point", self.way, WAYS)
        if self.iterations < 1 or self.memory < 1 or not 0 <= self.damping < 1:
            raise FokkerError(
                f"iterations={self.iterations}, memory={self.memory}, damping={self.damping} are not accepted; use at least "
                "1 of either and a damping in [0, 1)"
            )

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for s, t in pairs(nodes):
            if s.data or t.data or not bool((t.sigma / t.alpha >= s.sigma / s.alpha).all()):
                raise FokkerError("FixedPoint inverts: it walks upwards in noise, on grids.reversed_times")
            x = draft.adaptive(x, self._step(draft.process), s, t)
        return x

    def _step(self, process: Process) -> Callable[..., tuple[Tensor, Any]]:
        def step(x: Tensor, s: float, t: float, predict: Callable[..., Tensor], state: Any) -> tuple[Tensor, Any]:
            (a, _, sig), (b, _, tau) = process.at(s), process.at(t)

            def moved(eps: Tensor) -> Tensor:
                return b / a * (x - sig * eps) + tau * eps

            def f(y: Tensor) -> Tensor:
                return moved((y - b * predict(y, t)) / tau)

            start = moved((x - a * predict(x, s)) / sig)
            solve: dict[str, Callable[[Map, Tensor], Tensor]] = {
                "anderson": self._anderson, "picard": self._picard, "adam": self._adam,
            }  # fmt: skip
            return solve[self.way](f, start), None

        return step

    def _open(self, residual: Tensor) -> Tensor:
        """Which samples are not solved yet, to multiply with."""
        size = residual.detach().square().flatten(1).mean(1)
        return (size > self.tolerance).to(residual).reshape(-1, *[1] * (residual.ndim - 1))

    def _picard(self, f: Map, y: Tensor) -> Tensor:
        for _ in range(self.iterations):
            residual = f(y) - y
            y = y + (1 - self.damping) * self._open(residual) * residual
        return y

    def _anderson(self, f: Map, y: Tensor) -> Tensor:
        shape, states, residuals = y.shape, [], []
        for _ in range(self.iterations):
            residual = f(y.reshape(shape)).flatten(1) - y.flatten(1)
            states.append(y.flatten(1))
            residuals.append(residual)
            states, residuals = states[-self.memory - 1 :], residuals[-self.memory - 1 :]
            new = states[-1] + residual
            if len(states) > 1:
                dy = torch.stack([b - a for a, b in pairwise(states)], -1)
                dr = torch.stack([b - a for a, b in pairwise(residuals)], -1)
                # ridge of the size of rounding: past differences become parallel where the iteration has converged
                gram = dr.mT @ dr
                scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)[:, None, None]
                eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
                ridge = 10 * torch.finfo(gram.dtype).eps
                weights = torch.linalg.solve(gram / scale + ridge * eye, dr.mT @ residual[..., None] / scale)
                new = new - ((dy + dr) @ weights)[..., 0]
            unsolved = self._open(residual)
            y = (states[-1] + unsolved * (new - states[-1])).reshape(shape)
        return y

    def _adam(self, f: Map, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = y.detach().clone().requires_grad_(True)
            adam = torch.optim.AdamW([leaf], lr=self.rate)
            for _ in range(self.iterations):
                residual = leaf - f(leaf)
                unsolved = self._open(residual)
                if not bool(unsolved.any()):
                    break
                before = leaf.detach().clone()
                adam.zero_grad()
                residual.square().flatten(1).mean(1).sum().backward()
                adam.step()
                with torch.no_grad():
                    leaf.copy_(torch.where(unsolved > 0, leaf, before))
        return leaf.detach()
