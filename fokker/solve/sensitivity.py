"""How the end points of a table's runs answer to its weights and times.

The derivatives of one sample's end point are a matrix, moves x numbers, of which a least-squares step needs only products. So
they are taken in a few random directions of the end point, drawn anew for each sample: one sweep backwards through the run
gives a direction's derivatives in all moves, where a sweep forwards gives one move's. A model that cannot be differentiated
is asked again with every move instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker import batches
from fokker.denoiser import Denoiser, Run
from fokker.loop import run
from fokker.solve.pool import Pool
from fokker.solve.table import Moves, Table, logsnr

FULL = 3  # equations for each move
HELD = 2**16  # numbers of the states whose evaluation is differentiated at once
DIFFERENCES = 2**22  # numbers of the derivatives that are taken by differences at once


@dataclass(frozen=True)
class Equations:
    """One sample's linear equations a row: rows (directions, n, moves) . step = -residuals (directions, n).

    `error` (n,) is the squared norm of the whole residual, float64 on the CPU.
    """

    rows: Tensor
    residuals: Tensor
    error: Tensor


def differentiable(pool: Pool) -> int:
    """How many samples' evaluations can be differentiated in the state at once: 0 where the model does not let them."""
    one, most = pool.part(slice(0, 1)), max(1, min(512, HELD // pool.start[0].numel()))
    carried = False

    def call() -> None:
        nonlocal carried
        bound = one.denoiser.bind(Run(1, rows=1))
        with torch.enable_grad():
            x = one.start.detach().requires_grad_()
            try:
                belief: Tensor = bound(x, 0.5, **one.cond)
                torch.autograd.grad(belief, x, torch.ones_like(belief))
            except RuntimeError as problem:
                if batches.out_of_memory(problem):
                    raise
                return
        carried = True

    fit = batches.size(call, min(most, pool.chunk), one.start.device)
    return fit if carried else 0


def directions(nfe: int, samples: int, numbers: int) -> int:
    """How many directions of each sample's end point are taken: all samples' together are several times the moves."""
    moves = (nfe + 1) * (nfe + 2) // 2 + nfe
    return min(numbers, max(2, -(-FULL * moves // samples)))


def cost(nfe: int, samples: int, numbers: int, backwards: bool) -> int:
    """Evaluations of one sample that the equations of `samples` take, about, backwards or by differences."""
    if backwards:
        # forwards, once more with a graph, once later, and back in every direction
        return samples * nfe * (3 + directions(nfe, samples, numbers))
    return samples * (sum((k + 1) * (nfe - k) for k in range(nfe)) + nfe * (nfe + 1) // 2)


def equations(
    table: Table, moves: Moves, pool: Pool, draw: torch.Generator, at_once: int
) -> Iterator[tuple[Equations, slice]]:
    """The equations of a pool's samples and which they are of: backwards for `at_once` samples, by differences for 0.

    Exact where a sample has no more numbers than it gets directions.
    """
    numbers, n = pool.start[0].numel(), len(pool)
    if at_once == 0:
        size = min(pool.chunk, max(16, DIFFERENCES // (numbers * len(moves.units))))
        for i in range(0, n, size):
            part = slice(i, min(i + size, n))
            yield _differences(table, moves, pool.part(part)), part
        return
    many = directions(len(table), n, numbers)
    parts = [_backwards(table, moves, pool.part(slice(i, i + at_once)), many, draw) for i in range(0, n, at_once)]
    rows, residuals = torch.cat([p.rows for p in parts], 1), torch.cat([p.residuals for p in parts], 1)
    yield Equations(rows, residuals, torch.cat([p.error for p in parts])), slice(0, n)


def _forwards(table: Table, pool: Pool) -> tuple[Run, Denoiser, list[Tensor], list[Tensor]]:
    """The model bound to a run, the states, and what they are made of: the start and the beliefs."""
    context = Run(len(pool), rows=len(table) + 1)
    bound = pool.denoiser.bind(context)
    sources, states = [pool.start], []
    for k, weights in enumerate(table.weights.tolist()):
        states.append(sum((c * s for c, s in zip(weights[1 : k + 1], sources[1:], strict=True)), weights[0] * sources[0]))
        if k < len(table):
            context.row, context.t = k, float(table.times[k])
            with torch.no_grad():
                sources.append(bound(states[k], context.t, **pool.cond))
    return context, bound, states, sources


def _backwards(table: Table, moves: Moves, pool: Pool, many: int, draw: torch.Generator) -> Equations:
    n, weights = len(table), table.weights.tolist()
    context, bound, states, sources = _forwards(table, pool)
    residual = states[-1] - pool.truth
    along = _along(residual, many, draw)
    # reach[k] is how the end point, in each direction, answers to state k, and slower[k] to the log-SNR of its time
    reach: list[Tensor] = [along]
    slower: list[Tensor] = []
    times, later, h = *_nearby(table, pool), _step(pool)
    for k in reversed(range(n)):
        on_belief = sum((row[1 + k] * r for row, r in zip(weights[k + 1 :], reach, strict=True)), torch.zeros_like(along))
        context.row, context.t = k, times[k]
        with torch.enable_grad():
            x = states[k].detach().requires_grad_()
            belief = bound(x, times[k], **pool.cond)
            last = len(along) - 1
            reach.insert(0, torch.stack([torch.autograd.grad(belief, x, v, i < last)[0] for i, v in enumerate(on_belief)]))
        context.t = later[k]
        with torch.no_grad():
            slower.insert(0, _dot(on_belief, (bound(states[k], later[k], **pool.cond) - sources[1 + k]) / h))
    units = moves.units.tolist()
    rows = [unit * _dot(reach[k], sources[j]) for (k, j), unit in zip(moves.places, units, strict=False)]
    return Equations(torch.stack(rows + slower, -1), _dot(along, residual), _square(residual))


def _along(residual: Tensor, many: int, draw: torch.Generator) -> Tensor:
    """Orthogonal directions (many, n, ...) whose outer products are the identity on average, or all there are."""
    n, numbers = len(residual), residual[0].numel()
    if many == numbers:
        q = torch.eye(numbers, dtype=residual.dtype)[:, None].expand(-1, n, -1)
    else:
        drawn = torch.randn(n, numbers, many, generator=draw, dtype=torch.float64)
        q = torch.linalg.qr(drawn)[0].permute(2, 0, 1) * (numbers / many) ** 0.5
    return q.reshape(many, *residual.shape).to(residual)


def _differences(table: Table, moves: Moves, pool: Pool) -> Equations:
    _, _, states, sources = _forwards(table, pool)
    times, later, h = *_nearby(table, pool), _step(pool)

    def end(k: int, x: Tensor, t: float) -> Tensor:
        return run(pool.denoiser, [*sources[: k + 1], x], table.tail(k, t), check=False, **pool.cond).x0

    out, rows = states[-1], []
    for (k, j), unit in zip(moves.places, moves.units.tolist(), strict=False):
        if k == len(table):
            rows.append(unit * sources[j])
        else:
            rows.append((end(k, states[k] + h * unit * sources[j], times[k]) - out) / h)
    rows += [(end(k, states[k], later[k]) - out) / h for k in range(len(table))]
    residual = out - pool.truth
    return Equations(torch.stack(rows).flatten(2).permute(2, 1, 0), residual.flatten(1).T, _square(residual))


def _step(pool: Pool) -> float:
    return 1e-5 if pool.start.dtype == torch.float64 else 3e-3


def _nearby(table: Table, pool: Pool) -> tuple[list[float], list[float]]:
    """The times, and those one step of differences later; a unit of time is 2 in log-SNR."""
    return table.times.tolist(), table.process.time(logsnr(table) + 2 * _step(pool)).tolist()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (directions, n) of (directions, n, ...) with (n, ...)."""
    out: Tensor = (a * b).flatten(2).sum(2)
    return out


def _square(residual: Tensor) -> Tensor:
    return residual.flatten(1).square().sum(1).to("cpu", torch.float64)
