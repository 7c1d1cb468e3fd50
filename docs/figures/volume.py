"""docs/volume.png: cuts across the slices of ellipsoids rebuilt from two views. `python docs/figures/volume.py`"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fokker.checks._inverse import psnr
from fokker.checks.diffusion_mbir import measured, run
from fokker.restore.proximal import DDS
from fokker.restore.volume import DiffusionMBIR, SliceVariation

PATH = Path(__file__).parents[1] / "volume.png"
SEED, ROWS = 10, (0, 1, 2)


def main() -> None:
    prior, A, x, y = measured(SEED)
    found = {
        "truth": x,
        "variation alone": SliceVariation(A, y, 0.01, 0.1).solve(torch.full_like(x, -1.0)),
        "slice prior alone": run(DDS(prior, A, y, gamma=float("inf")), SEED).x0,
        "both": run(DiffusionMBIR(prior, A, y), SEED).x0,
    }
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(6.4, 4.9), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(ROWS), len(found))
        for column, (name, volume) in enumerate(found.items()):
            for row, k in enumerate(ROWS):
                ax = axes[row, column]
                ax.imshow(volume[k, 0, :, :, 10], cmap="gray", vmin=-1.2, vmax=1.2)
                ax.set(xticks=[], yticks=[])
                if row == 0:
                    ax.set_title(name if column == 0 else f"{name}: {psnr(volume, x):.1f} dB", fontsize=8)
        axes[1, 0].set_ylabel("depth (one slice a row)")
        figure.savefig(PATH)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
