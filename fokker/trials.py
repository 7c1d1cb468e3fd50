"""Trials of noise: candidates of each sample are run by the one loop, judged by a jury, paid for, and the best is kept.

Candidate k of sample i is sample i + k 2^20 of the seed, noise of the solver included: candidate 0 is what would have been
drawn without a search, and any candidate can be drawn again by its id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError
from fokker.grids import Grid
from fokker.keyed import noise
from fokker.loop import run as run_plan
from fokker.plan import Plan
from fokker.process import as_time
from fokker.solve import Solver
from fokker.verifier import Jury

STRIDE = 1 << 20  # between the ids of the candidates of a sample


@dataclass(frozen=True)
class Found:
    """The best sample of each search, and what it took.

    x0, scores   (n, *shape) and what the verifiers say of it (n, verifiers)
    noise, ids   unit noise and ids with which `seed` gives the same: fk.sample(denoiser, process.start(noise), plan, seed=seed,
                 ids=ids); noise is None where noise was added on the way, as a search over paths does
    nfe          evaluations spent for each returned sample, verdicts at their cost included
    history      scores of all candidates in the order in which they were run, (n, candidates, verifiers)

    Selected samples do not follow the model's law: distances between laws (FID) say nothing about them.
    """

    x0: Tensor
    scores: Tensor
    noise: Tensor | None
    ids: Tensor
    seed: int
    nfe: float
    history: Tensor

    @property
    def score(self) -> Tensor:
        """The first verifier's, (n,)."""
        return self.scores[:, 0]


class Trials:
    """One search: what is asked, what was spent, the best so far. Rows of a batch are candidate by candidate.

    With n samples and c candidates, row k n + i is candidate k of sample i, so that a denoiser which holds something of the
    batch's size (a measurement) is asked about one candidate of all samples at a time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        jury: Jury,
        budget: float,
        plan: Plan,
        shape: Sequence[int],
        ids: Tensor,
        cond: Mapping[str, Cond],
        seed: int = 0,
        batch: int = 1024,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        solver: Solver | None = None,
        grid: Grid | None = None,
    ) -> None:
        if len(ids) < 1 or int(ids.max()) >= STRIDE:
            raise FokkerError(f"a search needs samples with ids below {STRIDE}; their candidates take those above")
        if denoiser.process.tokens or plan.inputs != 1 or isinstance(plan.start, Tensor):
            raise FokkerError("a search over noise needs a plan of one state and one time for all samples, not of tokens")
        self.denoiser, self.jury, self.budget, self.plan = denoiser, jury, float(budget), plan
        self.shape, self.ids, self.cond, self.seed = tuple(shape), ids, dict(cond), seed
        self.batch, self.dtype, self.device, self.solver, self.grid = batch, dtype, device, solver, grid
        self.spent, self.runs = 0.0, 0
        self.x0: Tensor | None = None
        self.eps: Tensor | None = None
        self.names, self.scores = ids, torch.empty(0)
        self.history: list[Tensor] = []

    def affordable(self) -> int:
        """How many more whole runs of each sample the budget allows."""
        if not self.runs:
            return int(self.budget >= self.plan.nfe + self.jury.cost)
        return max(0, int((self.budget - self.spent) * self.runs / self.spent + 1e-9))

    def named(self, first: int, count: int) -> Tensor:
        """The ids of candidates first .. first + count - 1 of every sample, (count * n,)."""
        if (first + count) * STRIDE > 1 << 32:
            raise FokkerError(f"{first + count} candidates of a sample; at most {(1 << 32) // STRIDE} have noise of their own")
        return torch.cat([self.ids + k * STRIDE for k in range(first, first + count)] or [self.ids[:0]])

    def noise(self, first: int, count: int) -> Tensor:
        """The unit noise of candidates, (count * n, *shape)."""
        ids = self.named(first, count)
        shape = (len(ids), *self.shape)
        out: Tensor = self.denoiser.process.sample_noise(shape, self.seed, ids, dtype=self.dtype, device=self.device)
        return out

    def start(self, eps: Tensor) -> Tensor:
        """The states at the plan's first time."""
        y = self.cond.get("y") if self.denoiser.process.anchored else None
        anchor = None if y is None else torch.cat([y] * (len(eps) // len(self.ids)))
        return self.denoiser.process.start(eps, anchor, 1.0 if self.plan.start is None else float(self.plan.start))

    def draw(self, first: int, count: int) -> None:
        """Run and judge independent candidates."""
        if count > 0:
            self.run(self.noise(first, count), self.named(first, count))

    def run(self, eps: Tensor, ids: Tensor) -> None:
        """Run candidates from unit noise (count * n, *shape) and keep the best of each sample."""
        if not self.runs and not self.affordable():
            raise FokkerError(
                f"budget={self.budget:g} is less than one run costs, {self.plan.nfe + self.jury.cost:g} evaluations; raise it"
            )
        states, belief = self.stretch(self.plan, self.start(eps), ids, self.jury.early)
        self.runs += len(eps) // len(self.ids)
        self.keep(states, eps, ids, self.judged(states, belief if self.jury.early is not None else None))

    def stretch(self, plan: Plan, states: Tensor, ids: Tensor, early: float | None = None) -> tuple[Tensor, Tensor]:
        """(end states, beliefs) of a plan: the last beliefs, or with `early` the first at or below that time."""
        n, ends, beliefs = len(self.ids), [], []
        together = max(1, self.batch // n) if self.denoiser.stackable else 1
        for part in range(0, len(states), together * n):
            rows = slice(part, min(part + together * n, len(states)))
            count = (rows.stop - part) // n
            keep = _Belief(early)
            trace = run_plan(
                self.denoiser, states[rows], plan, seed=self.seed, ids=ids[rows], watch=keep, **self.conditions(count)
            )
            self.spent += trace.nfe * count
            ends.append(trace.x0)
            beliefs.append(trace.x0 if keep.found is None else keep.found)
        return torch.cat(ends), torch.cat(beliefs)

    def conditions(self, count: int) -> dict[str, Any]:
        """Those of every sample, for so many candidates of each."""
        return {k: torch.cat([v] * count) if isinstance(v, Tensor) and v.ndim else v for k, v in self.cond.items()}

    def judged(self, x_0: Tensor, belief: Tensor | None = None) -> Tensor:
        """Scores of candidates (count * n, *shape) as (n, count, verifiers)."""
        count = len(x_0) // len(self.ids)
        found = []
        for k in range(0, count, max(1, self.batch // len(self.ids))):
            rows = slice(k * len(self.ids), min(count, k + max(1, self.batch // len(self.ids))) * len(self.ids))
            many = (rows.stop - rows.start) // len(self.ids)
            found.append(self.jury.scores(x_0[rows], self.conditions(many), None if belief is None else belief[rows]))
        self.spent += self.jury.cost * count
        by_candidate: Tensor = torch.cat(found).unflatten(0, (count, len(self.ids)))
        return by_candidate.transpose(0, 1)

    def taken(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """The chosen candidates (n, kept) of rows (count * n, ...), as (kept * n, ...)."""
        n = len(self.ids)
        return rows[(chosen.to(rows.device) * n + torch.arange(n, device=rows.device)[:, None]).T.flatten()]

    def keep(self, x_0: Tensor, eps: Tensor | None, ids: Tensor, scores: Tensor) -> None:
        """Take candidates (count * n, ...) with their scores (n, count, verifiers) where they are better than what there is."""
        self.history.append(scores)
        if self.x0 is not None:
            x_0, ids = torch.cat([self.x0, x_0]), torch.cat([self.names, ids])
            eps = None if eps is None or self.eps is None else torch.cat([self.eps, eps])
            scores = torch.cat([self.scores[:, None], scores], 1)
        best = self.jury.best(scores)[:, None]
        self.x0, self.names = self.taken(x_0, best), self.taken(ids, best)
        self.eps = None if eps is None else self.taken(eps, best)
        self.scores = scores.gather(1, best[..., None].expand(-1, -1, scores.shape[2]))[:, 0]

    def raised(self, x: Tensor, t: float, s: float, ids: Tensor) -> Tensor:
        """x at time t noised to a later time s, which keeps its marginal law; nothing where s = t."""
        if s == t:
            return x
        process = self.denoiser.process
        (a, p, b), (c, q, d) = process.at(t), process.at(s)
        fresh = noise(tuple(x.shape), self.seed, ids, "step", 1 << 52, x.dtype, x.device)
        y = self.conditions(len(x) // len(self.ids)).get("y") if process.anchored else None
        plain = x if y is None else x - p * y
        moved: Tensor = c / a * plain + max(0.0, d * d - (c / a * b) ** 2) ** 0.5 * fresh
        return moved if y is None else moved + q * y

    def found(self) -> Found:
        assert self.x0 is not None
        history = torch.cat(self.history, 1)
        return Found(self.x0, self.scores, self.eps, self.names, self.seed, self.spent, history)


class _Belief:
    """A watch that keeps the last belief, or the first at or below a time."""

    def __init__(self, at: float | None) -> None:
        self.at = at
        self.found: Tensor | None = None
        self.done = False

    def __call__(self, run: Run, x: Tensor, belief: Tensor) -> None:
        if not self.done:
            self.found = belief
            self.done = self.at is not None and float(as_time(run.t).max()) <= self.at
