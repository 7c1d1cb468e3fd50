"""Tables by regression: what a model's own trajectories say about the weights, for any choice of times.

A step is good where it puts the state back on the trajectory that leads through it. So for given times the weights of each
row are those of a least-squares fit of the true state at that time to what is known by then, the start and the beliefs at
the fitted states before. One pass over the samples, row by row; no solver's formula and no derivative of the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker import grids, solve
from fokker.denoiser import Denoiser, Run
from fokker.errors import FokkerError
from fokker.grids import FAINTEST
from fokker.loop import run
from fokker.plan import Number
from fokker.process import Process
from fokker.solve.table import Table

KINDS = ("uniform", "quadratic", "logsnr", "karras", "vp-time")
LATER = (None, -9.0, -7.0, -5.5, -4.5, -3.5, -2.5, -1.5, -0.5)  # log-SNRs at which a run may begin; None is t = 1


@dataclass(frozen=True)
class Trajectories:
    """The true states of samples at every time, from those at the `times` of one fine run.

    Between two of these the scaled state w = x / r obeys dw / du = (phi / sin phi) (D - cos(phi) w), with
    r = sqrt(alpha^2 + sigma^2), phi = atan2(sigma, alpha) and u = -log phi, so value and slope are known at both ends: the
    interpolation is cubic, with an error of fourth order.
    """

    process: Process
    times: Tensor
    states: tuple[Tensor, ...]
    beliefs: tuple[Tensor, ...]

    @classmethod
    def trace(
        cls, denoiser: Denoiser, x1: Tensor, steps: int, end: float | None, **cond: Any
    ) -> tuple["Trajectories", Tensor]:
        """The trajectories of states `x1` (n, ...) at t = 1 in `steps` steps, and their end points."""
        process = denoiser.process
        times: list[float] = []
        states: list[Tensor] = []
        beliefs: list[Tensor] = []

        def look(context: Run, x: Tensor, belief: Tensor) -> None:
            times.append(float(context.t))
            states.append(x)
            beliefs.append(belief)

        plan = solve.get("adams").plan(process, grids.VPTime(steps, end=end))
        x0 = run(denoiser, x1, plan, watch=look, **cond).x0
        return cls(process, torch.tensor(times, dtype=torch.float64), tuple(states), tuple(beliefs)), x0

    def part(self, n: int) -> "Trajectories":
        """Those of the first n samples."""
        return Trajectories(self.process, self.times, tuple(x[:n] for x in self.states), tuple(D[:n] for D in self.beliefs))

    def at(self, t: float) -> Tensor:
        """The states at time t, (n, ...); beyond the first or last of the times, on the straight line of that end."""
        process = self.process
        here, clock = _clock(process, torch.tensor(t, dtype=torch.float64)), _clock(process, self.times)
        i = int(torch.searchsorted(clock, here).clamp(1, len(clock) - 1)) - 1
        h = float(clock[i + 1] - clock[i])
        q = min(max(float(here - clock[i]) / h, 0.0), 1.0)
        (w, slope), (w_next, slope_next) = self._scaled(i), self._scaled(i + 1)
        out = (1 + 2 * q) * (1 - q) ** 2 * w + q**2 * (3 - 2 * q) * w_next
        out = out + h * q * (1 - q) * ((1 - q) * slope - q * slope_next)
        return out * _size(process, t)

    def _scaled(self, i: int) -> tuple[Tensor, Tensor]:
        """w and dw / du at the i-th time."""
        t = float(self.times[i])
        w = self.states[i] / _size(self.process, t)
        phi = torch.exp(-_clock(self.process, self.times[i]))
        return w, float(phi / torch.sin(phi)) * (self.beliefs[i] - float(torch.cos(phi)) * w)


def _clock(process: Process, t: Tensor) -> Tensor:
    return -torch.log(torch.atan2(process.sigma(t), process.alpha(t)))


def _size(process: Process, t: float) -> float:
    alpha, _, sigma = process.at(t)
    return float((alpha**2 + sigma**2) ** 0.5)


def fit(
    denoiser: Denoiser, trajectories: Trajectories, times: Tensor, x1: Tensor, truth: Tensor, end: Number | None, name: str,
    **cond: Any,
) -> tuple[Table, float]:  # fmt: skip
    """The table with these times (n,) whose rows fit the trajectories of `x1`, and the relative RMS error of its end points.

    Raises FokkerError where the model gives numbers that are not finite.
    """
    n, sources = len(times), [x1]
    context = Run(len(x1), rows=n + 1)
    bound = denoiser.bind(context)
    weights = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for k in range(n + 1):
        target = trajectories.at(float(times[k])) if k < n else truth
        first = k == 0 and float(times[0]) == 1.0
        weights[k, : k + 1] = 1.0 if first else regression(sources, target)
        x = sources[0] * float(weights[k, 0])
        for c, source in zip(weights[k, 1 : k + 1].tolist(), sources[1:], strict=True):
            x = x + c * source
        if k < n:
            context.row, context.t = k, float(times[k])
            with torch.no_grad():
                sources.append(bound(x, context.t, **cond))
            if not bool(torch.isfinite(sources[-1]).all()):
                raise FokkerError(f"the denoiser gave numbers that are not finite at t={float(times[k]):.4g}")
    error = float((x - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-300))
    return Table(denoiser.process, times, weights, end, name), error


def regression(sources: list[Tensor], target: Tensor, ridge: float = 1e-10) -> Tensor:
    """The weights (sources,) in float64 of the least-squares combination of tensors (n, ...) that is nearest to `target`."""
    columns = torch.stack([s.flatten() for s in sources])
    normal, right = (columns @ columns.T).to("cpu", torch.float64), (columns @ target.flatten()).to("cpu", torch.float64)
    unit = normal.diagonal().clamp_min(1e-300).rsqrt()
    ridge = max(ridge, torch.finfo(target.dtype).eps)
    scaled = normal * unit[:, None] * unit[None] + ridge * torch.eye(len(sources), dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(scaled, right * unit) * unit
    return weights


def timings(process: Process, nfe: int, end: float | None) -> Iterator[tuple[str, Tensor]]:
    """Sets of `nfe` times, named: the grids, from t = 1 and from later starts, without their ends."""
    known: set[tuple[float, ...]] = set()
    for kind in KINDS:
        for at in LATER:
            if at is not None and at <= max(float(process.logsnr(1.0)), FAINTEST):
                continue
            start = 1.0 if at is None else float(process.time(at))
            try:
                times = _laid(grids.get(kind), nfe, start, end)(process)
            except FokkerError:
                continue
            key = tuple(round(v, 9) for v in times.tolist())
            if key not in known:
                known.add(key)
                yield f"fitted on {kind}" + ("" if at is None else f" from log-SNR {at:g}"), times


def _laid(kind: type[grids.Grid], nfe: int, start: float, end: float | None) -> Callable[[Process], Tensor]:
    # a last step to x_0 is one row more, for which the grid has its own last time
    return lambda process: kind(nfe, start=start, end=end).times(process)[:-1]
