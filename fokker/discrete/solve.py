"""Samplers of tokens: plans whose rows are pure steps, run by the one loop."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fokker.discrete.draw import categorical
from fokker.discrete.process import TokenProcess
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid
from fokker.plan import Plan, Row, Step
from fokker.process import Process

Predict = Callable[..., Tensor]
Noise = Callable[..., Tensor]
RULES = ("exact", "tau", "euler")


def tokens(process: Process) -> TokenProcess:
    """The process itself; FokkerError if it is not one of tokens."""
    if not isinstance(process, TokenProcess):
        raise FokkerError(f"{process.name} is not a process of tokens; use fk.TokenProcess(size)")
    return process


def chained(process: TokenProcess, steps: list[Step], start: float, config: dict[str, Any]) -> Plan:
    """The plan that runs these steps one after another."""
    return Plan((Row(()), *steps), process, (len(steps),), start=start, config=config)


@dataclass(frozen=True)
class Ancestral:
    """Steps t -> s in which every token moves by itself, given the marginals E[x_0 | x_t].

    rule  exact   x_s ~ sum_k q(x_s | x_t, x_0 = k) belief_k, the reverse transition of each token
          tau     the jump rates at t held for the step: a jump with 1 - exp(-rate (t - s)), to a place in proportion
          euler   the same with probability min(1, rate (t - s))

    Tokens that move in the same step do not know of each other, which is the error of a few steps; it vanishes as the grid is
    refined. A step that ends at t = 0 draws from the belief itself. Draws are float64.

    Raises FokkerError for an unknown rule or a process that is not of tokens. Reference: Austin et al. 2021, arXiv 2107.03006;
    Campbell et al. 2022, arXiv 2205.14987 (tau).
    """

    rule: str = "exact"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule", self.rule, RULES)

    def plan(self, process: Process, grid: Grid) -> Plan:
        """One row a step of the grid (`fk.grids.Uniform(steps)` leads from t = 1 to tokens)."""
        process, times = tokens(process), grid.times(process).tolist()
        steps = [
            Step(partial(self.move, process), ("x", k), t, s, draws=True) for k, (t, s) in enumerate(pairwise(times))
        ]
        return chained(process, steps, times[0], {"solver": "Ancestral", "rule": self.rule} | grid.config)

    def move(
        self, process: TokenProcess, x: Tensor, t: float, s: float, predict: Predict, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """x at time s from x at time t."""
        belief, u = predict(x, t), noise(tuple(x.shape))
        if s == 0:
            return categorical(belief, u), state
        if self.rule == "exact":
            return categorical(process.reverse(x, belief, t, s), u), state
        rates = process.rates(x, belief, t)
        total = rates.sum(-1)
        chance = -torch.expm1(-total * (t - s)) if self.rule == "tau" else (total * (t - s)).clamp(max=1.0)
        jump = u < chance
        return torch.where(jump, categorical(rates, u / chance.clamp_min(1e-300)), x), state


@dataclass(frozen=True)
class FirstHitting:
    """From one unmasking event to the next: exactly as many calls as tokens, and the law of infinitely many ancestral steps.

    With n tokens masked at time t, the next one is uncovered at t' with sigma(t') = sigma(t) u^(1/n); it is any of them with
    equal chance, and its value is drawn from the belief at (x, t'). `parallel` tokens are uncovered with each call, which
    saves calls and costs exactness. Tokens that are given at the start stay; a sample with fewer masks finishes earlier.

    Raises FokkerError for a process that replaces tokens (events are then not countable beforehand).
    Reference: Zheng et al. 2024, arXiv 2409.02908.
    """

    parallel: int = 1

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise FokkerError(f"parallel={self.parallel} is not accepted; uncover at least one token a call")

    def plan(self, process: Process, length: int) -> Plan:
        """One row for every `parallel` of the `length` tokens."""
        process = tokens(process)
        if process.replace:
            raise FokkerError(
                f"replace={process.replace}: first hitting needs a process that only masks; use Ancestral"
            )
        if length < 1:
            raise FokkerError(f"length={length} is not accepted; give the number of tokens in a sequence")
        rows = -(-length // self.parallel)
        # the times of the rows are the run's own draws, one a sample; the table states the levels that they have on average
        times = process.time_at(torch.linspace(1, 0, rows + 1, dtype=torch.float64)).tolist()
        steps = [
            Step(partial(self.uncover, process), ("x", k), t, s, draws=True) for k, (t, s) in enumerate(pairwise(times))
        ]
        config = {"solver": "FirstHitting"} | {f.name: getattr(self, f.name) for f in fields(self)} | {"length": length}
        return chained(process, steps, times[0], config)

    def uncover(
        self, process: TokenProcess, x: Tensor, t: float, s: float, predict: Predict, state: Any, noise: Noise
    ) -> tuple[Tensor, Any]:
        """The state after the next event; `state` is the share of noise sigma of each sample."""
        flat = x.flatten(1)
        masked = flat == process.mask
        left = masked.sum(1)
        m = min(self.parallel, flat.shape[1])
        level = torch.ones(len(x), dtype=torch.float64, device=x.device) if state is None else state
        levels = [level]
        jumps = noise((len(x), m), 0)
        for k in range(m):
            there = left > k
            shrunk = levels[-1] * jumps[:, k] ** (1 / (left - k).clamp_min(1))
            levels.append(torch.where(there, shrunk, levels[-1]))
        # the first event of the call: all its tokens are drawn from one belief
        belief = predict(x, process.time_at(levels[1])).flatten(1, -2)
        order = torch.where(masked, noise(tuple(flat.shape), 1), -1.0).topk(m, 1).indices
        chosen = torch.gather(belief, 1, order[..., None].expand(-1, -1, process.size))
        drawn = categorical(chosen, noise((len(x), m), 2))
        before = torch.gather(flat, 1, order)
        new = torch.where(before == process.mask, drawn, before)
        return flat.scatter(1, order, new).reshape(x.shape), levels[-1]
