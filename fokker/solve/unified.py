"""USF: one exponential multistep solver whose every step has its own order, prediction, estimator and corrector."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.errors import FokkerError, unknown
from fokker.grids import LogSNR, Quadratic, Times, Uniform
from fokker.loop import sample
from fokker.plan import Draft, Node, Plan, Term, pairs
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.onestep import transition
from fokker.solve.search import Evolution, Random, Space, evolve

PREDICTIONS, ESTIMATORS = ("data", "noise"), ("full", "low")


@dataclass(frozen=True)
class StepRule:
    """What one step does: `order` 1 to 4; `prediction` "data" or "noise"; `estimator` "full" (all derivatives from as many
    points as the order) or "low" (the first from two points); `corrector` does the step again once its end is known."""

    order: int = 2
    prediction: str = "data"
    estimator: str = "full"
    corrector: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and 1 <= self.order <= 4):
            raise FokkerError(f"order={self.order} is not accepted; a step has order 1 to 4")
        for value, known in ((self.prediction, PREDICTIONS), (self.estimator, ESTIMATORS)):
            if value not in known:
                raise unknown("prediction or estimator", value, known)


@dataclass(frozen=True)
class ExponentialMultistep(Solver):
    """The unified sampling framework: step i follows `rules[i]`, and steps beyond the last rule follow the last.

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t,

        data   x_s = (sigma_s / sigma_t) x + sigma_s e^lambda_t sum_k I_k D^(k),   I_0 = e^h - 1, I_k = e^h h^k / k! - I_(k-1)
        noise  x_s = (alpha_s / alpha_t) x - alpha_s e^-lambda_t sum_k J_k E^(k),  J_0 = 1 - e^-h, J_k = J_(k-1) - e^-h h^k / k!

    with derivatives in lambda from the last beliefs. DDIM is order 1 throughout, DPM-Solver++ orders 2 and 3 in data.

    Reference: Liu et al. 2023, arXiv 2312.07243.
    """

    order: ClassVar[int] = 2
    rules: tuple[StepRule, ...] = (StepRule(),)

    def __post_init__(self) -> None:
        if not self.rules or not all(isinstance(rule, StepRule) for rule in self.rules):
            raise FokkerError("rules is a tuple of StepRule, one for each step; give at least one")

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        # (node, D, E): what all parametrisations share, so that a later step may use another
        past: list[tuple[Node, Term, Term]] = []
        redo: tuple[Term, StepRule] | None = None
        for i, (t, s) in enumerate(pairs(nodes)):
            rule = self.rules[min(i, len(self.rules) - 1)]
            D = draft.ask(x, t)
            here = (t, D, (x - t.alpha * D) / t.sigma)
            if redo is not None and past:
                x = draft.keep(_step(redo[0], past, t, redo[1], here))
            if s.data:
                return D
            if not bool(torch.isfinite(t.lam)):
                x = transition(draft, x, D, t, s)
                continue
            past = [*past, here][-4:]
            redo = (x, rule) if rule.corrector else None
            x = _step(x, past, s, rule)
        return x


def _step(
    x: Term, past: list[tuple[Node, Term, Term]], s: Node, rule: StepRule, ahead: tuple[Node, Term, Term] | None = None
) -> Term:
    """The step from the last of `past` to s; with what is known at s (`ahead`) it is a correction."""
    t = past[-1][0]
    data = rule.prediction == "data"
    points = [(node.lam - t.lam, D if data else E) for node, D, E in past]
    value = points[-1][1]
    before = points[-rule.order : -1][::-1]
    others = ([(ahead[0].lam - t.lam, ahead[1] if data else ahead[2])] if ahead else []) + before
    h = s.lam - t.lam
    # one derivative a point
    weights = _derivatives([float(r) for r, _ in others], rule.estimator)
    total = _integral(0, h, data) * value
    for k, row in enumerate(weights, start=1):
        for c, (_, other) in zip(row, others, strict=True):
            if c:
                total = total + (_integral(k, h, data) * c) * (other - value)
    if data:
        return (s.sigma / t.sigma) * x + (s.sigma * torch.exp(t.lam)) * total
    return (s.alpha / t.alpha) * x - (s.alpha * torch.exp(-t.lam)) * total


def _derivatives(distances: list[float], estimator: str) -> list[list[float]]:
    """Row k - 1: the weights of (value at distance r - value here) in the k-th derivative."""
    m = len(distances)
    if not m:
        return []
    powers = torch.tensor([[r**k / math.factorial(k) for k in range(1, m + 1)] for r in distances], dtype=torch.float64)
    rows: list[list[float]] = torch.linalg.inv(powers).tolist()
    if estimator == "low":
        rows[0] = [1 / distances[0], *[0.0] * (m - 1)]
    return rows


def _integral(k: int, h: Tensor, data: bool) -> Tensor:
    """I_k or J_k: the integral from 0 to h of e^v v^k / k! (data) or e^-v v^k / k! (noise); the recurrence cancels near 0."""
    sign = 1.0 if data else -1.0
    if float(h.abs().max()) < 1.0:
        terms = (sign**j / (math.factorial(k) * math.factorial(j) * float(k + 1 + j)) * h ** (k + 1 + j) for j in range(20))
        return sum(terms, torch.zeros_like(h))
    out = torch.expm1(sign * h) * sign
    for j in range(1, k + 1):
        part = torch.exp(sign * h) * h**j / math.factorial(j)
        out = part - out if data else out - part
    return out


Gene = tuple[tuple[int, ...], tuple[tuple[int, int, int, int], ...]]  # times in units of RESOLUTION, then one rule a step
RESOLUTION = 1000


def schedule(gene: Gene, process: Process) -> Plan:
    """The plan of a candidate: its times are places between the ends of the process, equal steps in lambda."""
    places, rules = gene
    high, low = (float(process.logsnr(t)) for t in (1.0, process.end))
    level = torch.tensor([max(high, -14.0) + (low - max(high, -14.0)) * k / RESOLUTION for k in places], dtype=torch.float64)
    times = [1.0, *process.time(level).tolist(), process.end]
    made = tuple(StepRule(o, PREDICTIONS[p], ESTIMATORS[e], bool(c)) for o, p, e, c in rules)
    return ExponentialMultistep(made).plan(process, Times(values=times))


def search_schedule(
    denoiser: Denoiser,
    start: Tensor,
    metric: Callable[[Tensor], float],
    steps: int,
    budget: int = 600,
    seed: int = 0,
    proposals: int = 6,
    progress: Callable[[int, int], None] | None = None,
    **cond: Tensor,
) -> tuple[Plan, Evolution[Gene]]:
    """S3: the best times and rules for `steps` evaluations, and the whole search.

    Every candidate runs once from the same states `start` (n, ...) at t = 1, and `metric` of what it gives is minimised with
    at most `budget` runs. Each generation proposes `proposals` times as many candidates as it can afford, and a predictor
    fitted to the order of those known picks among them. All constant schedules on the uniform, quadratic and log-SNR grids
    are among the first. Judge the result on other noises.

    Raises FokkerError for fewer than one step or a budget below the first candidates'. Reference: Liu et al. 2023, arXiv
    2312.07243 (whose code is not public: sizes and encodings here are ours).
    """
    if steps < 1:
        raise FokkerError(f"steps={steps} is not accepted; use at least one")
    process = denoiser.process

    def fitness(gene: Gene) -> float:
        try:
            plan = schedule(gene, process)
        except FokkerError:
            return float("inf")
        x0 = sample(denoiser, start, plan, check=False, **cond)
        return metric(x0) if bool(torch.isfinite(x0).all()) else float("inf")

    first = _constant(process, steps)
    found = evolve(
        _space(steps), fitness, budget, seed, first, len(first) + 22, parents=12, mutated=0.65, crossed=0.3,
        proposals=proposals, progress=progress,
    )
    return schedule(found.best, process), found


def _constant(process: Process, steps: int) -> list[Gene]:
    """Orders 1 to 3 in data and noise on three standard grids."""
    high, low = max(float(process.logsnr(1.0)), -14.0), float(process.logsnr(process.end))
    out: list[Gene] = []
    for grid in (Uniform(steps), Quadratic(steps), LogSNR(steps)):
        level = process.logsnr(grid.times(process)[1:-1])
        places = _ordered([round((float(v) - high) / (low - high) * RESOLUTION) for v in level])
        out += [(places, ((order, p, 0, 0),) * steps) for order in (1, 2, 3) for p in (0, 1)]
    return list(dict.fromkeys(out))


def _space(steps: int) -> Space[Gene]:
    def random(draw: Random) -> Gene:
        places = _ordered([int(k) for k in draw.integers(1, RESOLUTION, steps - 1)])
        return places, tuple(_rule(draw) for _ in range(steps))

    def mutate(gene: Gene, draw: Random) -> Gene:
        places, rules = list(gene[0]), list(gene[1])
        chance = 1.5 / (2 * steps)
        width = RESOLUTION * draw.choice([0.005, 0.02, 0.06])
        places = [k + round(draw.normal(0, width)) if draw.random() < 2 * chance else k for k in places]
        for i, rule in enumerate(rules):
            if draw.random() < chance:
                new = list(_rule(draw))
                # one decision at a time
                which = int(draw.integers(4))
                rules[i] = (*rule[:which], new[which], *rule[which + 1 :])  # type: ignore[assignment]
        return _ordered(places), tuple(rules)

    def cross(a: Gene, b: Gene, draw: Random) -> Gene:
        places = [x if draw.random() < 0.5 else y for x, y in zip(a[0], b[0], strict=True)]
        rules = tuple(x if draw.random() < 0.5 else y for x, y in zip(a[1], b[1], strict=True))
        return _ordered(places), rules

    def features(gene: Gene) -> Sequence[float]:
        return [k / RESOLUTION for k in gene[0]] + [float(v) for rule in gene[1] for v in rule]

    return Space(random, mutate, cross, features)


def _rule(draw: Random) -> tuple[int, int, int, int]:
    return int(draw.integers(1, 5)), int(draw.integers(2)), int(draw.integers(2)), int(draw.integers(2))


def _ordered(places: Sequence[int]) -> tuple[int, ...]:
    """Strictly increasing, strictly inside the range: what repeats moves up, and down from the top where there is no room."""
    out: list[int] = []
    for k in sorted(places):
        out.append(max(min(max(k, 1), RESOLUTION - 1), out[-1] + 1 if out else 1))
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], RESOLUTION - len(out) + i)
    return tuple(out)
