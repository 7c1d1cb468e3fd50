"""The arena: every solver on every grid at equal evaluations, on the same noise, against the exact flow.

For a law the truth is its probability-flow map. For a model it is the model's own flow, integrated until doubling the steps no
longer matters; what it still changes then is the floor below which errors mean nothing.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker import catalogue, grids, solve
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.grids import Grid
from fokker.laws.law import LawDenoiser
from fokker.loop import run
from fokker.measure import EndPointRMS, SlicedWasserstein
from fokker.plan import Plan
from fokker.process import Process
from fokker.solve import Solver

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)


@dataclass(frozen=True)
class Row:
    """One solver on one grid at one budget of evaluations, of which it used `nfe`.

    also      other grids that lay out the same plan here, as quadratic and vp-time do on VP
    rms       root mean square over samples of the end point's distance to the truth, relative to the truth's own size;
              rms_error is its standard error (nothing for stochastic solvers, which follow no flow)
    median    the median over samples of that distance, with its 90 % interval [median_low, median_high]
    distance  sliced Wasserstein distance to exact samples, whose own is `floor`
    """

    solver: str
    grid: str
    budget: int
    nfe: float
    distance: float
    distance_error: float
    floor: float
    seconds: float
    rerun: str
    also: tuple[str, ...] = ()
    rms: float | None = None
    rms_error: float | None = None
    median: float | None = None
    median_low: float | None = None
    median_high: float | None = None


@dataclass(frozen=True)
class Arena:
    """All rows, what they were measured on, and what was left out and why."""

    rows: tuple[Row, ...]
    subject: str
    process: str
    n: int
    seed: int
    resolution: float
    refused: tuple[str, ...]

    def best(self, budget: int, by: str = "rms") -> list[Row]:
        """The rows of a budget that have the quantity `by`, best first."""
        return sorted((r for r in self.rows if r.budget == budget and getattr(r, by) is not None), key=attrgetter(by))

    def table(self, top: int = 5) -> str:
        """The best rows of each budget as text."""
        lines = [
            f"{self.subject} on {self.process}: {self.n} samples, seed {self.seed}; errors relative to the exact end points"
            + (f", resolved to {self.resolution:.1e}" if self.resolution else ""),
            f"{'budget':>6}{'nfe':>5}  {'solver':<16}{'grid':<20}{'rms':>18}{'median':>10}  "
            f"{'distance':>17}  {'floor':>7}{'ms':>7}",
        ]
        for budget in sorted({r.budget for r in self.rows}):
            for r in self.best(budget)[:top]:
                assert r.rms is not None and r.rms_error is not None and r.median is not None
                below = "<" if r.rms < self.resolution else " "
                named = ", ".join([r.grid, *r.also])
                lines.append(
                    f"{r.budget:>6}{r.nfe:>5g}  {r.solver:<16}{named:<20}{below}{r.rms:>8.2e} +- {r.rms_error:.0e}"
                    f"{r.median:>10.1e}  {r.distance:>8.4f} +- {r.distance_error:.3f}  {r.floor:>7.4f}{1e3 * r.seconds:>7.0f}"
                )
        if self.refused:
            lines.append(f"left out: {len(self.refused)} combinations, such as {self.refused[0]}")
        return "\n".join(lines)

    def json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=1)

    def plot(self, path: str | Path, by: str = "median") -> Path:
        """Error against evaluations, one curve a solver, each on its best grid at every budget; the best ones strong.

        Solvers whose curves coincide share one. Strong is what is among the best two at some budget.
        """
        from fokker.plot import error_curves

        lowest: dict[str, dict[int, float]] = {}
        for r in self.rows:
            value = getattr(r, by)
            if value is not None and value < 1:  # else no better than the answer 0
                points = lowest.setdefault(r.solver, {})
                points[r.budget] = min(value, points.get(r.budget, value))
        curves: dict[str, dict[int, float]] = {}
        for name, points in lowest.items():
            twin = next((n for n, p in curves.items() if p.keys() == points.keys() and _coincide(p, points)), None)
            if twin is None:
                curves[name] = points
            else:
                curves = {f"{n}, {name}" if n == twin else n: p for n, p in curves.items()}
        budgets = {budget for points in curves.values() for budget in points}
        ahead = {n for b in budgets for n in sorted((n for n in curves if b in curves[n]), key=lambda n: curves[n][b])[:2]}
        what = self.subject.removeprefix("--law ").removeprefix("--model ")
        return error_curves(
            {name: sorted(points.items()) for name, points in curves.items()},
            path,
            title=f"{what}, {self.process.partition('(')[0]}: each solver on its best grid",
            ylabel=f"{by} error, relative",
            emphasise=[name for name in curves if name in ahead],
            floor=self.resolution or None,
        )


def _coincide(a: dict[int, float], b: dict[int, float]) -> bool:
    return all(abs(a[k] - b[k]) <= 1e-3 * a[k] for k in a)


def solvers(
    denoiser: Denoiser,
    shape: Sequence[int],
    nfe: Iterable[int] = BUDGETS,
    n: int = 256,
    seed: int = 0,
    names: Sequence[str] | None = None,
    grid_names: Sequence[str] | None = None,
    end: float | None = None,
    subject: str = "",
    progress: Callable[[int, int], None] | None = None,
    **cond: Any,
) -> Arena:
    """Every solver x grid at every budget on the same `n` noises of `shape` (of one sample), against the exact flow.

    `subject` names the denoiser as a command line would (`--law lowrank64`); `progress` is called with (done, all).
    Raises FokkerError for unknown names or an anchored process.
    """
    process = denoiser.process
    if process.anchored:
        raise FokkerError("the arena compares solvers on plain processes; an anchored one has the same coefficients")
    x1, truth, resolution = reference(denoiser, shape, n, seed, end, **cond)
    _, other, _ = reference(denoiser, shape, n, seed + 1, end, **cond)
    jobs = merged(combinations(process, list(nfe), names, grid_names, end))
    rows: list[Row] = []
    refused: list[str] = []
    scale = float(truth.square().mean().sqrt())
    distance = SlicedWasserstein(projections=64)
    floor = distance(truth, other).value
    for k, (name, (grid_name, *also), budget, plan) in enumerate(jobs):
        if progress is not None:
            progress(k, len(jobs))
        if isinstance(plan, str):
            refused.append(f"{name} on {grid_name} at {budget}: {plan}")
            continue
        try:
            trace = run(denoiser, x1, plan, seed=seed, **cond)
        except FokkerError as problem:
            refused.append(f"{name} on {grid_name} at {budget}: {problem}")
            continue
        where = f" --end {end:g}" if end is not None else ""
        # a model has its own process
        on = f" --process {spelled(process)}" if isinstance(denoiser, LawDenoiser) else ""
        laid = " ".join(f"--grid {g}" for g in (grid_name, *also))
        rerun = f"fokker arena solvers {subject}{on} --nfe {budget} --solver {name} {laid}"
        value = distance(trace.x0, other)
        rows.append(
            Row(
                solver=name,
                grid=grid_name,
                budget=budget,
                nfe=trace.nfe,
                **({} if plan.stochastic else _errors(trace.x0, truth, scale)),
                distance=value.value,
                distance_error=value.error or 0.0,
                floor=floor,
                seconds=trace.seconds,
                also=tuple(also),
                rerun=f"{rerun} -n {n} --seed {seed}{where}",
            )
        )
    if not rows:
        raise FokkerError(f"nothing could be run: {refused[0] if refused else 'no solver, grid and budget were given'}")
    return Arena(tuple(rows), subject, repr(process), n, seed, resolution, tuple(refused))


def reference(
    denoiser: Denoiser, shape: Sequence[int], n: int, seed: int, end: float | None, exact: bool = True, **cond: Any
) -> tuple[Tensor, Tensor, float]:
    """(start states, end points of the exact flow, relative error of these end points).

    `exact=False` integrates a law's flow like a model's, which is quicker and good to what it says.
    """
    process = denoiser.process
    last = 0.0 if end == 0 else (process.end if end is None else end)
    law = isinstance(denoiser, LawDenoiser)
    x1 = process.start(process.sample_noise((n, *shape), seed, dtype=torch.float64 if law else torch.float32))
    if exact and isinstance(denoiser, LawDenoiser):
        truth = denoiser.law.flow(process, x1, 1.0, last, **cond)
        return x1, truth, 0.0
    fine = solve.get("adams")
    coarse, truth = (
        run(denoiser, x1, fine.plan(process, grids.VPTime(k, end=end)), **cond).x0 for k in (60, 120)
    )
    scale = float(truth.square().mean().sqrt())
    return x1, truth, float((coarse - truth).square().mean().sqrt()) / scale


def combinations(
    process: Process, budgets: Sequence[int], names: Sequence[str] | None, grid_names: Sequence[str] | None, end: float | None
) -> Iterable[tuple[str, str, int, Plan | str]]:
    """(solver, grid, budget, plan or the reason why there is none); each distinct solver once."""
    known: list[Solver] = []
    for name in names or solve.names():
        solver = solve.get(name)
        # an adaptive solver has no budget
        if solver in known or (names is None and name == "adaptive"):
            continue
        known.append(solver)
        for grid_name in grid_names or grids.names():
            kind = grids.get(grid_name)
            for budget in sorted(budgets):
                yield name, grid_name, budget, _plan(solver, process, kind, budget, end)


def merged(
    jobs: Iterable[tuple[str, str, int, Plan | str]],
) -> list[tuple[str, tuple[str, ...], int, Plan | str]]:
    """The same with one entry for each distinct plan of a solver and budget, which names all grids that lay it out."""
    groups: dict[tuple[str, int], list[tuple[list[str], Plan | str]]] = {}
    for name, grid_name, budget, plan in jobs:
        group = groups.setdefault((name, budget), [])
        known = next((grid_names for grid_names, other in group if _same(plan, other)), None)
        if known is None:
            group.append(([grid_name], plan))
        else:
            known.append(grid_name)
    return [(name, tuple(g), budget, plan) for (name, budget), group in groups.items() for g, plan in group]


def _same(a: Plan | str, b: Plan | str) -> bool:
    """Whether two plans of one solver ask at the same times, to the rounding of the grids."""
    if isinstance(a, str) or isinstance(b, str) or len(a.times) != len(b.times) or len(a.rows) != len(b.rows):
        return False
    ends = (0.0 if p.end is None else p.end for p in (a, b))
    pairs = zip([*a.times, next(ends)], [*b.times, next(ends)], strict=True)
    return all(abs(float(t) - float(s)) <= 1e-9 * max(float(t), float(s)) for t, s in pairs)


def _plan(solver: Solver, process: Process, kind: type[Grid], budget: int, end: float | None) -> Plan | str:
    def make(steps: int) -> Grid:
        return kind(steps, end=end)

    try:
        plan = solver.budget(budget, process, make)
    except FokkerError as problem:
        return str(problem)
    return plan


def _errors(x: Tensor, truth: Tensor, scale: float) -> dict[str, float]:
    """rms and its standard error, median and its 5 to 95 % bootstrap interval, relative to the truth's size."""
    rms = EndPointRMS()(x, truth)
    each = (x - truth).flatten(1).square().mean(1).sqrt() / scale
    ordered = each.sort().values
    n = len(ordered)
    # the order statistics that enclose the median with 90 %, from the normal limit of the binomial
    reach = 1.645 * 0.5 * n**0.5
    low, high = int(max(0, n / 2 - reach)), int(min(n - 1, n / 2 + reach))
    return {
        "rms": rms.value / scale,
        "rms_error": (rms.error or 0.0) / scale,
        "median": float(each.median()),
        "median_low": float(ordered[low]),
        "median_high": float(ordered[high]),
    }


def spelled(process: Process) -> str:
    """The process as the command line takes it, options included."""
    record = next((r for r in catalogue.records(kind="process") if r.name == process.name), None)
    options = ",".join(f"{k}={v}" for k, v in process.config.items() if k != "process")
    return f"{record.id if record else process.name}" + (f":{options}" if options else "")
