"""Rollover budget forcing: a stochastic path led by the reward of its beliefs, in which no evaluation of the budget is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Grid, Times
from fokker.keyed import sample_ids
from fokker.loop import run as run_plan
from fokker.plan import Plan
from fokker.process import Process, Time
from fokker.solve import Solver
from fokker.solve import get as get_solver
from fokker.trials import STRIDE, Found, Trials
from fokker.verifier import Jury, Verifier

BLOCK = 16  # children of a state that are made at once


@dataclass(frozen=True)
class RolloverBudgetForcing:
    """Samples whose path was chosen step by step: children of the state are drawn until one's belief beats all before it.

    Of `initial` noises the one with the best belief is the start. Each step of the grid has an equal quota of what is left of
    the budget. It draws one child at a time by one step of `solver`; the first whose belief is better than any so far is the
    next state, and what it leaves of the quota goes to the next step. Where none is, the best child of the step goes on. The
    last step that has noise spends what is left, and the belief of its best child is the sample.

    solver     one evaluation a step, stochastic, without a memory: "ddpm", or FlowSDE(scale, power). There must be noise in
               the last steps, where the quota goes; on straight lines fewer steps have it than on a variance-preserving path
               (wrap the denoiser in OnProcess)
    budget     evaluations for each sample, guidance and `cost` for each verdict included; a child costs one call
    greedy     spend the whole quota of each step and take its best child (SVDD); no rollover

    The reward should not grow by itself as noise falls, such as a distance to a target: every child would win, and the budget
    would roll to the last step. Every call is a run of its own, so wrappers with a memory forget.
    Reference: Kim, Yoon, Hwang, Sung 2025, arXiv 2503.19385; Li et al. 2024, arXiv 2408.08252 (SVDD).
    """

    denoiser: Denoiser
    verifier: Verifier | Sequence[Verifier]
    budget: float
    grid: Grid
    solver: str | Solver = "ddpm"
    initial: int = 25
    greedy: bool = False
    cost: float = 0.0
    batch: int = 1024
    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        Jury.of(self.verifier, self.cost)
        if not self.method.stochastic or self.method.evaluations != 1:
            name = type(self.method).__name__
            raise FokkerError(f"{name} cannot make several children of a state; use a stochastic solver of one evaluation")
        if not self.grid.to_data or len(self.grid.times(self.denoiser.process)) < 3:
            raise FokkerError("give a grid of at least two steps that ends at x_0 (end=0)")
        if self.initial < 1 or not self.budget > 0 or self.batch < 1:
            raise FokkerError(f"initial={self.initial}, budget={self.budget}, batch={self.batch}: use numbers above 0")

    @property
    def method(self) -> Solver:
        """The solver."""
        return self.solver if isinstance(self.solver, Solver) else get_solver(self.solver)

    def run(self, shape: Sequence[int], seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond) -> Found:
        """The best of each of n searches, `shape` (n, ...), named by `ids`; conditions have one row a search."""
        which = sample_ids(shape[0], ids)
        if len(which) > 1 and not self.denoiser.stackable:
            raise FokkerError("this denoiser holds a measurement of the batch's size; search its samples one at a time")
        process, jury = self.denoiser.process, Jury.of(self.verifier, self.cost)
        times = self.grid.times(process)
        whole = self.method.plan(process, self.grid)
        trials = Trials(
            self.denoiser, jury, self.budget, whole, shape[1:], which, cond, seed, self.batch, self.dtype, self.device
        )  # fmt: skip
        asked = [self.method.plan(process, Times([float(t), 0.0], to_x0=True)) for t in times[:-1]]
        moves = [self.method.plan(process, Times(times[k : k + 2])) for k in range(len(times) - 2)]
        path = _Path(trials, asked[0], self.initial)
        left = int((self.budget - trials.spent) / path.price + 1e-9)
        if left < len(moves):
            raise FokkerError(
                f"budget={self.budget:g} leaves {max(left, 0)} children for {len(moves)} steps after {self.initial} starts; "
                "raise it"
            )
        # the step to the process's own end, where there is next to no noise, is not what the budget is for
        noisy = max(1, int((times[1:-1] > process.end * (1 + 1e-9)).sum()))
        share, more = divmod(left - (len(moves) - noisy), noisy)
        carried = torch.zeros(len(which), dtype=torch.int64)
        for k, (move, ask) in enumerate(zip(moves, asked[1:], strict=True)):
            quota = (share + (1 if k < more else 0) if k < noisy else 1) + carried
            carried = quota - path.step(move, ask, quota, wait=self.greedy or k + 1 >= noisy)
        return path.found()


class _Path:
    """Where every search stands: its state, its belief there, the best scores so far."""

    def __init__(self, trials: Trials, ask: Plan, initial: int) -> None:
        self.trials = trials
        states, names = trials.start(trials.noise(0, initial)), trials.named(0, initial)
        beliefs, _ = trials.stretch(ask, states, names)
        scores = trials.judged(beliefs)
        self.price = trials.spent / initial
        if trials.spent > trials.budget:
            raise FokkerError(f"budget={trials.budget:g} is less than {initial} starts cost, {trials.spent:g}; raise it")
        pick = trials.jury.best(scores)[:, None]
        self.x, self.belief = trials.taken(states, pick), trials.taken(beliefs, pick)
        self.names = trials.taken(names, pick)
        self.scores = scores.gather(1, pick[..., None].expand(-1, -1, scores.shape[2]))[:, 0]
        self.best = self.scores.clone()
        self.paid = trials.spent * len(trials.ids)
        # of each search the scores of all noises and children, which also number them
        self.history = [list(row) for row in scores]

    def step(self, move: Plan, ask: Plan, quota: Tensor, wait: bool) -> Tensor:
        """Draw children of every state until one is the best so far (`wait`: until the quota is spent); how many of each."""
        n, jury = len(quota), self.trials.jury
        drawn = torch.zeros_like(quota)
        x, belief, names, scores = (v.clone() for v in (self.x, self.belief, self.names, self.scores))
        going, ahead = torch.ones(n, dtype=torch.bool), 0
        children, names_of = self.x[:0], self.names[:0]
        while bool(going.any()):
            rows = going.nonzero()[:, 0]
            if not ahead:
                # states are cheap and calls are not: several children of each at once, to be asked about one by one
                ahead = min(BLOCK, int((quota - drawn)[rows].max()))
                children, names_of = self.children(move, rows, ahead)
                place = torch.full((n,), -1)
                place[rows] = torch.arange(len(rows))
                turn, width = 0, len(rows)
            own = turn * width + place[rows]
            child, ids = children[own.to(children.device)], names_of[own]
            turn, ahead = turn + 1, ahead - 1
            seen, said = self.asked(ask, child, ids, rows)
            for k, row in enumerate(rows.tolist()):
                self.history[row].append(said[k])
            wins = self.beats(said, self.best[rows], jury)
            better = (drawn[rows] == 0) | wins | self.beats(said, scores[rows], jury)
            for old, new in ((x, child), (belief, seen), (names, ids), (scores, said)):
                old[rows[better].to(old.device)] = new[better.to(new.device)]
            self.best[rows[wins]] = said[wins]
            drawn[rows] += 1
            going[rows] = (drawn[rows] < quota[rows]) & ~(wins & (not wait))
        self.x, self.belief, self.names, self.scores = x, belief, names, scores
        return drawn

    def children(self, move: Plan, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` children of these states and their ids, child by child; no call of the denoiser."""
        trials = self.trials
        first = torch.tensor([len(said) for said in self.history])
        if (int(first.max()) + count) * STRIDE > 1 << 32:
            raise FokkerError(f"a sample has noise for {(1 << 32) // STRIDE} children at most; lower the budget")
        ids = torch.cat([trials.ids[rows] + (first[rows] + k) * STRIDE for k in range(count)])
        here = rows.to(self.x.device)
        known = _Known(trials.denoiser.process, torch.cat([self.belief[here]] * count))
        told: dict[str, Any] = {}
        if trials.denoiser.process.anchored:
            told["y"] = torch.cat([trials.cond["y"][here]] * count)
        return run_plan(known, torch.cat([self.x[here]] * count), move, seed=trials.seed, ids=ids, **told).x0, ids

    def asked(self, ask: Plan, states: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The beliefs at states of these searches, and their scores; one call."""
        trials = self.trials
        cond: dict[str, Any] = {
            k: v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in trials.cond.items()
        }
        trace = run_plan(trials.denoiser, states, ask, seed=trials.seed, ids=ids, **cond)
        self.paid += (trace.nfe + trials.jury.cost) * len(rows)
        return trace.x0, trials.jury.scores(trace.x0, cond)

    @staticmethod
    def beats(new: Tensor, old: Tensor, jury: Jury) -> Tensor:
        """Whether the jury prefers new to old (rows, verifiers), (rows,)."""
        return jury.best(torch.stack([old, new], 1)) == 1

    def found(self) -> Found:
        history = torch.stack([torch.stack(said) for said in self.history])
        spent = self.paid / len(self.history)
        return Found(self.belief, self.scores, None, self.names, self.trials.seed, spent, history)


class _Known(Denoiser):
    """A belief that was asked for before: its step costs nothing."""

    evaluations = 0

    def __init__(self, process: Process, belief: Tensor) -> None:
        super().__init__(process)
        self.belief = belief

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        return self.belief
