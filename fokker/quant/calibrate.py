"""Calibration: the states that a network will meet, and the ranges of what its layers see on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, uniform
from fokker.loop import run as run_plan
from fokker.plan import Plan

LAWS = ("normal", "uniform", "noise", "data")
KEPT = 1 << 16  # entries of a layer's inputs that a range is searched on
RATIOS = tuple(0.5 + 0.02 * k for k in range(26))  # of the full range; the last one is all of it


@dataclass(frozen=True)
class CalibrationSet:
    """States x (n, ...) with their own times t (n,) and conditions, on which a network is calibrated."""

    x: Tensor
    t: Tensor
    cond: Mapping[str, Cond] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.t.shape != (len(self.x),):
            raise FokkerError(f"{len(self.x)} states with times of shape {tuple(self.t.shape)}; give one time a state")

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def from_trajectory(
        cls,
        denoiser: Denoiser,
        plan: Plan,
        shape: tuple[int, ...],
        n: int = 1024,
        law: str = "normal",
        mean: float = 0.4,
        std: float = 0.4,
        seed: int = 0,
        batch: int = 256,
        **cond: Cond,
    ) -> "CalibrationSet":
        """`n` states of the denoiser's own reverse run, each at one of the plan's times, drawn by a law of the steps.

        normal   k ~ N(mean T, (std T)^2), rounded, clipped to the T steps, counted from the data: somewhat nearer to the data
                 than the middle, where the states say most (Shang et al. 2023, arXiv 2211.15736)
        uniform  every step alike;  noise, data  the first or the last step only

        A state and its time are stored together as the run visits them. `shape` is of one sample; `cond` has n rows.
        """
        if law not in LAWS:
            raise unknown("law of times", law, LAWS)
        times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in plan.times])
        steps = len(times)
        if times.ndim != 1 or not steps or n < 1:
            raise FokkerError(
                f"n={n} states of a plan with {steps} steps; give at least one, and one time for all samples"
            )
        from_data = _drawn(law, steps, n, mean, std, seed)
        chosen = steps - 1 - from_data
        parts = []
        for first in range(0, n, batch):
            ids = range(first, min(first + batch, n))
            here = {k: v[first : first + len(ids)] if isinstance(v, Tensor) else v for k, v in cond.items()}
            x = denoiser.process.start(noise((len(ids), *shape), seed, ids, stream="measure"))
            parts.append(_visited(denoiser, x, plan, chosen[first : first + len(ids)], seed, ids, here))
        return cls(torch.cat(parts), times[chosen], dict(cond))

    @classmethod
    def from_data(
        cls, denoiser: Denoiser, data: Tensor, seed: int = 0, noisy: bool = True, **cond: Cond
    ) -> "CalibrationSet":
        """Real samples at uniformly random times, noised to them; with noisy=False left clean, which is the worst choice."""
        low = denoiser.process.end
        t = low + (1 - low) * uniform((len(data), 1), seed, stream="measure", index=1)[:, 0]
        eps = noise(tuple(data.shape), seed, stream="measure", dtype=data.dtype)
        return cls(denoiser.process.add_noise(data, eps, t) if noisy else data, t, dict(cond))

    def shown(self, denoiser: Denoiser, batch: int = 128) -> None:
        """Ask the denoiser about every state."""
        with torch.no_grad():
            for k in range(0, len(self), batch):
                here = {name: v[k : k + batch] if isinstance(v, Tensor) else v for name, v in self.cond.items()}
                denoiser(self.x[k : k + batch], self.t[k : k + batch], **here)


def _drawn(law: str, steps: int, n: int, mean: float, std: float, seed: int) -> Tensor:
    if law in ("noise", "data"):
        return torch.full((n,), steps - 1 if law == "noise" else 0)
    if law == "uniform":
        return (uniform((n, 1), seed, stream="measure", index=1)[:, 0] * steps).long().clamp_max(steps - 1)
    draws = noise((n, 1), seed, stream="measure", index=1, dtype=torch.float64)[:, 0]
    return ((mean + std * draws) * steps).round().long().clamp(0, steps - 1)


def _visited(
    denoiser: Denoiser, x: Tensor, plan: Plan, chosen: Tensor, seed: int, ids: Any, cond: Mapping[str, Cond]
) -> Tensor:
    """The state of each sample at its chosen step of the run."""
    kept, step, last = torch.zeros_like(x), 0, int(chosen.max())

    def watch(run: Run, x_t: Tensor, belief: Tensor) -> bool:
        nonlocal step
        mine = chosen == step
        kept[mine] = x_t[mine]
        step += 1
        return step > last

    run_plan(denoiser, x, plan, seed=seed, ids=list(ids), watch=watch, **cond)
    return kept


class Sampled:
    """The extremes of a stream of numbers, and every so-manieth of them."""

    def __init__(self) -> None:
        self.low, self.high = torch.tensor(0.0), torch.tensor(0.0)
        self.parts: list[Tensor] = []

    def add(self, x: Tensor, calls: int) -> None:
        """Take in one of `calls` equal shares of the stream."""
        flat = x.detach().flatten()
        self.low, self.high = torch.minimum(self.low, flat.min()), torch.maximum(self.high, flat.max())
        stride = max(1, len(flat) * calls // KEPT)
        # an odd stride walks through all places of a row
        self.parts.append(flat[:: stride | 1].clone())

    def numbers(self) -> Tensor:
        return torch.cat(self.parts)
