"""Samples: guided ones, unguided ones beside the data, and three solvers on the same noise at equal cost."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.data.source import Arrays
from fokker.demo.budget import Budget
from fokker.denoiser import Denoiser
from fokker.guide.cfg import CFG
from fokker.keyed import noise
from fokker.loop import lay, run
from fokker.measure import ClassAccuracy, EndPointRMS, Features, Frechet, Memorised, Precision, Recall, Value

SOLVERS = ("ddim", "heun", "dpmpp-2m")
SOLVER, GRID, SCALE = "dpmpp-2m", "karras", 1.5
LEVELS = 17  # grey levels of the data, 0 to 16
SHAPE = (1, 8, 8)
BATCH = 500

Show = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """For those who do not watch."""


def to_levels(x: Tensor) -> Tensor:
    """The nearest picture that the scanner could have made: 17 grey levels in [-1, 1]."""
    steps = (LEVELS - 1) / 2
    return ((x.clamp(-1, 1) + 1) * steps).round() / steps - 1


def draw(
    denoiser: Denoiser, label: Tensor, seed: int, nfe: int, solver: str = SOLVER, show: Show = silent, raw: bool = False
) -> Tensor:
    """One sample for each label (n,), in the data's grey levels unless `raw`; sample i has the noise of (seed, i)."""
    plan = lay(denoiser.process, solver, nfe=nfe, grid=GRID, end=0)
    found = []
    for first in range(0, len(label), BATCH):
        ids = list(range(first, min(first + BATCH, len(label))))
        start = denoiser.process.start(noise((len(ids), *SHAPE), seed, ids))
        found.append(run(denoiser, start, plan, seed=seed, ids=ids, label=label[ids]).x0)
        show(ids[-1] + 1, len(label))
    x = torch.cat(found)
    return x if raw else to_levels(x)


@dataclass(frozen=True)
class Sampled:
    """Guided samples with their classes, unguided ones, and what was measured on them by name."""

    guided: Tensor
    label: Tensor
    unguided: Tensor
    values: dict[str, Value]


def sample(
    denoiser: Denoiser,
    train: Arrays,
    held_out: Arrays,
    everything: Arrays,
    judge: Features,
    budget: Budget,
    seed: int,
    show: Show,
) -> Sampled:
    """Draw and measure: the classes of guided samples, the distribution of unguided ones.

    Unguided samples are class-conditional without guidance and have the labels of the data, so that their distribution is
    the model's answer to the data's.
    """
    label = torch.arange(10).repeat_interleave(budget.each)
    guided = draw(CFG(denoiser, SCALE), label, seed + 1, budget.evaluations, show=show)
    # spread evenly, so that fewer samples than digits still have the data's shares of the classes
    chosen = torch.linspace(0, len(everything) - 1, budget.unguided).round().long()
    unguided = draw(denoiser, everything.label.sort().values[chosen], seed + 2, budget.evaluations, show=show)
    values = {
        "class_accuracy": ClassAccuracy(judge)(guided, label, (held_out.x, held_out.label)),
        "frechet": Frechet(splits=16)(unguided, everything.x),
        "frechet_held_out": Frechet(floor=False)(unguided, held_out.x),
        "frechet_train_held_out": Frechet(floor=False)(train.x, held_out.x),
        "precision": Precision()(unguided, everything.x),
        "recall": Recall()(unguided, everything.x),
        "memorised": Memorised()(unguided, train.x, held_out.x),
        "memorised_guided": Memorised()(guided, train.x, held_out.x),
    }
    return Sampled(guided, label, unguided, values)


@dataclass(frozen=True)
class Solved:
    """End points of the solvers by (solver, calls), the converged ones, and their distances from them."""

    label: Tensor
    ends: dict[tuple[str, int], Tensor]
    converged: Tensor
    error: dict[str, list[tuple[int, float, float]]]
    accuracy: dict[tuple[str, int], float]


def solvers(denoiser: Denoiser, judge: Features, budget: Budget, seed: int, show: Show) -> Solved:
    """Guided samples of three solvers from the same noise at equal numbers of calls, against the converged flow.

    A call is one evaluation of the guided denoiser, which asks the network twice.
    """
    guided = CFG(denoiser, SCALE)
    label = torch.arange(10).repeat(budget.compared)
    total = len(SOLVERS) * sum(budget.calls) + budget.converged
    converged = draw(guided, label, seed + 3, budget.converged, "heun", raw=True)
    done = budget.converged
    show(done, total)
    ends: dict[tuple[str, int], Tensor] = {}
    error: dict[str, list[tuple[int, float, float]]] = {name: [] for name in SOLVERS}
    accuracy: dict[tuple[str, int], float] = {}
    for calls in budget.calls:
        for name in SOLVERS:
            x = draw(guided, label, seed + 3, calls, name, raw=True)
            each = EndPointRMS().each(x, converged)
            ends[name, calls] = x
            error[name].append((calls, float(each.square().mean().sqrt()), float(each.median())))
            accuracy[name, calls] = float(ClassAccuracy(judge)(to_levels(x), label))
            done += calls
            show(done, total)
    return Solved(label, ends, converged, error, accuracy)
