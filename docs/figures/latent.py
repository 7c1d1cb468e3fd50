"""Draws docs/latent.png: sprites, what the codec keeps of them, and samples of two models for the same multiply-adds.

python docs/figures/latent.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fokker.checks.latent_diffusion import both
from fokker.data import toy


def strip(images: Tensor) -> Tensor:
    """(n, 3, h, w) in [-1, 1] as one row of pictures."""
    framed = torch.nn.functional.pad((images.clamp(-1, 1) + 1) / 2, (1, 1, 1, 1), value=1.0)
    return torch.cat(list(framed), -1).permute(1, 2, 0)


codec, made, pixels, _ = both(0)
new = toy("sprites", n=12, split="test", size=(16, 16)).x
with torch.no_grad():
    rows = {
        "unseen sprites": new,
        "decode(encode(x)), 128 numbers": codec.decode(codec.encode(new)),
        "latent diffusion": codec.decode(made[:12]),
        "pixel diffusion, same multiply-adds": pixels[:12],
    }
figure, axes = plt.subplots(4, 1, figsize=(8, 3.9))
for axis, (name, images) in zip(axes, rows.items(), strict=True):
    axis.imshow(strip(images), interpolation="nearest")
    axis.set_title(name, fontsize=9, loc="left", pad=3)
    axis.set_axis_off()
figure.savefig(Path(__file__).parent.parent / "latent.png", dpi=100, bbox_inches="tight")
