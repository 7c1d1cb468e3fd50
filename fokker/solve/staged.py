"""Stages: a run whose resolution, codec, process, network or solver changes on the way.

A stage is a plan that ends at x_0. Between two stages there is one transition: the belief x_0 is decoded by the codec it
lives in, changed (resized, sharpened), encoded for the next stage, and noised again to the time at which that stage's plan
starts. The noisy state itself is never resized: its noise would no longer be white, and a network takes that for detail.
Noise and history are new in each stage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.codec import Codec, Identity
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.keyed import noise
from fokker.loop import Trace, run
from fokker.plan import Plan
from fokker.process import Process

Change = Callable[[Tensor], Tensor]
Wrap = Callable[[Denoiser, Tensor], Denoiser]


@dataclass(frozen=True, eq=False)
class Stage:
    """A stretch of a staged run.

    plan    ends at x_0 (a grid with end=0, or Times(..., to_x0=True)); its last time is where the stage hands over
    arrive  what happens to the data of the stage before, such as Resize
    wrap    makes the denoiser from it and the data that arrive, for guidance by them
    codec   between data and the space of this stage's denoiser
    cond    conditions of this stage, added to those of the whole run
    """

    denoiser: Denoiser
    plan: Plan
    arrive: Change | None = None
    wrap: Wrap | None = None
    codec: Codec = field(default_factory=Identity)
    cond: Mapping[str, Cond] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan.end is not None or self.plan.inputs != 1:
            raise FokkerError(
                "a stage hands over a belief; give a plan of one state that ends at x_0 (a grid with end=0)"
            )


@dataclass(frozen=True)
class Staged:
    """What a staged run gave: x0 in the last stage's space, `data` decoded, and the trace of every stage."""

    x0: Tensor
    data: Tensor
    traces: tuple[Trace, ...]

    @property
    def nfe(self) -> float:
        """Evaluations per sample of all stages, whatever their size."""
        return sum(trace.nfe for trace in self.traces)


def run_stages(
    stages: Sequence[Stage], x: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond
) -> Staged:
    """The stages one after another, from the state x (batch, ...) at the first plan's first time.

    Stage k draws its noise under a seed of its own, so that no noise is met twice. Raises FokkerError without stages.
    """
    if not stages:
        raise FokkerError("a staged run needs at least one stage")
    traces: list[Trace] = []
    data: Tensor | None = None
    for k, stage in enumerate(stages):
        own = (seed + (k << 40)) % 2**63
        given, denoiser = {**cond, **stage.cond}, stage.denoiser
        if data is not None:
            if stage.arrive is not None:
                data = stage.arrive(data)
            clean = stage.codec.encode(data)
            process, start = denoiser.process, stage.plan.start
            assert start is not None
            eps = noise(tuple(clean.shape), own, ids, dtype=clean.dtype, device=clean.device)
            x = process.add_noise(clean, eps, start, given.get("y") if process.anchored else None)
            if stage.wrap is not None:
                denoiser = stage.wrap(denoiser, data)
        traces.append(run(denoiser, x, stage.plan, seed=own, ids=ids, **given))
        data = stage.codec.decode(traces[-1].x0)
    assert data is not None
    return Staged(traces[-1].x0, data, tuple(traces))


@dataclass(frozen=True)
class Resize:
    """Images (n, channels, height, width) to `size`: area averages downwards, `up` ("bicubic" or "bilinear") upwards."""

    size: tuple[int, int]
    up: str = "bicubic"

    def __post_init__(self) -> None:
        if self.up not in ("bicubic", "bilinear"):
            raise FokkerError(f"up={self.up!r} is not accepted; use 'bicubic' or 'bilinear'")

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise FokkerError(
                f"Resize takes images (n, channels, height, width), not a state of shape {tuple(x.shape)}"
            )
        if self.size[0] <= x.shape[2] and self.size[1] <= x.shape[3]:
            return torch.nn.functional.interpolate(x, self.size, mode="area")
        return torch.nn.functional.interpolate(x, self.size, mode=self.up, align_corners=False)


def shift_time(process: Process, t: Tensor | float, factor: float) -> Tensor:
    """The time of `factor` times the noise-to-signal ratio sigma / alpha of time t; on Flow, factor t / (1 + (factor - 1) t).

    Averaging over 2 x 2 pixels halves the noise of an image, so a factor above 1 makes up for a larger size.
    Reference: Esser et al. 2024, arXiv 2403.03206.
    """
    if not factor > 0:
        raise FokkerError(f"factor={factor} is not accepted; give a factor above 0, 1 for no shift")
    t = torch.as_tensor(t, dtype=torch.float64)
    return (
        t if factor == 1 else process.time(process.logsnr(t) - 2 * torch.log(torch.tensor(factor, dtype=torch.float64)))
    )


def stage_grid(process: Process, steps: int, start: float, last: float, shift: float = 1.0) -> Times:
    """`steps` evaluations at equal distances in t from `start` to `last`, times shifted, and then x_0.

    With last = 0 the last evaluation is one step above it.
    """
    if steps < 1 or not 0 <= last <= start <= 1 or not start > 0 or (steps > 1 and last == start):
        raise FokkerError(f"steps={steps} from t={start} to t={last} are not accepted; give 1 >= start > last >= 0")
    t = torch.linspace(start, last, steps if last > 0 else steps + 1, dtype=torch.float64)[:steps]
    return Times(torch.cat([shift_time(process, t, shift), t.new_zeros(1)]), to_x0=True)


def each(value: Any, count: int) -> list[Any]:
    """One value for every stage, or one each; raises FokkerError for another number of them."""
    if isinstance(value, Denoiser | Codec | str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise FokkerError(f"{len(value)} values for {count} stages; give one, or one each")
    return list(value)
