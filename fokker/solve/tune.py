"""The best plan for one model and one budget.

Every fixed solver is laid out on every grid; tables are fitted to the model's own trajectories at many choices of times; the
best of these follow the least-squares descent of `fokker.solve.descent` towards the model's own flow, or, where only a metric
can say what is good, a population of schedules evolves. What was found competes with every fixed solver on noises that the
search never saw.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker import arena, batches
from fokker.denoiser import Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.laws.law import LawDenoiser
from fokker.plan import Plan
from fokker.solve import descent, evolved
from fokker.solve.descent import descend
from fokker.solve.fitted import fit, timings
from fokker.solve.pool import Pool
from fokker.solve.sensitivity import differentiable
from fokker.solve.source import FINE, Source
from fokker.solve.statistics import DPMSolverV3, ModelStatistics
from fokker.solve.table import Table

METHODS = ("descent", "evolution")
STEPS = 40  # Gauss-Newton steps of a descent at most
BEGUN, FINISHED = 10, 2  # descents
MOST, LEAST = 32768, 32  # noises
SHARE, SPARE = 0.4, 0.06  # of the time: for what comes before the descents, and for what is under way when it ends
JUDGED = 12  # runs of a plan on all noises that come before
ENOUGH, SCREENED = 512, 4  # from so many noises on, so many times as many are screened for those that are hard
BATCH, EQUATIONS = 512, 2**15  # samples whose derivatives a step takes, and equations where they are taken by differences
POINTS, TRACED = 60, 128  # noise levels and trajectories for a model's statistics

clock = time.perf_counter
Judge = Callable[[Plan], float]


@dataclass
class Field:
    """The candidates of a search, judged by the same noises; smaller is better."""

    judge: Judge
    best: tuple[float, str, Plan] | None = None

    def add(self, name: str, plan: Plan) -> float:
        """The value of a candidate, which is remembered if it is the best so far."""
        value = self.judge(plan)
        if self.best is None or value < self.best[0]:
            self.best = (value, name, plan)
        return value


@dataclass
class Budget:
    """Seconds, and how many evaluations of one sample are made in one."""

    seconds: float
    begun: float
    rate: float

    @classmethod
    def of(cls, source: Source, seconds: float, begun: float) -> "Budget":
        """Measured on a few calls."""
        denoiser, many = source.denoiser, min(source.chunk, 512 if isinstance(source.denoiser, LawDenoiser) else 16)
        x, given = source.start(torch.arange(many)), source.conditions(torch.arange(many))
        bound, spent = denoiser.bind(Run(many, rows=1)), []
        for _ in range(3):
            at = clock()
            with torch.no_grad():
                # what comes back on the CPU was waited for
                bound(x, 0.5, **given).sum().item()
            spent.append(clock() - at)
        return cls(seconds, begun, many / sorted(spent)[1])

    @property
    def left(self) -> float:
        return self.seconds - (clock() - self.begun)

    @property
    def evaluations(self) -> float:
        """All that fit into the time."""
        return self.rate * self.seconds


def tune(
    denoiser: Denoiser,
    nfe: int,
    shape: Sequence[int],
    seed: int = 0,
    metric: str | Callable[[Tensor], float] | None = None,
    n: int | None = None,
    steps: int | None = None,
    end: float | None = None,
    seconds: float | None = None,
    method: str = "descent",
    progress: Callable[[int, int], None] | None = None,
    **cond: Any,
) -> Plan:
    """The best plan with `nfe` evaluations for this denoiser, judged on samples of `shape` (of one sample).

    The error is the end points' RMS distance to the denoiser's own flow, integrated to convergence, relative to their size.
    One half of `n` noises trains and ranks every fixed solver x grid; the other chooses between what was found and the best of
    these, so that the plan returned is never worse than any of them there.

    metric   the name of a metric of `fokker.measure`, which compares the samples with the end points of the flow, or a function
             of samples (n, *shape), smaller is better; it chooses at the end instead of the RMS distance
    method   "descent" follows the RMS distance in the dense space of all tables; "evolution" minimises the metric itself over
             times, start, time shifts, and solver, order, prediction, estimator and corrector of each step
    n, steps noises, and Gauss-Newton steps of a descent that is finished (generations of 40 candidates); None takes what fits
             into the time, and `plan.config` says what that was
    seconds  for everything, the flow that the plan is compared with included; None is 50 for a law and 150 for a network
    end      the time to end at; None is the process's own, 0 goes to x_0
    progress is called with (done, all)
    cond     conditions for the denoiser, one row a sample; they go round where there are fewer than noises

    `plan.config` tells what was found: the errors on the noises that chose, those of the best fixed solver, and the floor
    below which errors mean nothing because the model's own flow is not known better. Raises FokkerError for an anchored
    process, nfe < 1 or too few samples.

    Reference: the spaces of Li et al. 2023, arXiv 2309.10438; Liu et al. 2023, arXiv 2312.07243; Zheng et al. 2023, arXiv
    2310.13268; the dense table is that of Shaul et al. 2024, arXiv 2403.01329; Levenberg 1944, Marquardt 1963.
    """
    begun = clock()
    process = denoiser.process
    if process.anchored:
        raise FokkerError("tune the plain process: an anchored one with the same alpha and sigma runs the same plan")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if seconds is None:
        seconds = 50.0 if isinstance(denoiser, LawDenoiser) else 150.0
    if nfe < 1 or (n is not None and n < 12) or (steps is not None and steps < 1) or not seconds > 0:
        raise FokkerError(
            f"nfe={nfe}, n={n}, steps={steps}, seconds={seconds} are not accepted; give 1 evaluation, 12 samples and 1 step"
        )
    check_metric(metric)
    source = Source(denoiser, tuple(shape), seed, end, cond)
    if not isinstance(denoiser, LawDenoiser):
        source.chunk = batches.size(source.one, source.chunk, source.start(torch.arange(1)).device)
    budget = Budget.of(source, seconds, begun)
    many = n or _affordable(budget, FINE[-1], nfe)
    # where noises are scarce, their end points are only as exact as the comparison needs
    source.converge(128 if isinstance(denoiser, LawDenoiser) else 8, nfe if many < MOST else None)
    if n is None:
        n = many if many == MOST else _affordable(budget, source.steps, nfe)
    base = n // 4 if n >= ENOUGH and (metric is None or metric == "rms") else n
    at = clock()
    first = source.pool(torch.arange(base))
    budget.rate = base * source.steps / max(clock() - at, 1e-9)
    train, held = first.part(slice(0, base // 2)), first.part(slice(base // 2, base))
    fixed = _fixed(train, nfe, end)
    if not fixed:
        raise FokkerError(f"no deterministic solver has a plan with nfe={nfe} on {process!r}")
    starts = _starts(train, source, fixed, nfe)
    if base < n:
        near = source.screened(base, base + SCREENED * n, n - base, fixed[0][1], starts[0].plan())
        train, held = train.joined(near.part(slice(0, None, 2))), held.joined(near.part(slice(1, None, 2)))
    field = Field(_judge(held, metric))
    for name, plan in fixed[: 8 if n >= ENOUGH else 4]:
        field.add(name, plan)
    assert field.best is not None
    fixed_name, best_fixed = field.best[1:]
    for name, plan in _statistical(train, nfe, end, seed, budget):
        field.add(name, plan)
    if method == "evolution":
        spare = evolved.JUDGED * nfe * len(held) / budget.rate + SPARE * seconds
        if steps is None:
            runs = (budget.left - spare) * budget.rate / (nfe * len(train))
            steps = max(1, min(50, int(runs / evolved.GENERATION)))
        last = best_fixed.end if best_fixed.end is None else float(best_fixed.end)
        late = evolved.search(
            train, nfe, last, _trained(train, metric), field.add, steps, seed, lambda: budget.left < spare, progress
        )
    else:
        late, steps = _search(train, starts, field, steps, seed, budget, progress)
    value, winner, plan = field.best
    error, fixed_error = held.rms(plan), held.rms(best_fixed)
    config = {
        "solver": "tuned",
        "nfe": nfe,
        "shape": list(shape),
        "seed": seed,
        "samples": n,
        "chosen_on": len(held),
        "method": method,
        "steps": steps,
        "metric": named(metric),
        "value": value,
        "error": error,
        "from": winner,
        "fixed": fixed_name,
        "fixed_error": fixed_error,
        "floor": source.floor,
        "below_floor": error < source.floor,
        "cut_short": late,
        "seconds": round(clock() - begun, 2),
    }
    return Plan(plan.rows, process, plan.outputs, plan.inputs, (), plan.start, plan.end, config)


def named(metric: str | Callable[[Tensor], float] | None) -> str:
    return metric if isinstance(metric, str) else "rms" if metric is None else str(getattr(metric, "__name__", metric))


def check_metric(metric: str | Callable[[Tensor], float] | None) -> None:
    """FokkerError for an unknown name, before any work is done."""
    from fokker import measure

    if isinstance(metric, str) and metric != "rms":
        measure.get(metric.replace("-", "_"))


def _judge(pool: Pool, metric: str | Callable[[Tensor], float] | None) -> Judge:
    """What says how good a plan is, on the noises of a pool."""
    if metric is None or metric == "rms":
        return pool.rms
    function = _trained(pool, metric)
    return lambda plan: function(pool.end(plan))


def _trained(pool: Pool, metric: str | Callable[[Tensor], float] | None) -> Callable[[Tensor], float]:
    """The metric as a function of the end points of a pool, smaller is better; what is not finite is the worst."""
    if callable(metric):
        value: Callable[[Tensor], float] = metric
    elif metric is None or metric == "rms":
        value = lambda x: float((x - pool.truth).square().mean().sqrt())  # noqa: E731
    else:
        from fokker import measure

        one = measure.get(metric.replace("-", "_"))
        sign = 1.0 if one.better == "lower" else -1.0
        value = lambda x: sign * one(x, pool.truth).value  # type: ignore[operator]  # noqa: E731
    return lambda x: float(value(x)) if bool(torch.isfinite(x).all()) else float("inf")


def _affordable(budget: Budget, steps: int, nfe: int) -> int:
    """Noises whose end points, with what is judged on all of them, take a share of the time."""
    evaluations = SHARE * budget.evaluations
    n = evaluations / (steps + (JUDGED + 2 * SCREENED) * nfe)
    if n < ENOUGH:
        n = min(ENOUGH - 1, evaluations / (steps + JUDGED * nfe))
    return int(max(LEAST, min(MOST, n))) // 16 * 16


def _fixed(train: Pool, nfe: int, end: float | None) -> list[tuple[str, Plan]]:
    """Every deterministic solver x grid that keeps the budget, best first: all on few samples, the better ones on more."""
    plans = [
        (f"{name} on {grid}", plan)
        for name, grid, _, plan in arena.combinations(train.denoiser.process, [nfe], None, None, end)
        if not isinstance(plan, str) and 1 <= plan.nfe <= nfe and not plan.stochastic
    ]
    n = len(train)
    for kept, many in ((len(plans), max(2, n // 32)), (24, max(6, n // 8)), (8, max(16, n // 4))):
        more = train.part(slice(0, min(1024, many)))
        ranked: dict[str, tuple[float, str, Plan]] = {}
        for name, plan in plans[:kept]:
            error = more.rms(plan)
            ranked.setdefault(f"{error:.9g}", (error, name, plan))  # one of those that are one under two names
        plans = [(name, plan) for _, name, plan in sorted(ranked.values(), key=lambda e: e[0])]
    return plans


def _statistical(train: Pool, nfe: int, end: float | None, seed: int, budget: Budget) -> list[tuple[str, Plan]]:
    """DPM-Solver-v3 in the model's own statistics, with and without corrector, where measuring these costs little."""
    from fokker import grids

    denoiser, shape = train.denoiser, train.start.shape[1:]
    many = min(TRACED, len(train))
    if 4 * POINTS * many > 0.1 * budget.evaluations or many < 64:
        return []
    cond: dict[str, Any] = {k: v[:many] if isinstance(v, Tensor) else v for k, v in train.cond.items()}
    try:
        known = ModelStatistics.fit(denoiser, shape, POINTS, many, seed, end=end, chunk=min(many, train.chunk), **cond)
    except (FokkerError, RuntimeError):
        return []  # a model without forward-mode derivatives, or without a log-SNR at an end
    found: dict[str, Plan] = {}
    for order in (2, 3):
        for corrector in (False, True):
            for kind in ("logsnr", "karras", "vp-time", "uniform"):
                solver = DPMSolverV3(order, known, corrector)
                try:
                    plan = solver.plan(denoiser.process, grids.get(kind)(nfe, end=end))
                except FokkerError:
                    continue
                if plan.nfe <= nfe:
                    found[f"dpm-solver-v3 of order {order}{', corrected,' if corrector else ''} on {kind}"] = plan
    few = train.part(slice(0, 256))
    best = sorted(found, key=lambda name: few.rms(found[name]))[:2]
    return [(name, found[name]) for name in best]


def _starts(train: Pool, source: Source, fixed: list[tuple[str, Plan]], nfe: int) -> list[Table]:
    """Where descents begin, best first: tables fitted at many choices of times, and the best fixed one."""
    paths = source.paths
    assert paths is not None
    last = fixed[0][1].end
    end = None if last is None else float(torch.as_tensor(last))
    process, kept = train.denoiser.process, len(paths.states[0])

    def fitted(times: Tensor, many: int, name: str) -> tuple[Table, float]:
        part = train.part(slice(0, many))
        return fit(train.denoiser, paths.part(many), times, part.start, part.truth, end, name, **part.cond)

    few, found = min(kept, max(4, len(train) // 32)), []
    for name, times in timings(process, nfe, 0 if end is None else end):
        try:
            found.append((fitted(times, few, name)[1], name, times))
        except FokkerError:
            continue
    best = sorted(found, key=lambda entry: entry[0])[:12]
    more = min(kept, max(16, len(train) // 2))
    again = sorted((fitted(times, more, name) for _, name, times in best), key=lambda entry: entry[1])
    tables = [table for table, _ in again[:BEGUN]]
    for name, plan in fixed:
        try:
            return [*tables[:3], Table.of(plan, name), *tables[3:]]
        except FokkerError:
            continue
    return tables


def _search(
    train: Pool,
    starts: list[Table],
    field: Field,
    steps: int | None,
    seed: int,
    budget: Budget,
    progress: Callable[[int, int], None] | None,
) -> tuple[bool, int]:
    """Short descents from several starts on half of the noises, then long ones of the best on all.

    Returns whether time ran out, and the steps of a finished descent.
    """
    at = clock()
    for table in starts[:4]:
        field.add(table.name, table.plan())
    n, nfe, numbers, at_once = len(train), len(starts[0]), train.start[0].numel(), differentiable(train)
    # half of the noises train and half judge
    budget.rate = 4 * n * nfe / max(clock() - at, 1e-9)
    half, late, done = train.part(slice(0, n // (2 if n >= 128 else 1))), False, 0

    def batch(pool: Pool) -> int:
        """Samples whose derivatives a step takes."""
        least, most = (4 * nfe, len(pool) // 4) if at_once else (8, EQUATIONS // numbers)
        return min(len(pool), BATCH, max(least, most))

    def planned(steps: int) -> tuple[tuple[Pool, int, int, tuple[float, float]], ...]:
        begun = max(1, min(BEGUN, steps // 4))
        return (half, begun, max(2, steps // 2), (0.8, 1.2)), (train, min(FINISHED, begun), steps, (1.0, 1.6))

    def price(steps: int) -> float:
        rounds = ((k * many, p) for p, k, many, _ in planned(steps))
        taken = sum(m * (descent.cost(nfe, len(p), batch(p), numbers, at_once > 0) + nfe * n) for m, p in rounds)
        return taken / budget.rate

    if steps is None:
        steps = next((s for s in range(STEPS, 1, -1) if price(s) < budget.left - SPARE * budget.seconds), 1)
        late = steps < STEPS
    total = sum(k * many for _, k, many, _ in planned(steps))
    for pool, begun, many, power in planned(steps):
        reached: list[tuple[float, Table]] = []
        for k, start in enumerate(starts[:begun]):
            last = (field.add(start.name, start.plan()), start)
            for table in descend(start, pool, many, batch(pool), seed + k, power, at_once):
                value = last[0] if table is last[1] else field.add(table.name, table.plan())
                last = min(last, (value, table), key=lambda entry: entry[0]) if len(pool) < 256 else (value, table)
                done += 1
                if progress is not None:
                    progress(min(done, total), total)
                if budget.left < SPARE * budget.seconds:
                    return True, steps
            reached.append(last)
        starts = [table for _, table in sorted(reached, key=lambda entry: entry[0])]
    return late, steps
