"""Gauss-Newton on a plan's table: the way from any solver to the best one for a model, without gradients of the model.

The end point of a run is a smooth function of some ten to a hundred numbers, and its derivatives in all of them cost few
evaluations: one run with one number changed, from the row that it changes on. So the least-squares step is affordable where a
gradient step would have to be small, and a handful of them replaces hundreds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.loop import run
from fokker.plan import Plan
from fokker.solve.table import Moves, Table, logsnr

TINY = 1e-12  # relative squared error below which all end points count as equally good
WORST = 1e6  # the squared error that stands for a run that left the finite numbers


@dataclass
class Pool:
    """Starts (n, ...), their true end points, and conditions: what errors are measured on.

    `weight` (n,), where given, says for how many noises each of these stands; `scale` is the sum of squares of an end point,
    on average.
    """

    denoiser: Denoiser
    start: Tensor
    truth: Tensor
    cond: dict[str, Any] = field(default_factory=dict)
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        self.scale = float(self.mean(self.truth.flatten(1).square().sum(1).to("cpu", torch.float64)))

    def mean(self, v: Tensor) -> Tensor:
        """The mean of v (n,) over the noises that the samples stand for."""
        return v.mean() if self.weight is None else (self.weight * v).sum() / self.weight.sum()

    def __len__(self) -> int:
        return len(self.start)

    def part(self, rows: Tensor | slice) -> "Pool":
        """Some of the samples, with errors relative to the same scale."""
        cond = {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        out = Pool(self.denoiser, self.start[rows], self.truth[rows], cond, None if self.weight is None else self.weight[rows])
        out.scale = self.scale
        return out

    def joined(self, other: "Pool") -> "Pool":
        """These samples and others, for all the noises that they stand for together."""
        cond = {k: torch.cat([v, other.cond[k]]) if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        weights = [torch.ones(len(p), dtype=torch.float64) if p.weight is None else p.weight for p in (self, other)]
        start, truth = (torch.cat(pair) for pair in ((self.start, other.start), (self.truth, other.truth)))
        return Pool(self.denoiser, start, truth, cond, torch.cat(weights))

    def end(self, plan: Plan) -> Tensor:
        """The end points of a plan, finite or not."""
        parts = [self.part(slice(i, i + CHUNK)) for i in range(0, len(self), CHUNK)]
        return torch.cat([run(self.denoiser, p.start, plan, check=False, **p.cond).x0 for p in parts])

    def errors(self, plan: Plan) -> Tensor:
        """The squared distance of each end point to the true one, over the mean square of these, (n,) float64 on the CPU."""
        each = (self.end(plan) - self.truth).flatten(1).to(torch.float64).square().sum(1).cpu() / self.scale
        return torch.nan_to_num(each, nan=WORST, posinf=WORST).clamp_max(WORST)

    def rms(self, plan: Plan) -> float:
        """The relative root mean square of the errors."""
        return float(self.mean(self.errors(plan)).sqrt())


CHUNK = 1024


def descend(
    table: Table, pool: Pool, steps: int, batch: int, seed: int, power: tuple[float, float] = (1.3, 2.0)
) -> Iterator[Table]:
    """Tables along a Levenberg-Marquardt descent of sum (error^2)^(p/2) over `pool`, one a step.

    `power` p grows from the first to the second number, from the typical error, which is smooth, to the mean square, which
    the few samples dominate that end in another mode. Derivatives are taken on `batch` samples, drawn more often where the
    error is large, and a step is chosen among several dampings on twice as many, drawn likewise; it is taken if it brings
    the whole pool down.
    """
    draw = torch.Generator().manual_seed(seed)
    damping = 1e-2
    moves = Moves.of(table)
    error = pool.errors(table.plan())
    whole = torch.ones(len(pool), dtype=torch.float64) if pool.weight is None else pool.weight
    for k in range(steps):
        p = power[0] + (power[1] - power[0]) * k / max(1, steps - 1)
        rows, weight = _drawn(error, whole, 2 * batch, draw)
        few = torch.randperm(len(rows), generator=draw)[:batch]
        normal, slope = _equations(table, moves, pool.part(rows[few]), weight[few], p)
        if not bool(torch.isfinite(normal).all() and torch.isfinite(slope).all()):
            return
        judges = pool.part(rows)
        found: tuple[float, float, Table] | None = None
        for d in (30 * damping, 3 * damping, 0.3 * damping, 0.03 * damping):
            trial = moves.apply(table, _solve(normal, slope, d))
            new = _value(judges.errors(trial.plan()), p, weight)
            if found is None or new < found[0]:
                found = (new, d, trial)
        assert found is not None
        reached = pool.errors(found[2].plan())
        if _value(reached, p, whole) < _value(error, p, whole):
            damping, table, error = min(max(found[1], 1e-7), 1e3), found[2], reached
        elif damping > 1e4:
            return
        else:
            damping *= 100
        yield table


def _drawn(error: Tensor, weight: Tensor, many: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of a pool, half of them by their weight and half where the errors are, and the weights that they then stand for."""
    if many >= len(error):
        return torch.arange(len(error)), weight
    by_error = weight * error.sqrt()
    chance = 0.5 * weight / weight.sum() + 0.5 * by_error / by_error.sum().clamp_min(1e-30)
    rows = torch.multinomial(chance, many, replacement=False, generator=draw)
    return rows, weight[rows] / chance[rows]


def cost(nfe: int, pool: int, batch: int) -> int:
    """Evaluations of one sample that a step of the descent takes, about."""
    places = sum((k + 1) * (nfe - k) for k in range(nfe)) + nfe * (nfe + 1) // 2
    return places * min(batch, pool) + nfe * (pool + 4 * min(2 * batch, pool))


def _value(error: Tensor, p: float, weight: Tensor) -> float:
    return float((weight * (error + TINY) ** (p / 2)).sum())


def _solve(normal: Tensor, slope: Tensor, damping: float) -> Tensor:
    diagonal = normal.diagonal()
    damped = normal + torch.diag(damping * diagonal + 1e-12 * diagonal.max() + 1e-300)
    move: Tensor = -torch.linalg.lstsq(damped, slope[:, None]).solution[:, 0]
    return move


def _equations(table: Table, moves: Moves, pool: Pool, weight: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """J^T W J and J^T W r of the end points' residuals in all moves, W from the loss of power p and the samples' weights."""
    many = len(moves.units)
    normal = torch.zeros(many, many, dtype=torch.float64)
    slope = torch.zeros(many, dtype=torch.float64)
    dim = pool.start[0].numel()
    size = max(16, min(CHUNK, 2**22 // (dim * many)))
    tails = [table.tail(k) for k in range(len(table))]
    h = 1e-5 if pool.start.dtype == torch.float64 else 3e-3
    later = table.process.time(logsnr(table) + 2 * h).tolist()
    moved = [table.tail(k, t) for k, t in enumerate(later)]
    for i in range(0, len(pool), size):
        part = pool.part(slice(i, i + size))
        jacobian, residual = _jacobian(table, moves, part, tails, moved, h)
        error = residual.square().sum(1).to("cpu", torch.float64) / pool.scale + TINY
        reach = jacobian.square().sum((0, 2)).to("cpu", torch.float64) / pool.scale
        w = weight[i : i + size] * error ** (p / 2 - 1)
        # near a boundary between modes a derivative explodes, and says nothing about a step of finite length
        w = torch.where(torch.isfinite(reach) & torch.isfinite(error), w / (1 + reach / (30 * reach.nanmedian())), 0.0)
        good = w > 0
        jacobian, residual, w = jacobian[:, good], residual[good], w[good].to(jacobian)
        weighted = (jacobian * w[None, :, None]).flatten(1)
        normal += (weighted @ jacobian.flatten(1).T).to(torch.float64).cpu()
        slope += (weighted @ residual.flatten()).to(torch.float64).cpu()
    return normal, slope


def _jacobian(
    table: Table, moves: Moves, pool: Pool, tails: list[Plan], moved: list[Plan], h: float
) -> tuple[Tensor, Tensor]:
    """(derivatives of the end points in all moves (moves, n, dim), residuals (n, dim)), by forward differences."""
    states: list[Tensor] = []
    beliefs: list[Tensor] = []

    def look(context: object, x: Tensor, belief: Tensor) -> None:
        states.append(x)
        beliefs.append(belief)

    def end(plan: Plan, k: int, x: Tensor) -> Tensor:
        return run(pool.denoiser, [pool.start, *beliefs[:k], x], plan, check=False, **pool.cond).x0

    out = run(pool.denoiser, pool.start, table.plan(), watch=look, check=False, **pool.cond).x0
    rows = []
    for (k, j), unit in zip(moves.places, moves.units.tolist(), strict=False):
        source = pool.start if j == 0 else beliefs[j - 1]
        if k == len(table):
            rows.append(unit * source)
        else:
            rows.append((end(tails[k], k, states[k] + h * unit * source) - out) / h)
    rows += [(end(moved[k], k, states[k]) - out) / h for k in range(len(table))]
    return torch.stack(rows).flatten(2), (out - pool.truth).flatten(1)
