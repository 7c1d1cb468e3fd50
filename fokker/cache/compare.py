"""Speed beside error: several ways to make the same samples, timed in turn in one process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.loop import run
from fokker.net.cost import macs
from fokker.plan import Plan


@dataclass(frozen=True)
class Cost:
    """What one way takes: the least seconds of a run, its multiply-adds, and the RMSE of its samples to the first way's."""

    name: str
    seconds: float
    macs: int
    error: float

    def __str__(self) -> str:
        return f"{self.name:<28}{self.seconds:>9.3f} s{self.macs / 1e9:>10.3f} GMAC   error {self.error:.4g}"


def compare(
    ways: Mapping[str, Denoiser | tuple[Denoiser, Plan]],
    x: Tensor,
    plan: Plan,
    seed: int = 0,
    repeats: int = 3,
    **cond: Cond,
) -> list[Cost]:
    """A `Cost` for each way: a denoiser run on `plan`, or a denoiser with a plan of its own, from the same state and noise.

    Ways take turns `repeats` times after a first run that is not timed, so that all of them see the same machine; times are
    the least ones. The first way is what errors are measured against.
    """
    if not ways:
        raise FokkerError("give at least one way to compare, as {name: denoiser}")
    pairs = {name: way if isinstance(way, tuple) else (way, plan) for name, way in ways.items()}
    counted, samples = {}, {}
    for name, (denoiser, own) in pairs.items():
        counted[name] = macs(partial(run, denoiser, x, own, seed=seed, **cond))
        samples[name] = run(denoiser, x, own, seed=seed, **cond).x0
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(repeats):
        for name, (denoiser, own) in pairs.items():
            begin = time.perf_counter()
            run(denoiser, x, own, seed=seed, **cond)
            best[name] = min(best[name], time.perf_counter() - begin)
    truth = next(iter(samples.values()))
    errors = {name: float((x0 - truth).square().mean().sqrt()) for name, x0 in samples.items()}
    return [Cost(name, best[name], counted[name], errors[name]) for name in pairs]
