"""The best plan for one model and one budget.

The best fixed solvers are laid out, from t = 1 and from later starts, and from there each table follows the least-squares
descent of `fokker.solve.descent` towards the model's own flow. What was found competes with every fixed solver on noises that
the search never saw.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker import arena, grids, solve
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.laws.law import LawDenoiser
from fokker.plan import Plan
from fokker.process import Process
from fokker.solve.descent import Pool, descend
from fokker.solve.table import Table

LATER = (-7.0, -5.5, -4.5, -3.5, -2.5, -1.5)  # log-SNRs at which a start that saves the first evaluation may lie
BEGUN, FINISHED = 6, 3  # descents that are begun, and those of them that are finished

Judge = Callable[[Plan], float]


@dataclass
class Field:
    """The candidates of a search, judged by the same noises; smaller is better."""

    judge: Judge
    best: tuple[float, Table] | None = None

    def add(self, table: Table) -> float:
        """The value of a candidate, which is remembered if it is the best so far."""
        value = self.judge(table.plan())
        if self.best is None or value < self.best[0]:
            self.best = (value, table)
        return value


def tune(
    denoiser: Denoiser,
    nfe: int,
    shape: Sequence[int],
    seed: int = 0,
    metric: str | Callable[[Tensor], float] | None = None,
    n: int | None = None,
    steps: int = 12,
    end: float | None = None,
    seconds: float = 40.0,
    progress: Callable[[int, int], None] | None = None,
    **cond: Any,
) -> Plan:
    """The best plan with `nfe` evaluations for this denoiser, judged on samples of `shape` (of one sample).

    The error is the end points' RMS distance to the denoiser's own flow, integrated to convergence, relative to their size. Of
    `n` noises (6144, or 192 for a network) one half trains the table and the other chooses between what was found and every
    fixed solver x grid, so that the plan returned is never worse than the best of them there.

    metric   the name of a metric of `fokker.measure`, which compares the samples with the end points of the flow, or a function
             of samples (n, *shape), smaller is better; it chooses at the end instead of the RMS distance
    steps    Gauss-Newton steps of each of the descents that are finished; after `seconds` of descent, no other step is begun
             (a result that was cut short depends on the machine, and says so)
    end      the time to end at; None is the process's own, 0 goes to x_0
    progress is called with (done, all)
    cond     conditions for the denoiser, (n, ...) each; then n is their length

    `plan.config` tells what was found: the errors on the noises that chose, those of the best fixed solver, and the floor
    below which errors mean nothing because the model's own flow is not known better. Raises FokkerError for an anchored
    process, nfe < 1 or too few samples.

    Reference: the spaces of Li et al. 2023, arXiv 2309.10438; Liu et al. 2023, arXiv 2312.07243; Zheng et al. 2023, arXiv
    2310.13268; the dense table is that of Shaul et al. 2024, arXiv 2403.01329; Levenberg 1944, Marquardt 1963.
    """
    begun = time.perf_counter()
    process = denoiser.process
    if process.anchored:
        raise FokkerError("tune the plain process: an anchored one with the same alpha and sigma runs the same plan")
    given = {len(v) for v in cond.values() if isinstance(v, Tensor)}
    if n is None:
        n = given.pop() if len(given) == 1 else size(denoiser)
    if nfe < 1 or n < 12 or steps < 1:
        raise FokkerError(f"nfe={nfe}, n={n}, steps={steps} are not accepted; give at least 1 evaluation, 12 samples, 1 step")
    x1, truth, floor = arena.reference(denoiser, shape, n, seed, end, exact=False, **cond)
    everything = Pool(denoiser, x1, truth, cond)
    cut = n // 2
    train, held = everything.part(slice(0, cut)), everything.part(slice(cut, n))
    judge = _judge(held, metric)
    fixed = _fixed(train, nfe, end)
    candidates = Field(judge)
    for table in fixed[:16]:
        candidates.add(table)
    if candidates.best is None:
        raise FokkerError(f"no deterministic solver has a plan with nfe={nfe} on {process!r}")
    best_fixed = candidates.best[1]
    starts = _starts(train, fixed, nfe, end)
    late = _search(train, starts, candidates, steps, seed, time.perf_counter(), seconds, progress)
    value, winner = candidates.best
    error, fixed_error = held.rms(winner.plan()), held.rms(best_fixed.plan())
    config = {
        "solver": "tuned",
        "nfe": nfe,
        "shape": list(shape),
        "seed": seed,
        "samples": n,
        "chosen_on": n - cut,
        "metric": _named(metric),
        "value": value,
        "error": error,
        "from": winner.name,
        "fixed": best_fixed.name,
        "fixed_error": fixed_error,
        "floor": floor,
        "below_floor": error < floor,
        "cut_short": late,
        "seconds": round(time.perf_counter() - begun, 2),
    }
    plan = winner.plan()
    return Plan(plan.rows, process, plan.outputs, 1, (), plan.start, plan.end, config)


def size(denoiser: Denoiser) -> int:
    """How many noises a search uses unless told: many where an evaluation costs nothing."""
    return 6144 if isinstance(denoiser, LawDenoiser) else 192


def _search(
    train: Pool,
    starts: list[Table],
    candidates: Field,
    steps: int,
    seed: int,
    begun: float,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> bool:
    """Short descents from all starts on half of the noises, then long ones of the best on all; whether time ran out."""
    early, done = max(2, steps // 2), 0
    total = len(starts) * early + min(FINISHED, len(starts)) * steps
    half = train.part(slice(0, max(8, len(train) // 2)))
    for pool, many, power, share in ((half, early, (1.3, 1.7), 0.5), (train, steps, (1.6, 2.0), 1.0)):
        reached: list[tuple[float, Table]] = []
        late = False
        for k, start in enumerate(starts):
            last = (float("inf"), start)
            for table in descend(start, pool, many, max(8, min(1024, len(pool) // 2)), seed + k, power):
                last = (candidates.add(table), table)
                done += 1
                if progress is not None:
                    progress(min(done, total), total)
                late = time.perf_counter() - begun > share * seconds
                if late:
                    break
            reached.append(last)
            if late:
                break
        starts = [table for _, table in sorted(reached, key=lambda entry: entry[0])[:FINISHED]]
    return late


def _named(metric: str | Callable[[Tensor], float] | None) -> str:
    return metric if isinstance(metric, str) else "rms" if metric is None else str(getattr(metric, "__name__", metric))


def _judge(held: Pool, metric: str | Callable[[Tensor], float] | None) -> Judge:
    """What says how good a plan is, on the noises that choose."""
    if metric is None or metric == "rms":
        return held.rms
    if callable(metric):
        return _or_worst(held, metric)
    from fokker import measure

    named = measure.get(metric.replace("-", "_"))
    sign = 1.0 if named.better == "lower" else -1.0
    return _or_worst(held, lambda x: sign * named(x, held.truth).value)  # type: ignore[operator]


def _or_worst(held: Pool, function: Callable[[Tensor], float]) -> Judge:
    """A function of samples as a judge, for whom samples that are not finite are the worst."""

    def judge(plan: Plan) -> float:
        x = held.end(plan)
        return float(function(x)) if bool(torch.isfinite(x).all()) else float("inf")

    return judge


def _fixed(train: Pool, nfe: int, end: float | None) -> list[Table]:
    """Every deterministic solver x grid that keeps the budget, best first: all on few samples, the better ones on more."""
    entries: dict[str, tuple[float, Table]] = {}
    few = train.part(slice(0, max(8, min(256, len(train) // 4))))
    for name, grid, _, plan in arena.combinations(train.denoiser.process, [nfe], None, None, end):
        if isinstance(plan, str) or not 1 <= plan.nfe <= nfe:
            continue
        try:
            table = Table.of(plan, f"{name} on {grid}")
        except FokkerError:
            continue
        error = few.rms(table.plan())
        entries.setdefault(f"{error:.9g}", (error, table))  # one of those that are one method under two names
    ranked = sorted(entries.values(), key=lambda e: e[0])[:24]
    more = train.part(slice(0, 1024))
    return sorted((table for _, table in ranked), key=lambda t: more.rms(t.plan()))


def _starts(train: Pool, fixed: list[Table], nfe: int, end: float | None) -> list[Table]:
    """Where descents begin: the best of the fixed tables and of the same solvers from later starts, no two alike."""
    process = train.denoiser.process
    pool = train.part(slice(0, max(8, min(512, len(train) // 2))))
    entries: dict[str, tuple[float, Table]] = {}
    tables = [*fixed[:8], *(t for f in fixed[:10] for at in LATER if (t := _later(process, f, nfe, end, at)) is not None)]
    for table in tables:
        error = pool.rms(table.plan())
        entries.setdefault(f"{error:.6g}", (error, table))
    chosen: list[Table] = []
    for _, table in sorted(entries.values(), key=lambda e: e[0]):
        if all(table.name.split(" from ")[0] != other.name.split(" from ")[0] for other in chosen):
            chosen.append(table)
    return chosen[:BEGUN]


def _later(process: Process, fixed: Table, nfe: int, end: float | None, at: float) -> Table | None:
    """The solver and grid of a fixed table, begun at a later time."""
    name, grid = fixed.name.split(" on ")
    kind = grids.get(grid)
    t = float(process.time(at))
    try:
        plan = solve.get(name).budget(nfe, process, lambda steps: kind(steps, start=t, end=end))
        return Table.of(plan, f"{fixed.name} from log-SNR {at:g}") if plan.nfe == nfe else None
    except FokkerError:
        return None
