"""The four pictures of the demonstration."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fokker import pictures, plot
from fokker.data.source import Arrays
from fokker.demo.budget import Budget
from fokker.demo.restoring import BASELINE, Restored
from fokker.demo.sampling import SCALE, SOLVERS, Sampled, Solved, to_levels
from fokker.demo.training import Training
from fokker.measure.kernel import squared_distances
from fokker.measure.value import Value

if TYPE_CHECKING:
    from PIL import Image

PAD = 18


def ink(x: Tensor) -> Tensor:
    """Digits as dark strokes on white."""
    return -x


def stacked(parts: Sequence["Image.Image"], path: Path, across: bool = False) -> Path:
    """Pictures under (or beside) each other on white, as one PNG."""
    from PIL import Image

    along = [p.width if across else p.height for p in parts]
    other = max(p.height if across else p.width for p in parts)
    length = sum(along) + PAD * (len(parts) + 1)
    page = Image.new("RGB", (length, other + 2 * PAD) if across else (other + 2 * PAD, length), pictures.PAPER)
    at = PAD
    for part, size in zip(parts, along):
        page.paste(part, (at, PAD) if across else (PAD, at))
        at += size + PAD
    return pictures.save(page, path)


def chart(draw: object, **options: object) -> "Image.Image":
    """What a function of `fokker.plot` draws, as a picture."""
    from PIL import Image

    with TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        assert callable(draw)
        draw(path=path, **options)
        with Image.open(path) as image:
            return image.convert("RGB")


def training(done: Training, path: Path) -> Path:
    """The loss on both sides of the split, and what the same noise became as the model grew."""
    curve = chart(
        plot.training_curve,
        samples_seen=[s for s, _ in done.loss],
        loss=[v for _, v in done.loss],
        title="Denoising loss",
        others={"held-out digits (averaged weights)": done.held_out},
        xlabel="training samples seen",
        smoothing=0.03,
    )
    strips = done.strips if len(done.strips) <= 8 else [done.strips[i] for i in spaced(len(done.strips), 8)]
    grid = pictures.image_grid(
        ink(torch.cat([x for _, x in strips])),
        ncol=10,
        rows=[f"{seen / 1000:.3g} k" if seen < 1e5 else f"{seen / 1000:.0f} k" for seen, _ in strips],
        columns=[str(k) for k in range(10)],
        heading="The same noise after so many samples",
        scale=6,
    )
    return stacked([curve, grid], path)


def spaced(n: int, k: int) -> list[int]:
    """k of n places, the ends among them, denser at the beginning."""
    return sorted({round((n - 1) * (i / (k - 1)) ** 1.5) for i in range(k)})


def samples(done: Sampled, train: Arrays, path: Path) -> Path:
    """Guided samples by class, and unguided ones above the training digit that is nearest to each."""
    each = int((done.label == 0).sum())
    shown = torch.cat([done.guided[done.label == k][: min(20, each)] for k in range(10)])
    guided = pictures.image_grid(
        ink(shown),
        ncol=min(20, each),
        rows=[str(k) for k in range(10)],
        heading=f"Drawn by class, with guidance {SCALE:g} (the first ones, not chosen)",
        scale=5,
    )
    some = done.unguided[torch.linspace(0, len(done.unguided) - 1, 20).round().long()]
    nearest = squared_distances(some.flatten(1).double(), train.x.flatten(1).double()).argmin(1)
    beside = pictures.image_grid(
        ink(torch.cat([some, train.x[nearest]])),
        ncol=20,
        rows=["sample", "nearest"],
        heading="Without guidance, above the training digit nearest in pixels",
        scale=5,
    )
    return stacked([guided, beside], path)


def solvers(done: Solved, budget: Budget, path: Path) -> Path:
    """Three solvers from the same noise at two budgets, and their distance from the converged flow at all of them."""
    first = [int((done.label == k).nonzero()[0]) for k in range(10)]
    few = budget.calls[0], budget.calls[min(2, len(budget.calls) - 1)]
    rows, images = [], []
    for calls in few:
        for name in SOLVERS:
            rows.append(f"{name}, {calls} calls")
            images.append(to_levels(done.ends[name, calls][first]))
    rows.append("converged")
    images.append(to_levels(done.converged[first]))
    grid = pictures.image_grid(
        ink(torch.cat(images)), ncol=10, rows=rows, heading="Three solvers from the same noise at equal cost", scale=6
    )
    curve = chart(
        plot.error_curves,
        curves={name: [(calls, rms) for calls, rms, _ in done.error[name]] for name in SOLVERS},
        title="Distance from the converged flow, root mean square a pixel",
        xlabel="calls of the guided denoiser",
        ylabel="error (data lie in [-1, 1])",
    )
    return stacked([grid, curve], path)


def restoration(done: Sequence[Restored], path: Path) -> Path:
    """What was measured, what the baseline and the model make of it, the truth, and where they err."""
    parts = []
    for one in done:
        n = min(10, len(one.truth))
        rows = torch.linspace(0, len(one.truth) - 1, n).round().long()
        hidden = one.measured[rows].clone()
        mask = getattr(one.task.operator, "mask", None)
        if mask is not None:
            hidden[(mask == 0).expand_as(hidden)] = torch.nan
        parts.append(
            pictures.before_after(
                ink(hidden),
                {
                    f"{BASELINE}, {decibels(one.values['baseline'])}": ink(one.baseline[rows]),
                    f"diffusion, {decibels(one.values['restored'])}": ink(one.mean[rows]),
                    "one posterior sample": ink(one.samples[rows, 0]),
                },
                ink(one.truth[rows]),
                heading=f"Held-out digits: {one.task.about}, noise {one.task.noise_std:g}",
                scale=6,
            )
        )
    return stacked(parts, path, across=True)


def decibels(value: Value) -> str:
    """A PSNR in words."""
    return f"{value.value:.1f} dB"
