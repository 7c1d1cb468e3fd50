"""Draws docs/domains.png: rollouts of the Kuramoto-Sivashinsky equation, and one-step errors by wave number.

python docs/figures/domains.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

from fokker.checks.pde_refiner import INTERVAL, PASSES, fields, trained
from fokker.forecast import band_error

truth = fields(8, 0, "test", 121, False).batch(range(8))["x"][:, 0, :, None]
surrogates = {"one pass, squared error": trained(0, 0), f"refined, {PASSES} passes": trained(0, PASSES)}
paths = {name: s.rollout(truth[:1, 0], 120) for name, s in surrogates.items()}
figure = plt.figure(figsize=(9, 4.2), layout="constrained")
grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
for row, (name, path) in enumerate({"truth": truth[:1], **paths}.items()):
    axis = figure.add_subplot(grid[row, 0])
    axis.imshow(path[0, :, 0].T, aspect="auto", cmap="RdBu", vmin=-3, vmax=3, extent=(0, 120 * INTERVAL, 0, 32))
    axis.set_ylabel("x")
    axis.set_title(name, fontsize=9, loc="left", pad=3)
    axis.set_xlabel("t" if row == 2 else "")
    if row < 2:
        axis.set_xticklabels([])
axis = figure.add_subplot(grid[:, 1])
waves = range(1, 24)
start, end = truth[:, :-1].flatten(0, 1), truth[:, 1:].flatten(0, 1)
for (name, s), colour in zip(surrogates.items(), ("tab:gray", "tab:blue")):
    axis.plot(waves, band_error(s.step(start), end, [(k, k) for k in waves]), "o-", ms=3, color=colour, label=name)
power = torch.fft.rfft(end.double(), dim=-1).abs().square().flatten(0, -2).sum(0)[1:24]
axis.plot(waves, power / power.max(), "k:", lw=1, label="power of the wave over the greatest")
axis.set(yscale="log", xlabel="wave number", ylabel="one-step error power / power")
axis.legend(frameon=False, fontsize=8, loc="upper left")
axis.spines[["top", "right"]].set_visible(False)
path = Path(__file__).parent.parent / "domains.png"
figure.savefig(path, dpi=110)
# 128 colours are enough for two maps, and a third of the bytes
Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
