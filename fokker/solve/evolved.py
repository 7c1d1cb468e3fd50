"""Schedules that evolve: for a metric that only ranks samples, and has no gradient to follow.

A candidate says where the run begins, where it stops on its way, at which shifted time the model is asked, and how it moves:
by a step rule each (order, prediction, estimator, corrector), or with heavy-ball momentum of some history and strength. It is
the joint space of AutoDiffusion (times), USF / S3 (rules), the time-shift sampler (shifts) and GHVB (momentum); a predictor of
ranks says which proposals are worth a run.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.plan import Plan
from fokker.solve.pndm import Momentum
from fokker.solve.pool import Pool
from fokker.solve.search import Random, Space, evolve
from fokker.solve.table import FAINT, Table, finest, logsnr
from fokker.solve.unified import (
    ESTIMATORS,
    PREDICTIONS,
    RESOLUTION,
    ExponentialMultistep,
    StepRule,
    _constant,
    _ordered,
    _rule,
)

GENERATION = 40  # candidates
JUDGED = 12  # the best of a search, which meet other noises
SHIFT = 0.02  # the unit of a time shift, in log-SNR
FURTHEST = 50  # units
LATEST = 300  # places of RESOLUTION at which a run may begin


class Gene(NamedTuple):
    """`momentum` is (history, strength in tenths), (0, 0) for step rules; `places` holds the start and the stops."""

    momentum: tuple[int, int]
    places: tuple[int, ...]
    shifts: tuple[int, ...]
    rules: tuple[tuple[int, int, int, int], ...]


class _LateError(Exception):
    pass


def search(
    train: Pool,
    nfe: int,
    end: float | None,
    metric: Callable[[Tensor], float],
    judged: Callable[[str, Plan], float],
    generations: int,
    seed: int,
    late: Callable[[], bool],
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Minimise `metric` of the end points over schedules with `nfe` evaluations; the best of them go to `judged`.

    `end` is the time to end at, None for x_0. Returns whether `late` said that time had run out. Reference: Li et al. 2023,
    arXiv 2309.10438; Liu et al. 2023, arXiv 2312.07243; Li et al. 2024, arXiv 2305.15583; Wizadwongsa et al. 2024, arXiv
    2307.11118.
    """
    process = train.denoiser.process
    known: dict[Gene, tuple[float, Table]] = {}

    def fitness(gene: Gene) -> float:
        if late():
            raise _LateError
        try:
            table = schedule(gene, train, end)
        except FokkerError:
            return float("inf")
        value = metric(train.end(table.plan()))
        known[gene] = (value, table)
        return value

    plain = (0,) * nfe
    first = [Gene((0, 0), (0, *places), plain, rules) for places, rules in _constant(process, nfe)]
    first += [Gene((2, 8), gene.places, plain, gene.rules) for gene in first[::6]]
    budget = len(first) + GENERATION * generations
    try:
        evolve(
            _space(nfe), fitness, budget, seed, first, len(first) + GENERATION // 2, parents=12, mutated=0.65, crossed=0.3,
            proposals=4, progress=progress,
        )  # fmt: skip
        ran_out = False
    except _LateError:
        ran_out = True
    for _, table in sorted(known.values(), key=lambda entry: entry[0])[:JUDGED]:
        judged(table.name, table.plan())
    return ran_out


def schedule(gene: Gene, train: Pool, end: float | None) -> Table:
    """The table of a candidate: its places lie between the ends of the process, equal steps in log-SNR."""
    process = train.denoiser.process
    high, low = max(float(process.logsnr(1.0)), FAINT), finest(process)
    level = torch.tensor([high + (low - high) * k / RESOLUTION for k in gene.places], dtype=torch.float64)
    times: list[float] = process.time(level).tolist()
    if gene.places[0] == 0:
        times[0] = 1.0
    history, strength = gene.momentum
    solver = Momentum(history, strength / 10) if history else ExponentialMultistep(
        tuple(StepRule(o, PREDICTIONS[p], ESTIMATORS[e], bool(c)) for o, p, e, c in gene.rules)
    )  # fmt: skip
    grid = Times(values=[*times, 0.0 if end is None else end], to_x0=end is None)
    table = Table.of(solver.plan(process, grid), "evolved")
    moved = (logsnr(table) + SHIFT * torch.tensor(gene.shifts, dtype=torch.float64)).clamp(FAINT, finest(process))
    asked = torch.where(torch.tensor(gene.shifts) == 0, table.times, process.time(moved))
    return Table(process, asked, table.weights, table.end, table.name)


def _space(nfe: int) -> Space[Gene]:
    def momentum(draw: Random) -> tuple[int, int]:
        return (int(draw.integers(1, 5)), int(draw.integers(2, 11))) if draw.random() < 0.3 else (0, 0)

    def stops(begin: int, rest: list[int]) -> tuple[int, ...]:
        begin = min(max(begin, 0), LATEST)
        return (begin, *_ordered([max(k, begin + 1 + i) for i, k in enumerate(sorted(rest))]))

    def random(draw: Random) -> Gene:
        begin = int(draw.integers(0, LATEST)) if draw.random() < 0.5 else 0
        rest = [int(k) for k in draw.integers(begin + 1, RESOLUTION, nfe - 1)]
        shifts = tuple(round(draw.normal(0, 5)) if draw.random() < 0.3 else 0 for _ in range(nfe))
        return Gene(momentum(draw), stops(begin, rest), shifts, tuple(_rule(draw) for _ in range(nfe)))

    def mutate(gene: Gene, draw: Random) -> Gene:
        chance = 1.5 / (2 * nfe)
        width = RESOLUTION * draw.choice([0.005, 0.02, 0.06])
        begin, *rest = (k + round(draw.normal(0, width)) if draw.random() < 2 * chance else k for k in gene.places)
        shifts = tuple(
            min(max(s + round(draw.normal(0, 6)), -FURTHEST), FURTHEST) if draw.random() < chance else s for s in gene.shifts
        )
        rules = list(gene.rules)
        for i, rule in enumerate(rules):
            if draw.random() < chance:
                # one decision at a time
                which, new = int(draw.integers(4)), _rule(draw)
                rules[i] = (*rule[:which], new[which], *rule[which + 1 :])  # type: ignore[assignment]
        moved = momentum(draw) if draw.random() < 0.15 else gene.momentum
        return Gene(moved, stops(begin, rest), shifts, tuple(rules))

    def cross(a: Gene, b: Gene, draw: Random) -> Gene:
        begin, *rest = (x if draw.random() < 0.5 else y for x, y in zip(a.places, b.places, strict=True))
        shifts = tuple(x if draw.random() < 0.5 else y for x, y in zip(a.shifts, b.shifts, strict=True))
        rules = tuple(x if draw.random() < 0.5 else y for x, y in zip(a.rules, b.rules, strict=True))
        return Gene(a.momentum, stops(begin, rest), shifts, rules)

    def features(gene: Gene) -> list[float]:
        return [
            *(k / RESOLUTION for k in gene.places),
            *(s / FURTHEST for s in gene.shifts),
            float(gene.momentum[0] > 0),
            gene.momentum[1] / 10,
            *(float(v) for rule in gene.rules for v in rule),
        ]

    return Space(random, mutate, cross, features)
