"""What checks of inverse problems share: held-out digits, a mixture fitted to the others as exact prior, errors in dB."""

import functools
import math

import torch
from torch import Tensor

import fokker as fk
from fokker.data.toys import digits
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.restore import Wrapper

PROCESS = fk.VP()


@functools.cache
def prior(rank: int = 64, components: int = 1) -> GaussianMixture:
    """A mixture fitted to the 1,400 training digits, `components` of that rank a class, without its labels."""
    train = digits.build(split="train")
    law = GaussianMixture.fit(train.x.double(), components=components, rank=rank, labels=train.label)
    return GaussianMixture.build(law.log_weights, law.means, law.form, None, law.shape)


def held_out(n: int, seed: int) -> Tensor:
    """n of the 397 test digits (n, 1, 8, 8) in [-1, 1], float64."""
    return digits.build(n, seed, "test").x.double()


def restored(
    wrapper: Wrapper,
    shape: tuple[int, ...],
    solver: str,
    steps: int,
    seed: int,
    ids: Tensor | None = None,
    **options: float,
) -> fk.Trace:
    """A run of the restorer from noise of `shape` (batch, ...) to x_0, uniform in t, by a solver with its options.

    `ids` are those of `fk.run`.
    """
    plan = fk.solve.get(solver, **options).plan(wrapper.process, fk.grids.get("uniform")(steps, end=0))
    start = wrapper.process.start(noise(shape, seed, ids, dtype=torch.float64))
    return fk.run(wrapper, start, plan, seed=seed, ids=ids)


def decibels(x: Tensor, truth: Tensor, span: float = 2.0) -> Tensor:
    """10 log10(span^2 / mean squared error) of every picture (batch,)."""
    error = (x - truth).flatten(1).square().mean(1)
    return 20 * math.log10(span) - 10 * torch.log10(error)


def psnr(x: Tensor, truth: Tensor, span: float = 2.0) -> float:
    """The mean over pictures of their `decibels`."""
    return float(decibels(x, truth, span).mean())
