"""Inversion: the noise that a deterministic sampler would have started from, and every state on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError
from fokker.grids import Grid, reversed_times
from fokker.loop import run
from fokker.plan import Plan
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.onestep import DDIM


@dataclass(frozen=True)
class Trajectory:
    """The states of an inversion, from noise to data as sampling walks them, and the grid that both walked.

    `states` are (batch, ...) at the grid's times; the last one is the given sample, at the process's scale.
    """

    states: tuple[Tensor, ...]
    grid: Grid
    process: Process
    nfe: float = 0.0

    @property
    def noise(self) -> Tensor:
        """The latent: the state at the grid's first time."""
        return self.states[0]

    def plan(self, solver: Solver | None = None) -> Plan:
        """The plan (default DDIM) that leads from the latent back to the data."""
        return (solver or DDIM()).plan(self.process, self.grid)


def to_state(process: Process, x_0: Tensor, grid: Grid) -> Tensor:
    """A sample as the state at the grid's last time, without noise of its own: alpha x_0."""
    end = grid.times(process)[-1]
    return x_0 if grid.to_data else process.coefficients(end.item(), x_0)[0] * x_0


def to_sample(process: Process, x: Tensor, grid: Grid) -> Tensor:
    """The inverse of `to_state`."""
    end = grid.times(process)[-1]
    return x if grid.to_data else x / process.coefficients(end.item(), x)[0]


def invert(denoiser: Denoiser, x_0: Tensor, grid: Grid, solver: Solver | None = None, **cond: Cond) -> Trajectory:
    """The trajectory of `x_0` (batch, ...) under a deterministic solver (default DDIM) on the grid, walked upwards.

    DDIM inversion takes each step with the noise found at its lower end, which is as exact as the steps are small and wrong
    under strong guidance: invert with the source condition and no guidance. For a latent that leads back to the bit use the
    plans of `fokker.solve.invert` (EDICT, BDIA), for smaller errors `FixedPoint` as the solver.

    Raises FokkerError for an anchored process, a grid that ends at x_0 itself, and a solver with several states or noise.

    Reference: Song, Meng, Ermon 2021, arXiv 2010.02502, section 4.3; Dhariwal, Nichol 2021, arXiv 2105.05233.
    """
    process, chosen = denoiser.process, solver or DDIM()
    if process.anchored:
        raise FokkerError(f"{process.name} has an anchor; an edit is made on a plain process")
    if grid.to_data:
        raise FokkerError("an inversion starts above t = 0, where noise can be asked for; leave out end=0")
    if chosen.stochastic or chosen.inputs != 1:
        raise FokkerError(f"{type(chosen).__name__} has several states or noise; invert with a deterministic solver")
    plan = chosen.plan(process, reversed_times(grid, process))
    x = to_state(process, x_0, grid)
    states: list[Tensor] = []
    asked = grid.times(process).tolist()[1:]

    def watch(here: Run, x_t: Tensor, belief: Tensor) -> None:
        # multi-call solvers ask between the grid's times as well
        if here.t in asked and len(states) < len(asked) and here.t == asked[len(asked) - 1 - len(states)]:
            states.append(x_t)

    if any(not hasattr(row, "terms") for row in plan.rows):
        states, last, nfe = _by_steps(denoiser, x, grid, chosen, cond)
    else:
        trace = run(denoiser, x, plan, watch=watch, **cond)
        last, nfe = trace.x0, trace.nfe
    return Trajectory((last, *reversed(states)), grid, process, nfe)


def _by_steps(
    denoiser: Denoiser, x: Tensor, grid: Grid, solver: Solver, cond: dict[str, Any]
) -> tuple[list[Tensor], Tensor, float]:
    """An inversion whose steps are not linear, one at a time: their states are not those that the denoiser is asked about."""
    from fokker.grids import Times

    times, states, nfe = reversed_times(grid, denoiser.process).times(denoiser.process), [], 0.0
    for k in range(len(times) - 1):
        states.append(x)
        one = solver.plan(denoiser.process, Times(times[k : k + 2], rising=True))
        trace = run(denoiser, x, one, **cond)
        x, nfe = trace.x0, nfe + trace.nfe
    return states, x, nfe


def joint(source: dict[str, Any], target: dict[str, Any], n: int) -> dict[str, Any]:
    """The conditions of n source and n target samples as those of one batch of 2 n.

    Raises FokkerError unless both have the same names and shapes.
    """
    if set(source) != set(target):
        raise FokkerError(
            f"source has conditions {sorted(source)} and target {sorted(target)}; give both the same names"
        )
    out = {}
    for name, value in source.items():
        other = target[name]
        if (
            not isinstance(value, Tensor)
            or not isinstance(other, Tensor)
            or value.shape != other.shape
            or len(value) != n
        ):
            raise FokkerError(
                f"{name!r} of source and target must be tensors of one shape, with a row for each of {n} samples"
            )
        out[name] = torch.cat([value, other])
    return out


def halves(x: Tensor) -> Sequence[Tensor]:
    """(source, target) of a joint batch."""
    return x.chunk(2)
