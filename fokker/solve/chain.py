"""Denoising MCMC: a chain over noisy data and its noise level, whose low-noise visits a short run finishes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.keyed import noise, sample_ids, uniform
from fokker.laws.law import Law
from fokker.loop import run
from fokker.process import Process, expand
from fokker.solve import Solver

Levels = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LevelPosterior:
    """log p(t | x) over the given times (levels,), up to a constant: (batch, levels), exact for a law.

    Any function of (x, times) with this result serves, for instance the logits of a classifier of the noise level.
    """

    law: Law
    process: Process

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        many = x[:, None].expand(len(x), len(times), *x.shape[1:])
        return self.law.log_prob_t(many, times[None].expand(len(x), -1), self.process)


@dataclass(frozen=True)
class ChainState:
    """Where the chains are: x (chains, ...), the index of each one's level (chains,), and the updates made so far."""

    x: Tensor
    level: Tensor
    updates: int = 0


@dataclass(frozen=True)
class Emission:
    """Samples x0 (chains, ...), the states they were finished from, and the evaluations a sample cost, the start excluded."""

    x0: Tensor
    visit: ChainState
    nfe: float


@dataclass(frozen=True)
class DenoisingMCMC:
    """Denoising Langevin Gibbs on p(x, t) = p(t) p_t(x), p(t) uniform over `count` times, with alpha = 1.

        x <- x + (eta / 2) score(x, t) + sqrt(eta) z,      t ~ p(t | x)

    Every `skip` updates the visit with the least noise is finished by `solver` in `steps` steps from its own level; the chain
    goes on from its last state. One evaluation an update, so skip + those of the run for a sample.

    levels  (x, times) -> log p(t | x), such as LevelPosterior(law, process)
    eta     step of the Langevin update; unstable at levels with sigma^2 < eta / 4, which p(t | x) leaves again
    rho     of the Karras spacing in the finishing run

    Chains hardly change modes at small eta, so weights come from the start: use many. Successive samples of a chain are
    correlated. Reference: Kim & Ye 2023, arXiv 2209.14593.
    """

    denoiser: Denoiser
    levels: Levels
    eta: float = 0.1
    skip: int = 4
    solver: str | Solver = "heun"
    steps: int = 3
    count: int = 1000
    rho: float = 7.0

    def __post_init__(self) -> None:
        process = self.denoiser.process
        if process.anchored or bool((process.alpha(torch.linspace(0, 1, 9, dtype=torch.float64)) != 1).any()):
            raise FokkerError(
                "DenoisingMCMC needs a variance-exploding process (alpha = 1); wrap the denoiser in OnProcess"
            )
        if not self.eta > 0 or self.skip < 1 or self.steps < 2 or self.count < 2:
            raise FokkerError("give eta > 0, skip >= 1, steps >= 2 and count >= 2")

    @property
    def times(self) -> Tensor:
        """The times of the levels, (count,), from little noise to much."""
        return torch.linspace(0, 1, self.count, dtype=torch.float64)

    def start(
        self,
        shape: Sequence[int],
        seed: int = 0,
        steps: int = 20,
        spread: float = 0.5,
        burn: int = 30,
        ids: Sequence[int] | Tensor | None = None,
        **cond: Cond,
    ) -> ChainState:
        """Chains (batch, ...) begun from noise: `steps` of the solver, noise of deviation `spread`, `burn` updates."""
        process = self.denoiser.process
        which = sample_ids(shape[0] if ids is None else len(ids), ids)
        x1 = process.start(noise(shape, seed, which, dtype=torch.float64))
        x0 = run(
            self.denoiser, x1, solver=self.solver, grid="karras", steps=steps, end=0, seed=seed, ids=which, **cond
        ).x0
        x = x0 + spread * noise(shape, seed, which, "step", dtype=torch.float64)
        level = (process.sigma(self.times) - spread).abs().argmin().expand(len(x))
        state = ChainState(x, level)
        for _ in range(burn):
            state = self.update(state, seed, which, **cond)
        return state

    def update(
        self, state: ChainState, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond
    ) -> ChainState:
        """One Langevin step in x, then a level drawn from p(t | x)."""
        k, x = state.updates + 1, state.x
        score = self.denoiser.predict("score", x, self.times[state.level], **cond)
        fresh = noise(tuple(x.shape), seed, ids, "step", 2 * k, dtype=x.dtype)
        x = x + 0.5 * self.eta * score + self.eta**0.5 * fresh
        share = torch.softmax(self.levels(x, self.times).to(torch.float64), 1).cumsum(1)
        u = uniform((len(x), 1), seed, ids, "step", 2 * k + 1)
        level = torch.searchsorted(share, u * share[:, -1:])[:, 0].clamp(max=self.count - 1)
        return ChainState(x, level, k)

    def finish(
        self, state: ChainState, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond
    ) -> Emission:
        """Samples from states, each run from its own level to x_0."""
        process = self.denoiser.process
        # the run stops half a level above the last one, so that every level has room for its steps
        t = self.times[state.level.clamp(min=1)]
        last = self.times[1] / 2
        low, high = process.sigma(last) ** (1 / self.rho), process.sigma(t) ** (1 / self.rho)
        share = torch.linspace(0, 1, self.steps, dtype=torch.float64)[:, None]
        ramp = process.time(-2 * self.rho * torch.log(high + share * (low - high)))
        ramp[0], ramp[-1] = t, last
        grid = Times(torch.cat([ramp, torch.zeros_like(t)[None]]), to_x0=True)
        trace = run(self.denoiser, state.x, solver=self.solver, grid=grid, seed=seed, ids=ids, **cond)
        return Emission(trace.x0, state, trace.nfe)

    def samples(
        self, state: ChainState, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond
    ) -> Iterator[Emission]:
        """A stream without end: one sample a chain each time."""
        while True:
            best = None
            for _ in range(self.skip):
                state = self.update(state, seed, ids, **cond)
                if best is None:
                    best = state
                else:
                    lower = state.level < best.level
                    best = ChainState(
                        torch.where(expand(lower, state.x), state.x, best.x),
                        torch.where(lower, state.level, best.level),
                        state.updates,
                    )
            assert best is not None
            done = self.finish(best, seed, ids, **cond)
            yield replace(done, nfe=done.nfe + self.skip)
