"""Draws docs/staged.png: DiffuseHigh on the laws of its check, whose large law prefers repeated objects.

python docs/figures/staged.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import fokker as fk
from fokker.checks.diffusehigh import LARGE, PROCESS, SMALL, laws
from fokker.solve.diffusehigh import DiffuseHigh, Enlarge

small, large = laws(0)
denoisers = (small.denoiser(PROCESS), large.denoiser(PROCESS))
x = fk.noise((6, 1, *SMALL), seed=4, dtype=torch.float64)


def enlarged(guided: int) -> torch.Tensor:
    return DiffuseHigh(denoisers, (SMALL, LARGE), start=0.6, guided=guided, sharpen=0.0, solver="heun")(x, seed=4).data


native = DiffuseHigh(denoisers, (SMALL, LARGE), sharpen=0.0, solver="heun")(x, seed=4).traces[0].x0
noisy = fk.sample(
    denoisers[1], fk.noise((6, 1, *LARGE), seed=4, dtype=torch.float64), solver="heun", grid="uniform", steps=50
)
rows = {
    "native, 8 x 8": native,
    "bicubic": Enlarge(LARGE, 0.0)(native),
    "from noise, 16 x 16": noisy,
    "noised, unguided": enlarged(0),
    "noised, 5 of 15 steps guided": enlarged(5),
}
figure, axes = plt.subplots(len(rows), 6, figsize=(7.4, 4.5), facecolor="white")
for row, (name, pictures) in zip(axes, rows.items(), strict=True):
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture[0].numpy(), cmap="gray", vmin=-2, vmax=2, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(False)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)
figure.subplots_adjust(left=0.3, right=0.995, top=0.995, bottom=0.005, wspace=0.06, hspace=0.06)
figure.savefig(Path(__file__).parent.parent / "staged.png", dpi=110)
