"""More compute at sampling goes into the choice of the noise: candidates are run, judged by a verifier, and the best is kept.

The search drives `fokker.run`, so that any denoiser (guided, restoring, cached), any solver and any plan may be searched.
An algorithm is a frozen dataclass with `search(trials)`: it asks its `Trials` for draws and verdicts while there is budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Grid, Times
from fokker.keyed import sample_ids
from fokker.plan import Plan
from fokker.solve import Solver
from fokker.solve import get as get_solver
from fokker.trials import Found, Trials
from fokker.verifier import Jury, Verifier


class Algorithm(Protocol):
    """How candidates are proposed."""

    def search(self, trials: Trials) -> Found: ...


@dataclass(frozen=True)
class Random:
    """As many independent candidates as the budget allows; the best is kept."""

    def search(self, trials: Trials) -> Found:
        trials.draw(0, 1)
        trials.draw(1, trials.affordable())
        return trials.found()


@dataclass(frozen=True)
class ZeroOrder:
    """A pivot z and neighbours z' = sqrt(keep) z + sqrt(1 - keep) n, which have the norm of noise too; the best is the next z.

    Noise that the solver draws belongs to the sample and stays the same. With few rounds it is worse than `Random`: the nearer
    to 1 `keep` is, the more it needs. `initial` candidates are drawn before, the best of which is the first pivot.
    """

    neighbours: int = 4
    keep: float = 0.7
    initial: int = 1

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.initial < 1 or not 0 <= self.keep < 1:
            raise FokkerError(
                f"neighbours={self.neighbours}, keep={self.keep}, initial={self.initial} are not accepted; use neighbours and "
                "initial of at least 1 and keep in [0, 1)"
            )

    def search(self, trials: Trials) -> Found:
        process = trials.denoiser.process
        if process.dof is not None:
            raise FokkerError(f"turning noise needs normal noise, which {process.name} has not; use Random")
        drawn = 0
        for many in (1, self.initial - 1):
            count = min(many, trials.affordable()) if drawn else many
            if count > 0:
                trials.run(trials.noise(drawn, count), trials.ids.repeat(count))
                drawn += count
        while (count := min(self.neighbours, trials.affordable())) > 0:
            assert trials.eps is not None
            turned = self.keep**0.5 * torch.cat([trials.eps] * count) + (1 - self.keep) ** 0.5 * trials.noise(drawn, count)
            trials.run(turned, trials.ids.repeat(count))
            drawn += count
        return trials.found()


@dataclass(frozen=True)
class Paths:
    """Many paths at once: noised up by `up` steps of the grid in `copies` ways, solved down by `down`, the best go on.

    A share `first` of the grid is run before. Candidates on the way are judged by the last belief of their stretch, which costs
    no call, in the end by themselves; as many paths as the budget allows are kept. Needs `solver` and `grid`, not a plan.
    """

    copies: int = 4
    first: float = 0.5
    up: int = 1
    down: int = 3

    def __post_init__(self) -> None:
        if self.copies < 1 or not 0 < self.first < 1 or not 0 <= self.up < self.down:
            raise FokkerError(
                f"copies={self.copies}, first={self.first}, up={self.up}, down={self.down} are not accepted; use copies of at "
                "least 1, first in (0, 1) and up below down"
            )

    def legs(self, steps: int) -> list[tuple[int, int]]:
        """The stretches (from, to) in steps of the grid; each but the first begins `up` steps before the last one's end."""
        out = [(0, min(max(1, round(self.first * steps)), steps))]
        while out[-1][1] < steps:
            begin = max(out[-1][1] - self.up, 0)
            out.append((begin, min(begin + self.down, steps)))
        return out

    def search(self, trials: Trials) -> Found:
        grid, solver, process = trials.grid, trials.solver, trials.denoiser.process
        if grid is None or solver is None or process.dof is not None:
            raise FokkerError("a search over paths needs solver= and grid= in place of a plan, and normal noise")
        if self.up == 0 and not solver.stochastic:
            raise FokkerError("up=0 makes all copies of a path the same under a solver without noise; use up of at least 1")
        times = grid.times(process)
        legs = self.legs(len(times) - 1)
        (_, end), *later = legs
        first, *plans = [
            solver.plan(process, Times(times[a : b + 1], to_x0=grid.to_data and b + 1 == len(times))) for a, b in legs
        ]
        # the first path shows what a call costs, and with it how many paths there can be
        states, _ = trials.stretch(first, trials.start(trials.noise(0, 1)), trials.named(0, 1))
        rate = trials.spent / max(first.nfe, 1)
        verdicts = trials.jury.cost * (self.copies * len(plans) or 1)
        whole = trials.spent + self.copies * rate * sum(p.nfe for p in plans) + verdicts
        width = int(trials.budget / whole + 1e-9)
        if width < 1:
            raise FokkerError(f"budget={trials.budget:g} is less than one path costs, {whole:g} evaluations; raise it")
        names, number = trials.named(0, width), width
        if width > 1:
            others = trials.stretch(first, trials.start(trials.noise(1, width - 1)), trials.named(1, width - 1))[0]
            states = torch.cat([states, others])
        for (begin, stop), plan in zip(later, plans, strict=True):
            # every path in so many ways, each with noise of its own
            names = trials.named(number, width * self.copies)
            number += width * self.copies
            states = trials.raised(torch.cat([states] * self.copies), times[end].item(), times[begin].item(), names)
            states, belief = trials.stretch(plan, states, names)
            end = stop
            if stop + 1 < len(times):
                kept = trials.jury.verdicts(trials.judged(belief)).topk(width, dim=1).indices
                states = trials.taken(states, kept)
        trials.keep(states, None, names, trials.judged(states))
        return trials.found()


@dataclass(frozen=True)
class NoiseSearch:
    """Samples whose noise was searched for: the best of what `budget` evaluations can try, by a verifier.

        search = NoiseSearch(CFG(denoiser, 3.0), verifier, budget=160, solver="ddim", grid=fk.grids.get("logsnr")(10))
        found = search.run((8, 1, 8, 8), seed=0, label=labels)

    verifier   a function of samples (n, ...) to (n,), larger is better, that may name conditions of the run as arguments;
               several decide by their mean ranks
    budget     evaluations for each returned sample: those of the denoiser, guidance included, and `cost` for each verdict
    algorithm  Random(), ZeroOrder() or Paths(), with their options
    plan       or solver and grid
    batch      states in a call at most (never less than one candidate of each sample)

    Search finds what the verifier likes, faults of the verifier included: report another metric beside it.
    Reference: Ma et al. 2025, arXiv 2501.09732.
    """

    denoiser: Denoiser
    verifier: Verifier | Sequence[Verifier]
    budget: float
    algorithm: Algorithm = field(default_factory=Random)
    plan: Plan | None = None
    solver: str | Solver = "dpmpp-2m"
    grid: Grid | None = None
    cost: float = 0.0
    batch: int = 1024
    dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        Jury.of(self.verifier, self.cost)
        if (self.plan is None) == (self.grid is None):
            raise FokkerError("give either plan=, or grid= with solver=")
        if not self.budget > 0 or self.batch < 1:
            raise FokkerError(f"budget={self.budget}, batch={self.batch} are not accepted; use numbers above 0")

    @property
    def method(self) -> Solver:
        """The solver."""
        return self.solver if isinstance(self.solver, Solver) else get_solver(self.solver)

    @property
    def laid(self) -> Plan:
        """The plan of a whole run."""
        if self.plan is not None:
            return self.plan
        assert self.grid is not None
        return self.method.plan(self.denoiser.process, self.grid)

    def run(self, shape: Sequence[int], seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond) -> Found:
        """The best of each of n searches, `shape` (n, ...), named by `ids`; conditions have one row a search."""
        which = sample_ids(shape[0], ids)
        jury, solver = Jury.of(self.verifier, self.cost), self.method if self.grid is not None else None
        trials = Trials(
            self.denoiser, jury, self.budget, self.laid, shape[1:], which, cond, seed, self.batch, self.dtype, self.device,
            solver, self.grid,
        )  # fmt: skip
        return self.algorithm.search(trials)
