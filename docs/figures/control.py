"""Draws docs/control.png and docs/control-digits.png: two models put together in four ways, and guidance of digits.

python docs/figures/control.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.feynman_kac import corrected
from fokker.guide.apg import APG
from fokker.guide.cfg import CFG
from fokker.guide.compose import Compose
from fokker.guide.superpose import Superposition
from fokker.laws import GaussianMixture
from fokker.pictures import image_grid

DOCS = Path(__file__).parent.parent
BLUE, ORANGE, DOTS = "#0072B2", "#D55E00", "#1f2430"


def two_models() -> None:
    """Averaging, OR, AND and the product of two mixtures in the plane."""
    process = fk.VP()
    one = GaussianMixture([0.5, 0.5], [[-2.0, -1.2], [0.2, 1.6]], torch.tensor([0.5, 0.7]).square())
    two = GaussianMixture([0.5, 0.5], [[1.9, -1.2], [0.0, 1.2]], torch.tensor([0.5, 0.7]).square())
    a, b = one.denoiser(process), two.denoiser(process)
    x = process.start(fk.noise((400, 2), seed=1, dtype=torch.float64))

    def mixed(mode: str) -> torch.Tensor:
        return fk.sample(Superposition(a, models=[b], mode=mode), x, solver="ddpm", steps=80, end=0)

    product = corrected(Compose(a, models=[b], base=False), (1000, 2), fk.grids.get("logsnr")(80), total=2.0)
    panels = {
        "scores averaged": mixed("average"),
        "OR: the mixture": mixed("or"),
        "AND: equally likely": mixed("and"),
        "product, by particles": product.drawn()[:400],
    }
    axis = torch.linspace(-3.8, 3.8, 200, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.0), facecolor="white", sharey=True)
    for ax, (name, found) in zip(axes, panels.items(), strict=True):
        for law, colour in ((one, BLUE), (two, ORANGE)):
            level = law.log_prob(points)
            ax.contourf(axis, axis, level, levels=[-4.2, 1], colors=[colour], alpha=0.16)
            ax.contour(axis, axis, level, levels=[-4.2, -2.6], colors=[colour], linewidths=0.8)
        ax.scatter(found[:, 0], found[:, 1], s=4, color=DOTS, alpha=0.5, linewidths=0)
        ax.set(xlim=(-3.8, 3.8), ylim=(-3.4, 3.8), aspect="equal", xticks=[], yticks=[])
        ax.set_title(name, fontsize=11, loc="left")
        for side in ax.spines.values():
            side.set_color("#c3c8d1")
    figure.subplots_adjust(left=0.005, right=0.995, top=0.9, bottom=0.01, wspace=0.04)
    figure.savefig(DOCS / "control.png", dpi=88)


def digits() -> None:
    """The same noise under no guidance, plain and projected guidance."""
    model = fk.load("digits").denoiser
    labels = torch.arange(10)
    x = model.process.start(fk.noise((10, 1, 8, 8), seed=5))
    rows = {
        "scale 1": CFG(model, 1.0),
        "cfg:8": CFG(model, 8.0),
        "apg:8,radius=2": APG(model, 8.0, radius=2.0),
    }
    pictures = [fk.sample(guided, x, solver="dpmpp-2m", steps=18, label=labels) for guided in rows.values()]
    for name, found in zip(rows, pictures, strict=True):
        print(name, "norm", float(found.flatten(1).norm(dim=1).mean()))
    image_grid(torch.cat(pictures), DOCS / "control-digits.png", ncol=10, rows=list(rows), scale=6)


if __name__ == "__main__":
    two_models()
    digits()
