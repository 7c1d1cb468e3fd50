"""Tokens drawn one group after another, each by a run of a small diffusion head."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, sample_ids
from fokker.loop import run
from fokker.process import as_time, derivative, expand
from fokker.solve import Solver

Context = Callable[[Tensor, list[int], list[int]], dict[str, Cond]]


@dataclass(frozen=True)
class StepAnnealing:
    """How many diffusion steps a group of tokens gets when a share u of the groups is done: S(u) from `first` to `last`.

    linear      round(first + (last - first) u)
    two-stage   first for u < 1/2, then last
    cosine      round(last + (first - last) cos(pi u / 2))

    `first` = `last` is a uniform split. Reference: Zhao et al. 2025, arXiv 2505.20297 (DiSA).
    """

    first: int = 50
    last: int = 5
    kind: str = "linear"

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "two-stage", "cosine"):
            raise unknown("kind of annealing", self.kind, ["linear", "two-stage", "cosine"])
        if min(self.first, self.last) < 1:
            raise FokkerError(f"first={self.first}, last={self.last}; every token needs at least one step")

    def __call__(self, u: float) -> int:
        if self.kind == "two-stage":
            return self.first if u < 0.5 else self.last
        if self.kind == "cosine":
            return round(self.last + (self.first - self.last) * math.cos(math.pi * u / 2))
        return round(self.first + (self.last - self.first) * u)


@dataclass(frozen=True)
class TokenRun:
    """The tokens (batch, tokens, ...), the steps each group got, and the evaluations of the head per sample and group."""

    tokens: Tensor
    steps: tuple[int, ...]
    nfe: tuple[float, ...]


@dataclass(frozen=True)
class TokenDiffusion:
    """Autoregressive sampling whose tokens are drawn by a diffusion head, with a number of steps that depends on the place.

    head     a denoiser of one group of tokens (batch, group, ...)
    context  (tokens so far, their places, the group's places) -> the head's conditions
    budget   share of the groups done, 0 .. 1 -> steps, such as StepAnnealing(50, 5)
    solver, grid, end   as in `fk.sample`; any registered name

    The groups are the order of generation: lists of places, each drawn in one run of the loop.
    Reference: Li et al. 2024, arXiv 2406.11838 (MAR); Zhao et al. 2025, arXiv 2505.20297 (DiSA).
    """

    head: Denoiser
    context: Context
    budget: Callable[[float], int] = StepAnnealing()
    solver: str | Solver = "ddim"
    grid: str = "uniform"
    end: float | None = None

    def sample(
        self,
        shape: Sequence[int],
        groups: Sequence[Sequence[int]],
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
    ) -> TokenRun:
        """Tokens of `shape` (batch, tokens, ...); raises FokkerError unless `groups` hold every place once."""
        if sorted(place for group in groups for place in group) != list(range(shape[1])):
            raise FokkerError(f"the groups must hold each of the {shape[1]} places once")
        which = sample_ids(shape[0] if ids is None else len(ids), ids)
        start = noise(shape, seed, which)
        tokens, done = torch.zeros_like(start), list[int]()
        steps, nfe = [], []
        for k, group in enumerate(map(list, groups)):
            steps.append(self.budget(k / max(1, len(groups) - 1)))
            trace = run(
                self.head,
                self.head.process.start(start[:, group]),
                solver=self.solver,
                grid=self.grid,
                steps=steps[-1],
                end=self.end,
                # every group draws noise of its own
                seed=(seed + 0x9E3779B97F4A7C15 * k) % 2**63,
                ids=which,
                **self.context(tokens, done, group),
            )
            tokens[:, group] = trace.x0
            done += group
            nfe.append(trace.nfe)
        return TokenRun(tokens, tuple(steps), tuple(nfe))


def path_straightness(denoiser: Denoiser, x1: Tensor, steps: int = 64, **cond: Cond) -> Tensor:
    """int |v_t - (x_1 - x_0)|^2 dt along the flow from x1 (batch, ...) to the process's end; 0 for a straight path."""
    process, times, rates = denoiser.process, list[Tensor](), list[Tensor]()

    def look(context: object, x: Tensor, belief: Tensor) -> None:
        t = as_time(context.t)  # type: ignore[attr-defined]
        alpha, _, sigma = process.coefficients(t, x)
        eps = (x - alpha * belief) / sigma
        d_alpha, d_sigma = (expand(derivative(f, t), x).to(x) for f in (process.alpha, process.sigma))
        times.append(t)
        rates.append(d_alpha * belief + d_sigma * eps)

    trace = run(denoiser, x1, solver="heun", grid="uniform", steps=steps, watch=look, **cond)
    # up to the process's own end, where the plan stops
    straight = (x1 - trace.x0) / (1.0 - float(trace.plan.end or 0.0))
    bend = torch.stack([(v - straight).flatten(1).square().sum(1) for v in rates])
    t, order = torch.sort(torch.stack(times))
    return torch.trapezoid(bend[order], t.to(bend)[:, None], dim=0)
