"""Draws docs/inverse.png: a photograph from half of its pixels, and from a quarter as many random combinations as pixels.

python docs/figures/inverse.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import fokker as fk
from fokker.data.toys.photos import photograph
from fokker.pictures import font
from fokker.restore.operators import CompressedSensing, Mask
from fokker.restore.photograph import Tiling, restore

DRAWS, STEPS = 2, 40
denoiser = fk.load("photos").denoiser
whole = torch.from_numpy(photograph("china", 2).astype(np.float32)) / 127.5 - 1
truth = whole[None, :, 4:132, 24:200]
shape = (3, *truth.shape[2:])
plan = fk.solve.get("renoise", eta=1.0).plan(denoiser.process, fk.grids.get("karras")(STEPS, end=0))
rows = []
for name, operator in (
    ("half of the pixels", Mask(0.5, shape, seed=0)),
    ("0.25 random sums a pixel", CompressedSensing(0.25, shape, block=16)),
):
    y = operator(truth)
    draws = [
        restore(denoiser, operator, y, shape, fk.restore.DDNM, plan, Tiling(shape[1:], 32, 16), k).x0 for k in range(DRAWS)
    ]
    x = torch.cat(draws).mean(0, keepdim=True)
    shown = torch.where(operator.seen(torch.ones_like(truth)) > 0, y, 0.6) if isinstance(operator, Mask) else operator.pinv(y)
    error = 1 - (x - truth).abs().mean(1, keepdim=True).expand_as(x) * 3
    psnr = 10 * torch.log10(4 / (x.clamp(-1, 1) - truth).square().mean())
    print(f"{name}: {psnr:.2f} dB")
    rows.append([(name, shown), (f"restored, {psnr:.1f} dB", x), ("truth", truth), ("error, 3 times", error)])
h, w, gap, head = *shape[1:], 6, 18
page = Image.new("RGB", (4 * (w + gap) + gap, len(rows) * (h + head + gap)), "white")
draw = ImageDraw.Draw(page)
for i, row in enumerate(rows):
    for j, (words, picture) in enumerate(row):
        left, top = gap + j * (w + gap), i * (h + head + gap)
        pixels = ((picture[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        page.paste(Image.fromarray(pixels), (left, top + head))
        draw.text((left, top + 3), words, fill=(31, 36, 48), font=font(11))
# an adaptive palette keeps it below 100 kB
page.quantize(96, dither=Image.Dither.NONE).save(Path(__file__).parents[1] / "inverse.png", optimize=True)
