"""The best plan for one model and one budget, found by gradient descent on the table itself.

Every deterministic explicit solver with n evaluations is a table of the same shape: n times, and for each of the n states
that follow a weight on the start and on every belief so far. Grids, orders, predictors and correctors, momentum, prediction
spaces and time shifts are points of that one space, so all of them are searched at once: the best fixed solvers are laid out,
and from there the table follows the gradient of its end-point error, through the denoiser, to the model's own flow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker import arena
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.loop import sample
from fokker.plan import Plan, Row
from fokker.process import Process

FAINT = -14.0  # the log-SNR from which a time's own parameter starts when it has no signal


@dataclass(frozen=True)
class Table:
    """A plan in its dense form: times (n,) and weights (n, 1 + n) of the states on (start, beliefs)."""

    process: Process
    times: Tensor
    weights: Tensor
    start: float
    end: float | None

    @classmethod
    def of(cls, plan: Plan) -> "Table":
        """The dense form of a deterministic plan with one input; raises FokkerError for another."""
        n = plan.nfe
        if plan.stochastic or plan.inputs != 1 or len(plan.outputs) != 1:
            raise FokkerError("only a deterministic plan with one state has a dense table")
        made: list[Tensor] = []
        belief: dict[int, int] = {}
        asked: list[tuple[int, float]] = []
        for k, row in enumerate(plan.rows):
            if not isinstance(row, Row):
                raise FokkerError("an adaptive plan has no table")
            state = torch.zeros(1 + n, dtype=torch.float64)
            state[0] = float(not row.terms)
            for (kind, i), c in row.terms:
                if kind == "x":
                    state = state + c * made[i]
                else:
                    state[1 + belief[i]] += c
            made.append(state)
            if row.t is not None:
                belief[k] = len(asked)
                asked.append((k, float(row.t)))
        following = [k for k, _ in asked[1:]] + [plan.outputs[0]]
        weights = torch.stack([made[k] for k in following])
        return cls(plan.process, torch.tensor([t for _, t in asked], dtype=torch.float64), weights, asked[0][1], plan.end)

    def plan(self, times: Sequence[Tensor], weights: Tensor, config: dict[str, Any], keep: bool = False) -> Plan:
        """The plan with these times after the first and these weights; `keep` leaves them as tensors, for gradients."""
        rows = [Row((), self.start)]
        n = len(weights)
        for k in range(n):
            terms = [(("x", 0), weights[k, 0]), *((("D", j), weights[k, 1 + j]) for j in range(k + 1))]
            t = times[k] if k + 1 < n else None
            if not keep:
                terms = [(key, c.item()) for key, c in terms]
                t = None if t is None else t.item()
            rows.append(Row(tuple(terms), t))
        return Plan(tuple(rows), self.process, (n,), 1, (), self.start, self.end, config)


@dataclass
class Search:
    """What is searched on: starts, their true end points, and how the error of an end point is measured."""

    denoiser: Denoiser
    start: Tensor
    truth: Tensor
    cond: dict[str, Any] = field(default_factory=dict)

    def errors(self, plan: Plan, rows: Tensor | slice = slice(None), gradient: bool = False) -> Tensor:
        """The squared error of each end point, relative to the mean square of the truth."""
        cond = {k: v[rows] for k, v in self.cond.items()}
        x0 = sample(self.denoiser, self.start[rows], plan, gradient=gradient, check=False, **cond)
        each = (x0 - self.truth[rows]).flatten(1).square().mean(1) / self.truth.square().mean()
        return each if gradient else torch.where(torch.isfinite(each), each, torch.full_like(each, torch.inf))

    def rms(self, plan: Plan) -> float:
        return float(self.errors(plan).mean().sqrt())


def tune(
    denoiser: Denoiser,
    nfe: int,
    shape: Sequence[int],
    seed: int = 0,
    metric: Callable[[Tensor], float] | None = None,
    n: int = 3072,
    updates: int = 400,
    batch: int = 256,
    end: float | None = None,
    starts: int = 2,
    progress: Callable[[int, int], None] | None = None,
    **cond: Any,
) -> Plan:
    """The best plan with `nfe` evaluations for this denoiser, judged on samples of `shape` (of one sample).

    The error is the end points' RMS distance to the denoiser's own flow, integrated to convergence. Of `n` noises two thirds
    train the table and a third choose between what was found and every fixed solver x grid, so that the plan returned is
    never worse than the best of them there. `starts` of them are refined, each by `updates` steps on `batch` noises, drawn
    more often where the best fixed solvers fail.

    metric   a function of samples (n, *shape), smaller is better, that decides at the end instead of the RMS distance
    cond     conditions for the denoiser, (n, ...) each

    `plan.config` tells what was found: the errors, those of the best fixed solver, and the floor below which errors mean
    nothing because the model's own flow is not known better. Raises FokkerError for an anchored process or nfe < 1.

    Reference: the spaces of Liu et al. 2023, arXiv 2309.10438; Liu et al. 2023, arXiv 2312.07243; Zheng et al. 2023, arXiv
    2310.13268; the dense table is that of Shaul et al. 2024, arXiv 2403.01329.
    """
    process = denoiser.process
    if process.anchored:
        raise FokkerError("tune the plain process: an anchored one with the same alpha and sigma runs the same plan")
    if nfe < 1 or n < 12:
        raise FokkerError(f"nfe={nfe}, n={n} are not accepted; use at least one evaluation and 12 samples")
    x1, truth, floor = arena.reference(denoiser, shape, n, seed, end, exact=False, **cond)
    cut = 2 * n // 3
    train = Search(denoiser, x1[:cut], truth[:cut], {k: v[:cut] for k, v in cond.items()})
    held = Search(denoiser, x1[cut:], truth[cut:], {k: v[cut:] for k, v in cond.items()})
    fixed = _fixed(held, nfe, end)
    judge = held.rms if metric is None else lambda plan: metric(sample(denoiser, held.start, plan, check=False, **held.cond))
    best = min(fixed, key=lambda entry: judge(entry[1])) if metric is not None else fixed[0]
    winner, found = best[1], judge(best[1])
    done = 0
    hard = torch.stack([train.errors(plan).clamp_max(10.0) for _, plan in fixed[:3]]).mean(0)
    for _, plan in fixed[:starts]:
        for trial in _descend(train, Table.of(plan), hard, updates, batch, seed):
            done += 1
            if progress is not None:
                progress(done * _EVERY, starts * updates)
            value = judge(trial)
            if value < found:
                winner, found = trial, value
    config = {
        "solver": "tuned",
        "nfe": nfe,
        "seed": seed,
        "updates": updates,
        "samples": n,
        "error": held.rms(winner),
        "fixed": best[0],
        "fixed_error": held.rms(best[1]),
        "floor": floor,
    }
    return Plan(winner.rows, process, winner.outputs, 1, (), winner.start, winner.end, winner.config | config)


_EVERY = 20


def _fixed(held: Search, nfe: int, end: float | None) -> list[tuple[str, Plan]]:
    """Every deterministic solver x grid that keeps the budget, best first."""
    entries: dict[str, tuple[float, str, Plan]] = {}
    for name, grid, _, plan in arena.combinations(held.denoiser.process, [nfe], None, None, end):
        if isinstance(plan, str) or plan.stochastic or plan.inputs != 1 or plan.nfe > nfe or plan.nfe < 1:
            continue
        error = held.rms(plan)
        key = f"{error:.9g}"  # one of those that are the same method under two names
        if error == error and key not in entries:
            entries[key] = (error, f"{name} on {grid}", plan)
    ranked = sorted(entries.values(), key=lambda e: e[0])
    return [(name, plan) for _, name, plan in ranked]


def _descend(
    train: Search, table: Table, hard: Tensor, updates: int, batch: int, seed: int, peak: float = 3e-3
) -> "Sequence[Plan] | Any":
    """Plans along a descent from `table`: every so many updates the current one and the running average."""
    process, n = table.process, len(table.times)
    following = torch.cat([table.times[1:], torch.zeros(1, dtype=torch.float64)])
    size = torch.sqrt(process.alpha(following) ** 2 + process.sigma(following) ** 2)
    # a unit of a weight moves its state by about one standard deviation
    unit = size[:, None] * torch.tril(torch.ones(n, 1 + n, dtype=torch.float64), diagonal=1)
    unit[:, 0] /= process.start(torch.ones(())).item()
    place = process.logsnr(table.times[1:]).clamp_min(FAINT)
    moved, shift = (torch.zeros_like(v).requires_grad_() for v in (table.weights, place))
    optimiser = torch.optim.Adam([{"params": [shift], "scale": 4.0}, {"params": [moved], "scale": 1.0}], betas=(0.9, 0.98))
    average = [moved.detach().clone(), shift.detach().clone()]
    chance = 0.5 / len(hard) + 0.5 * (hard + 1e-12).sqrt() / (hard + 1e-12).sqrt().sum()
    draw = torch.Generator().manual_seed(seed)
    for k in range(updates):
        for group in optimiser.param_groups:
            group["lr"] = peak * group["scale"] * min(1.0, (k + 1) / 20) * (1 - k / updates)
        rows = torch.multinomial(chance, batch, replacement=True, generator=draw)
        weight = (1 / (len(hard) * chance[rows])).to(train.start)
        power = 1.3 + 0.7 * k / updates  # from the typical error, whose gradient is smooth, to the RMS
        plan = table.plan(list(process.time(place + shift)), table.weights + moved * unit, {}, keep=True)
        error = train.errors(plan, rows, gradient=True) + 1e-10
        loss = (weight * error ** (power / 2)).mean() ** (1 / power)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([moved, shift], 1.0)
        if not all(bool(torch.isfinite(p.grad).all()) for p in (moved, shift) if p.grad is not None):
            return
        optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(average, (moved, shift), strict=True):
                slow.lerp_(fast, 0.04)
            if (k + 1) % _EVERY == 0:
                for m, s in ((moved, shift), (average[0], average[1])):
                    yield table.plan(list(process.time(place + s)), table.weights + m * unit, {})
