"""Gauss-Newton on a plan's table: the way from any solver to the best one for a model.

The end point of a run is a smooth function of some ten to a hundred numbers, and products with its derivatives in all of them
cost few evaluations. So the least-squares step is affordable where a gradient step would have to be small, and a handful of
them replaces hundreds.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fokker.solve import sensitivity
from fokker.solve.pool import Pool
from fokker.solve.table import Moves, Table

PATIENCE = 3  # steps in a row that may bring nothing
TINY = 1e-12  # relative squared error below which all end points count as equally good


def descend(
    table: Table, pool: Pool, steps: int, batch: int, seed: int, power: tuple[float, float] = (1.0, 1.6),
    at_once: int | None = None,
) -> Iterator[Table]:  # fmt: skip
    """Tables along a Levenberg-Marquardt descent of sum (error^2)^(p/2) over `pool`, one a step.

    `power` p grows from the first to the second number, from the typical error, which is smooth, to the mean square, which
    the few samples dominate that end in another mode. Derivatives are taken on `batch` samples, drawn more often where the
    error is large, and a step is chosen among several dampings on the same; it is taken if it brings the whole pool down.
    `at_once` samples are differentiated at once, with 0 by differences; None is what the model allows.
    """
    at_once = sensitivity.differentiable(pool) if at_once is None else at_once
    draw = torch.Generator().manual_seed(seed)
    damping, missed = 1e-2, 0
    moves = Moves.of(table)
    error = pool.errors(table.plan())
    whole = torch.ones(len(pool), dtype=torch.float64) if pool.weight is None else pool.weight
    for k in range(steps):
        p = power[0] + (power[1] - power[0]) * k / max(1, steps - 1)
        rows, weight = _drawn(error, whole, batch, draw)
        part = pool.part(rows)
        normal, slope = _equations(table, moves, part, weight, p, draw, at_once)
        if not bool(torch.isfinite(normal).all() and torch.isfinite(slope).all()):
            return
        found: tuple[float, float, Table, Tensor] | None = None
        for d in (30 * damping, 3 * damping, 0.3 * damping, 0.03 * damping):
            trial = moves.apply(table, _solve(normal, slope, d))
            reached = part.errors(trial.plan())
            new = _value(reached, p, weight)
            if found is None or new < found[0]:
                found = (new, d, trial, reached)
        assert found is not None
        reached = found[3] if len(part) == len(pool) else pool.errors(found[2].plan())
        if _value(reached, p, whole) < _value(error, p, whole):
            damping, table, error, missed = min(max(found[1], 1e-7), 1e3), found[2], reached, 0
        elif missed == PATIENCE:
            return
        else:
            damping, missed = 30 * damping, missed + 1
        yield table


def _drawn(error: Tensor, weight: Tensor, many: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of a pool, half of them by their weight and half where the errors are, and the weights that they then stand for."""
    if many >= len(error):
        return torch.arange(len(error)), weight
    by_error = weight * error.sqrt()
    chance = 0.5 * weight / weight.sum() + 0.5 * by_error / by_error.sum().clamp_min(1e-30)
    rows = torch.multinomial(chance, many, replacement=False, generator=draw)
    return rows, weight[rows] / chance[rows]


def cost(nfe: int, pool: int, batch: int, numbers: int, backwards: bool) -> int:
    """Evaluations of one sample that a step of the descent takes, about; a sample has so many `numbers`."""
    return sensitivity.cost(nfe, min(batch, pool), numbers, backwards) + nfe * (pool + 4 * min(batch, pool))


def _value(error: Tensor, p: float, weight: Tensor) -> float:
    return float((weight * (error + TINY) ** (p / 2)).sum())


def _solve(normal: Tensor, slope: Tensor, damping: float) -> Tensor:
    diagonal = normal.diagonal()
    damped = normal + torch.diag(damping * diagonal + 1e-12 * diagonal.max() + 1e-300)
    move: Tensor = -torch.linalg.lstsq(damped, slope[:, None]).solution[:, 0]
    return move


def _equations(
    table: Table, moves: Moves, pool: Pool, weight: Tensor, p: float, draw: torch.Generator, at_once: int
) -> tuple[Tensor, Tensor]:
    """J^T W J and J^T W r of the end points' residuals in all moves, W from the loss of power p and the samples' weights."""
    many = len(moves.units)
    normal = torch.zeros(many, many, dtype=torch.float64)
    slope = torch.zeros(many, dtype=torch.float64)
    for part, rows in sensitivity.equations(table, moves, pool, draw, at_once):
        error = part.error / pool.scale + TINY
        reach = part.rows.square().sum((0, 2)).to("cpu", torch.float64) / pool.scale
        w = weight[rows] * error ** (p / 2 - 1)
        # near a boundary between modes a derivative explodes, and says nothing about a step of finite length
        w = torch.where(torch.isfinite(reach) & torch.isfinite(error), w / (1 + reach / (30 * reach.nanmedian())), 0.0)
        good = w > 0
        left, right, w = part.rows[:, good], part.residuals[:, good], w[good].to(part.rows)
        weighted = (left * w[None, :, None]).flatten(0, 1)
        normal += (weighted.T @ left.flatten(0, 1)).to("cpu", torch.float64)
        slope += (weighted.T @ right.flatten()).to("cpu", torch.float64)
    return normal, slope
