"""A one-evaluation solver as a table of numbers, and the belief that a step would have needed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fokker import grids, solve
from fokker.errors import FokkerError
from fokker.grids import Grid, Times
from fokker.plan import Row
from fokker.process import Process, expand
from fokker.solve import Solver


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps x_s = a x_t + b D(x_t, t) from times `t` to times `s`, all float64 (n,): row i is one step of a solver.

    Any solver with one evaluation a step and neither noise nor memory is such a table; `belief` inverts it. Raises FokkerError
    for another solver.
    """

    t: Tensor
    s: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, solver: str | Solver, process: Process, t: Tensor, s: Tensor) -> "Steps":
        """The steps of `solver` from each t to each s below it."""
        chosen = solver if isinstance(solver, Solver) else solve.get(solver)
        plan = chosen.plan(process, Times(values=torch.stack([t, s])))
        if plan.nfe != 1 or plan.noises or plan.inputs != 1 or not all(isinstance(row, Row) for row in plan.rows):
            raise FokkerError(
                f"{type(chosen).__name__} does more than one evaluation a step, or draws noise; distil ddim or a like solver"
            )
        known = {("x", 0): (torch.ones_like(t), torch.zeros_like(t)), ("D", 0): (torch.zeros_like(t), torch.ones_like(t))}
        for k, row in enumerate(plan.rows[1:], 1):
            assert isinstance(row, Row)
            parts = [(torch.as_tensor(c, dtype=torch.float64), known[source]) for source, c in row.terms]
            known["x", k] = (sum(c * a for c, (a, _) in parts), sum(c * b for c, (_, b) in parts))  # type: ignore[assignment]
        a, b = known["x", plan.outputs[0]]
        return cls(t, s, a.expand(t.shape), b.expand(t.shape))

    def take(self, i: Tensor, x: Tensor, belief: Tensor) -> Tensor:
        """x_s after step i (batch,) of each sample, by the belief at x."""
        return self._at(self.a, i, x) * x + self._at(self.b, i, x) * belief

    def belief(self, i: Tensor, x: Tensor, x_s: Tensor) -> Tensor:
        """The D with which step i leads from x to x_s: (x_s - a x) / b, worked out in float64."""
        wide = x.to(torch.float64)
        found = (x_s.to(torch.float64) - self._at(self.a, i, wide) * wide) / self._at(self.b, i, wide)
        return found.to(x.dtype)

    def _at(self, c: Tensor, i: Tensor, x: Tensor) -> Tensor:
        return expand(c.to(x.device)[i], x).to(x.dtype)

    def index(self, t: Tensor) -> Tensor:
        """Which step starts at time t, (batch,)."""
        return (t[:, None].to(torch.float64) - self.t.to(t.device)).abs().argmin(1)


def nodes(kind: str | Grid, process: Process, steps: int) -> Tensor:
    """The steps + 1 times of a named grid, from 1 to the process's end; raises FokkerError where the process is anchored."""
    if process.anchored or process.tokens:
        raise FokkerError(f"{process.name} is not distilled here: its states have an anchor or are tokens")
    if isinstance(kind, Grid):
        raise FokkerError("give the name of a grid, which has every number of steps")
    return grids.get(kind)(steps).times(process)


def halves(kind: str, process: Process, steps: int, factor: int = 2) -> tuple[Tensor, Tensor]:
    """The times of `steps` and of `factor * steps` steps of a grid whose coarse times are among its fine ones."""
    coarse, fine = nodes(kind, process, steps), nodes(kind, process, factor * steps)
    if not torch.allclose(fine[::factor], coarse, rtol=1e-6, atol=1e-9):
        raise FokkerError(
            f"the {steps} steps of grid {kind!r} are not among its {factor * steps}; use uniform, logsnr or karras"
        )
    return fine[::factor], fine
