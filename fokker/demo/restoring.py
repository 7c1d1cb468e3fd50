"""Held-out digits restored from what a mask or a blur left of them, against the best that works without a network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.data.source import Arrays
from fokker.demo.budget import Budget
from fokker.demo.sampling import BATCH, GRID, LEVELS, SHAPE, Show
from fokker.denoiser import Denoiser
from fokker.keyed import noise
from fokker.laws.mixture import GaussianMixture
from fokker.loop import lay, run
from fokker.measure import PSNR, Value
from fokker.restore import Operator
from fokker.restore.moments import MomentMatching
from fokker.restore.operators import Blur, Mask
from fokker.solve.onestep import DDIM

CALLS, ITERATIONS = 10, 2
START = 0.8  # sigma / alpha at which restoration begins: about the spread of the data
BASELINE = "Gaussian per class"


@dataclass(frozen=True)
class Task:
    """A measurement of digits: its operator and the standard deviation of its noise."""

    name: str
    about: str
    operator: Operator
    noise_std: float

    def measure(self, x: Tensor, seed: int) -> Tensor:
        """What is left of x (n, 1, 8, 8)."""
        y = self.operator(x)
        return y + self.noise_std * noise(tuple(y.shape), seed, stream="measure", index=99)


def tasks() -> list[Task]:
    """What is done to the digits: pixels hidden, or strokes smeared."""
    return [
        Task("mask", "half of the pixels hidden", Mask(0.5, SHAPE, seed=2), 0.05),
        Task("blur", "Gaussian blur of 1.2 pixels", Blur(1.2), 0.05),
    ]


@dataclass(frozen=True)
class Restored:
    """One task done: pictures of some, PSNR of all."""

    task: Task
    truth: Tensor
    measured: Tensor
    baseline: Tensor
    samples: Tensor
    mean: Tensor
    values: dict[str, Value]


def restore(
    denoiser: Denoiser, task: Task, train: Arrays, held_out: Arrays, budget: Budget, seed: int, show: Show
) -> Restored:
    """Restore digits of unknown class; the mean of the posterior samples is the estimate, as PSNR asks for.

    The baseline is the posterior mean under one Gaussian a class fitted to the training digits: linear filters for each
    class, weighed by how likely each makes the measurement. Exact for that prior, and no network. Diffusion begins at the
    baseline, noised to `START`, which settles the class, and goes down from there with the model as the prior.

    Reference: Chung, Sim, Ye 2022, arXiv 2112.05146 (beginning at an estimate); Rozet et al. 2024, arXiv 2405.13712.
    """
    rows = torch.linspace(0, len(held_out) - 1, budget.restored).round().long()
    truth = held_out.x[rows]
    y = task.measure(truth, seed)
    baseline = gaussian_mean(train, task, y).clamp(-1, 1).to(truth)
    samples = posterior_samples(denoiser, task, y, baseline, budget.draws, seed + 4, show)
    mean = samples.mean(1)
    images = {
        "measured": seen(task, y),
        "baseline": baseline,
        "restored": mean,
        "one_sample": samples[:, 0],
    }
    values = {name: PSNR()(x, truth) for name, x in images.items()}
    return Restored(task, truth, seen(task, y), baseline, samples, mean, values)


def seen(task: Task, y: Tensor) -> Tensor:
    """The measurement as a picture: hidden pixels are mid-grey, 0."""
    return y.clamp(-1, 1)


def posterior_samples(
    denoiser: Denoiser, task: Task, y: Tensor, estimate: Tensor, draws: int, seed: int, show: Show
) -> Tensor:
    """`draws` samples of x_0 given y for each measurement, begun at its noised estimate, (n, draws, 1, 8, 8)."""
    process = denoiser.process
    t = float(process.time(-2 * math.log(START)))
    plan = lay(process, DDIM(eta=1.0), nfe=CALLS, grid=GRID, start=t, end=0)
    many, begin = y.repeat_interleave(draws, 0), estimate.repeat_interleave(draws, 0)
    found: list[Tensor] = []
    for first in range(0, len(many), BATCH):
        ids = list(range(first, min(first + BATCH, len(many))))
        wrapped = MomentMatching(denoiser, task.operator, many[ids], task.noise_std, ITERATIONS)
        x_t = process.add_noise(begin[ids], noise((len(ids), *SHAPE), seed, ids), t)
        found.append(run(wrapped, x_t, plan, seed=seed, ids=ids).x0)
        show(ids[-1] + 1, len(many))
    samples: Tensor = torch.cat(found).clamp(-1, 1).unflatten(0, (len(y), draws))
    return samples


def gaussian_mean(train: Arrays, task: Task, y: Tensor) -> Tensor:
    """E[x | y] for each measurement under one Gaussian a class, fitted to the training digits."""
    law = GaussianMixture.fit(train.x, components=1, rank=32, labels=train.label)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, *SHAPE)
    matrix = task.operator(basis).flatten(1).T
    rows = matrix.abs().sum(1) > 0  # hidden pixels measure nothing
    # the rounding of the data to grey levels is part of what the measurement does not know
    spread = (task.noise_std**2 + (2 / (LEVELS - 1)) ** 2 / 12) ** 0.5
    found: list[Tensor] = [law.posterior(matrix[rows], one.flatten()[rows], spread).mean() for one in y.double()]
    means: Tensor = torch.stack(found).reshape(-1, *SHAPE)
    return means
