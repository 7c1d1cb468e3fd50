"""Particles: weighted populations that are moved, weighed and resampled between the steps of runs.

One driver for all methods with many particles. It lays a one-step plan for every interval of a grid, hands each to
`fokker.run`, and between them asks a potential for what the step adds to the log-weights. Without resampling the particles
are those of one run of the whole plan, because the noise belongs to their ids.

THE CONTRACT of a potential: a function of a `Passage` (where the particles were, what the denoiser said, where they are) that
returns the increments of the log-weights (n,), or a pair of these and a state (n, ...) that the driver keeps with each particle
and shows again at the next step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid, Times
from fokker.guide.terms import Composition, Weight, beliefs, summed
from fokker.increments import Move
from fokker.keyed import Brownian, sample_ids, uniform
from fokker.loop import run as run_plan
from fokker.process import Process, Time
from fokker.solve import Solver
from fokker.solve import get as get_solver


@dataclass(frozen=True)
class Passage:
    """One step of all particles, from x_t at t to x_s at s; `s` is None where x_s is x_0 itself.

    `belief` is the denoiser's answer at x_t, `weights` and `terms` those of a composition (empty for other denoisers), `state`
    what the potential returned before, and `number` of `steps` counts from 0.
    """

    process: Process
    x_t: Tensor
    t: float
    x_s: Tensor
    s: float | None
    belief: Tensor
    weights: Sequence[Weight] = ()
    terms: Sequence[Tensor] = ()
    state: Tensor | None = None
    number: int = 0
    steps: int = 1
    cond: dict[str, Cond] = field(default_factory=dict)

    @property
    def move(self) -> Move:
        """The step as an increment; raises FokkerError for the one to x_0."""
        if self.s is None:
            raise FokkerError("the step to x_0 itself has no density at its end")
        return Move(self.process, self.x_t, self.t, self.x_s, self.s)


Weighed = Tensor | tuple[Tensor, Tensor]
Potential = Callable[[Passage], Weighed]


@dataclass(frozen=True)
class Population:
    """Particles x (groups * count, ...) with normalised log-weights (groups, count), one population a group.

    `log_normaliser` (groups,) is the log of the mean weight, all resamplings included; `ess` the effective sample size after
    each step (before resampling), the mean over groups; `resampled` how often a group was; `nfe` evaluations a particle.
    """

    x: Tensor
    log_weights: Tensor
    log_normaliser: Tensor
    ess: tuple[float, ...]
    resampled: float
    nfe: float

    @property
    def weights(self) -> Tensor:
        """Weights that sum to 1 in each group, (groups, count)."""
        return self.log_weights.exp()

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of values (groups * count, ...) in each group, (groups, ...)."""
        groups, count = self.log_weights.shape
        rows = values.reshape(groups, count, -1).to(torch.float64)
        return torch.einsum("gn,gnd->gd", self.weights, rows).reshape(groups, *values.shape[1:])

    def drawn(self, seed: int = 0) -> Tensor:
        """As many particles of equal weight, (groups * count, ...)."""
        return self.x[systematic(self.log_weights, seed, 1 << 40).flatten()]


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last dimension."""
    return torch.exp(2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1))


def systematic(log_weights: Tensor, seed: int, index: int = 0) -> Tensor:
    """Ancestors (groups, count) by systematic resampling: one keyed uniform a group, shifted by 1 / count.

    Ancestors are indices into the flattened population. Each particle has floor(n w) or ceil(n w) children.
    """
    groups, count = log_weights.shape
    u = uniform((groups, 1), seed, None, "step", (1 << 50) | index, log_weights.device)
    return _pick(log_weights, (torch.arange(count, device=log_weights.device) + u) / count)


def multinomial(log_weights: Tensor, seed: int, index: int = 0) -> Tensor:
    """Ancestors (groups, count) drawn independently; more variance than `systematic`."""
    groups, count = log_weights.shape
    u = uniform((groups, count), seed, None, "step", (1 << 51) | index, log_weights.device)
    return _pick(log_weights, u.sort(dim=1).values)


def _pick(log_weights: Tensor, places: Tensor) -> Tensor:
    share = torch.softmax(log_weights.to(torch.float64), 1).cumsum(1)
    groups, count = log_weights.shape
    found = torch.searchsorted(share, places * share[:, -1:]).clamp(max=count - 1)
    return found + count * torch.arange(groups, device=found.device)[:, None]


RESAMPLERS = {"systematic": systematic, "multinomial": multinomial}


@dataclass(frozen=True)
class Particles:
    """A population of runs of `denoiser`, weighed by `potential` after each step and resampled when the weights degenerate.

    solver    of one evaluation a step and without a memory, such as ddpm or euler-maruyama
    ess       resample a group when its effective sample size falls below this share of its particles; 0 never does
    resample  "systematic" or "multinomial"
    interval  (low, high) of sigma / alpha in which weights are collected; None is everywhere
    clip      largest size of an increment of a log-weight (a bias for less variance in high dimensions); None has no bound

    After the last step nothing is resampled: the weights are part of the result. Raises FokkerError for options out of range,
    unknown names, and a plan that does not ask once a step.
    """

    denoiser: Denoiser
    potential: Potential
    solver: str | Solver = "ddpm"
    ess: float = 0.5
    resample: str = "systematic"
    interval: tuple[float, float] | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLERS:
            raise unknown("resampling", self.resample, RESAMPLERS)
        if not 0 <= self.ess <= 1 or (self.clip is not None and not self.clip > 0):
            raise FokkerError(f"ess={self.ess}, clip={self.clip} are not accepted; use ess in [0, 1] and clip above 0")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise FokkerError(f"interval={self.interval} is not accepted; give (low, high) of sigma / alpha")

    def run(
        self,
        x: Tensor,
        grid: Grid,
        groups: int = 1,
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
        **cond: Cond,
    ) -> Population:
        """The population from states x (groups * count, ...) at the grid's start, particles of a group side by side.

        `cond` has one row a particle, the same ones within a group.
        """
        process, n = self.denoiser.process, len(x)
        if groups < 1 or n % groups:
            raise FokkerError(f"{n} particles do not make {groups} groups of one size")
        solver = self.solver if isinstance(self.solver, Solver) else get_solver(self.solver)
        asked = _Told(self.denoiser) if isinstance(self.denoiser, Composition) else self.denoiser
        ids = sample_ids(n, ids)
        times = grid.times(process)
        log_w = torch.zeros(groups, n // groups, dtype=torch.float64, device=x.device)
        total = torch.zeros(groups, dtype=torch.float64, device=x.device)
        state: Tensor | None = None
        sizes, nfe, resampled = [], 0.0, 0
        path = Brownian(tuple(x.shape), seed, ids, x.dtype, x.device)
        for k in range(len(times) - 1):
            last = k + 2 == len(times)
            plan = solver.plan(process, Times(times[k : k + 2], to_x0=grid.to_data and last))
            keep = _Keep()
            trace = run_plan(asked, x, plan, seed=seed, ids=ids, path=path, watch=keep, **cond)
            if keep.calls != 1:
                raise FokkerError(f"{type(solver).__name__} asks {keep.calls} times a step; use a solver of one evaluation")
            nfe += trace.nfe
            weights, terms = trace.notes.get("terms", ((), ()))
            t, s = times[k].item(), None if plan.end is None else times[k + 1].item()
            passage = Passage(
                process, x, t, trace.x0, s, keep.belief, weights, terms, state, k, len(times) - 1, cond
            )
            weighed = self.potential(passage)
            step, state = weighed if isinstance(weighed, tuple) else (weighed, None)
            x = trace.x0
            log_w = log_w + self._allowed(step, t).reshape(groups, -1)
            size = effective_sample_size(log_w)
            sizes.append(float(size.mean()))
            low = (size < self.ess * log_w.shape[1]).nonzero()[:, 0]
            if len(low) and not last:
                ancestors = torch.arange(n, device=x.device).reshape(groups, -1)
                ancestors[low] = RESAMPLERS[self.resample](log_w, seed, k)[low]
                x = x[ancestors.flatten()]
                state = None if state is None else state[ancestors.flatten()]
                total[low] += log_w[low].logsumexp(1) - math.log(log_w.shape[1])
                log_w[low] = 0.0
                resampled += len(low)
        total = total + log_w.logsumexp(1) - math.log(log_w.shape[1])
        return Population(x, torch.log_softmax(log_w, 1), total, tuple(sizes), resampled / groups, nfe)

    def _allowed(self, step: Tensor, t: float) -> Tensor:
        alpha, _, sigma = self.denoiser.process.at(t)
        if self.interval is not None and not self.interval[0] * alpha <= sigma <= self.interval[1] * alpha:
            return torch.zeros_like(step, dtype=torch.float64)
        step = step.to(torch.float64)
        return step if self.clip is None else step.clamp(-self.clip, self.clip)


class _Keep:
    """A watch that keeps the belief and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.belief = torch.empty(0)

    def __call__(self, run: Run, x: Tensor, belief: Tensor) -> None:
        self.calls += 1
        self.belief = belief


class _Told(Wrapper):
    """A composition that tells the weights and beliefs of its terms in the notes of a run."""

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        inner: Any = self.inner
        parts = inner.parts(x_t, t, **cond)
        found, weights = beliefs(parts, x_t, t), [part.weight for part in parts]
        if self.run is not None:
            self.run.notes["terms"] = weights, found
        return summed(self.process, x_t, t, weights, found)
