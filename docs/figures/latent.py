"""Draws docs/latent.png and docs/diffusion-autoencoder.png.

python docs/figures/latent.py sprites      # after the stages of bench/latent.py: what three trained models make
python docs/figures/latent.py phantoms     # trains the diffusion autoencoder of its check, seed 0
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import fokker as fk
from fokker.data import toy

DOCS = Path(__file__).parent.parent
CAPTIONS = (
    "large red circle middle centre",
    "small yellow star top left",
    "medium blue square bottom right",
    "large green ring middle centre",
    "medium cyan triangle top right",
    "large magenta cross middle centre",
    "small orange circle bottom left",
    "large white star middle centre",
    "medium red bar middle left",
    "large yellow triangle bottom centre",
)


def strip(images: Tensor) -> Tensor:
    """(n, 3 or 1, h, w) in [-1, 1] as one row of pictures."""
    framed = torch.nn.functional.pad((images.clamp(-1, 1) + 1) / 2, (1, 1, 1, 1), value=1.0)
    return torch.cat(list(framed), -1).permute(1, 2, 0).expand(-1, -1, 3)


def draw(rows: dict[str, Tensor], name: str, width: float, above: tuple[str, ...] = ()) -> None:
    """One row of pictures under each title, into docs."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(width, 1.0 * len(rows)))
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(strip(images), interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left", pad=3)
        axis.set_axis_off()
    if above:
        side = rows[next(iter(rows))].shape[-1] + 2
        for k, text in enumerate(above):
            axes[-1].text((k + 0.5) * side, side + 1, text.replace(" ", "\n"), fontsize=6, ha="center", va="top")
    figure.savefig(DOCS / name, dpi=110, bbox_inches="tight")


@torch.no_grad()
def sprites() -> None:
    runs = Path("runs/latent")
    models = {name: fk.load(runs / f"sprites-{name}.safetensors") for name in ("latent", "pixel")}
    codec, new = models["latent"].codec, toy("sprites", n=10, split="test", size=(16, 16)).x
    rows = {"unseen sprites": new, "reconstruction from 4 x 4 x 8 numbers": codec.decode(codec.encode(new))}
    titles = {"latent": "latent diffusion, 8 calls, by caption", "pixel": "pixel diffusion, as many multiply-adds, 8 calls"}
    for name, title in titles.items():
        m = models[name]
        cond = m.condition(10, tokens=list(CAPTIONS))
        rows[title] = m.codec.decode(fk.sample(m.denoiser, fk.noise((10, *m.x_shape)), steps=8, **cond))
    draw(rows, "latent.png", 8, CAPTIONS)


def phantoms() -> None:
    from fokker.checks.latent_diffusion_autoencoder import SIZE, trained
    from fokker.data.draws import Draw, split_ids
    from fokker.data.toys.volume import anatomy, paint
    from fokker.latent import Direction

    torch.set_num_threads(1)
    auto, known = trained(0)
    torch.set_grad_enabled(False)
    parts = anatomy(Draw("volume-phantom", 1000, split_ids(8, "test")))

    def painted(parts: dict[str, Any]) -> Tensor:
        return torch.from_numpy(paint(parts, SIZE)[0]).float()[:, None]

    def slices(volumes: Tensor) -> Tensor:
        return volumes[:, :, SIZE[0] // 2]

    a = painted(parts)

    way = Direction.fit(auto.encode(known["x"]), known["factors"][:, 0])
    code, noise = auto.encode(a), auto.stochastic(a)
    shares = torch.linspace(0, 1, 7).tolist()
    one, other = a[:1], a[1:2]
    between = [{k: v[:1] + s * (v[1:2] - v[:1]) for k, v in parts.items()} for s in shares]
    rows = {
        "unseen scans, the slice in the middle": slices(a[:7]),
        "reconstruction from both codes": slices(auto.decode(code, noise)[:7]),
        "the 16 numbers of the code alone, another noise": slices(auto.decode(code, seed=3)[:7]),
        "from the first scan to the second, every part on a line: the truth": slices(torch.cat([painted(p) for p in between])),
        "the same by the two codes of both": slices(torch.cat([auto.interpolate(one, other, s) for s in shares])),
        "the same by their voxels": slices(torch.cat([torch.lerp(one, other, s) for s in shares])),
        "the first scan with ventricles from radius - 0.06 to + 0.06 along the probe": slices(
            torch.cat([auto.edit(one, way.unit, way.step(0.06 * (2 * s - 1))) for s in shares])
        ),
    }
    draw(rows, "diffusion-autoencoder.png", 5.5)


if __name__ == "__main__":
    {"sprites": sprites, "phantoms": phantoms}[sys.argv[1]]()
