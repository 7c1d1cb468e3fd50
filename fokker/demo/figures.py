"""The four pictures of the demonstration."""

from collections.abc import Callable, Sequence
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
from fokker.restore.operators import Mask

if TYPE_CHECKING:
    from PIL import Image

PAD = 18


def ink(x: Tensor) -> Tensor:
    """Digits (n, 1, 8, 8) as dark strokes on white, with a margin of paper around each."""
    return -torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)


def stacked(parts: Sequence["Image.Image"], path: Path) -> Path:
    """Pictures under each other on white, as one PNG."""
    from PIL import Image

    width, height = max(p.width for p in parts), sum(p.height for p in parts)
    page = Image.new("RGB", (width + 2 * PAD, height + PAD * (len(parts) + 1)), pictures.PAPER)
    at = PAD
    for part in parts:
        page.paste(part, (PAD, at))
        at += part.height + PAD
    return pictures.save(page, path)


def chart(draw: Callable[..., Path], width: int, **options: object) -> "Image.Image":
    """What a function of `fokker.plot` draws, as a picture of this width."""
    from PIL import Image

    with TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        draw(path=path, **options)
        with Image.open(path) as image:
            size = (width, round(image.height * width / image.width))
            return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def training(done: Training, path: Path) -> Path:
    """The loss on both sides of the split, and what the same noise became as the model grew."""
    grid = pictures.image_grid(
        ink(torch.cat([x for _, x in done.strips])),
        ncol=10,
        rows=[f"{seen:,} samples seen" for seen, _ in done.strips],
        heading="What the same noise becomes as the model learns",
        scale=6,
    )
    curve = chart(
        plot.training_curve,
        grid.width,
        samples_seen=[s for s, _ in done.loss],
        loss=[v for _, v in done.loss],
        title="Denoising loss",
        others={"held-out digits (averaged weights)": done.held_out},
        xlabel="training samples seen",
        smoothing=0.03,
    )
    return stacked([curve, grid], path)


def samples(done: Sampled, train: Arrays, path: Path) -> Path:
    """Guided samples by class, and unguided ones above the training digit that is nearest to each."""
    each = int((done.label == 0).sum())
    shown = torch.cat([done.guided[done.label == k][: min(20, each)] for k in range(10)])
    guided = pictures.image_grid(
        ink(shown),
        ncol=min(20, each),
        rows=[str(k) for k in range(10)],
        heading=f"Drawn by class, with guidance {SCALE:g} (the first ones, not chosen)",
        scale=4,
    )
    some = done.unguided[torch.linspace(0, len(done.unguided) - 1, 20).round().long()]
    nearest = squared_distances(some.flatten(1).double(), train.x.flatten(1).double()).argmin(1)
    beside = pictures.image_grid(
        ink(torch.cat([some, train.x[nearest]])),
        ncol=20,
        rows=["sample", "nearest"],
        heading="Without guidance, above the training digit nearest in pixels",
        scale=4,
    )
    return stacked([guided, beside], path)


def solvers(done: Solved, budget: Budget, path: Path) -> Path:
    """Three solvers from the same noise at two budgets, and their distance from the converged flow at all of them."""
    first = [int((done.label == k).nonzero()[0]) for k in range(10)]
    few = budget.calls[len(budget.calls) // 4], budget.calls[len(budget.calls) // 2]
    rows, images = [], []
    for calls in few:
        for name in SOLVERS:
            rows.append(f"{name}, {calls} calls")
            images.append(to_levels(done.ends[name, calls][first]))
    rows.append("converged")
    images.append(to_levels(done.converged[first]))
    heading = "Three solvers from the same noise at equal cost"
    grid = pictures.image_grid(ink(torch.cat(images)), ncol=10, rows=rows, heading=heading, scale=6)
    curve = chart(
        plot.error_curves,
        grid.width,
        curves={name: [(calls, rms) for calls, rms, _ in done.error[name]] for name in SOLVERS},
        title="Distance from the converged flow",
        xlabel="calls of the guided denoiser",
        ylabel="root mean square error a pixel",
    )
    return stacked([grid, curve], path)


def restoration(done: Sequence[Restored], path: Path) -> Path:
    """What was measured, what the baseline and the model make of it, two of the digits it may have been, and the truth."""
    parts = []
    for one in done:
        n = min(12, len(one.truth))
        chosen = torch.linspace(0, len(one.truth) - 1, n).round().long()
        hidden = one.measured[chosen].clone()
        if isinstance(one.task.operator, Mask):
            hidden[(one.task.operator.mask == 0).expand_as(hidden)] = torch.nan
        rows = {
            "measured": hidden,
            f"{BASELINE} ({decibels(one.values['baseline'])})": one.baseline[chosen],
            f"diffusion ({decibels(one.values['restored'])})": one.mean[chosen],
            "truth": one.truth[chosen],
            **{f"posterior sample {i + 1}": one.samples[chosen, i] for i in range(min(2, one.samples.shape[1]))},
        }
        grid = pictures.image_grid(
            ink(torch.cat(list(rows.values()))),
            ncol=n,
            rows=list(rows),
            heading=f"Held-out digits: {one.task.about}, noise {one.task.noise_std:g}",
            scale=6,
        )
        parts.append(grid)
    return stacked(parts, path)


def decibels(value: Value) -> str:
    """A PSNR in words."""
    return f"{value.value:.1f} dB"
