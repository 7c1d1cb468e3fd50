"""The pictures of docs/editing.md: python docs/figures/editing.py (about a minute of one core)."""

from pathlib import Path

import torch

import fokker as fk
from fokker import pictures
from fokker.data.toys import sprites
from fokker.edit import AttentionControl, BottleneckShift, HSpace, NullText, edit, exact, infedit, invert

HERE = Path(__file__).parent.parent


def edits() -> None:
    """Sprites turned blue, or red where they were blue, by each method."""
    model = fk.load("sprites")
    denoiser = fk.OnProcess(model.denoiser, fk.VP())
    data = sprites.build(n=10, seed=5, split="test", size=(16, 16))
    x, captions = data.tensors["x"].float() / 127.5 - 1, data.texts["caption"]
    source = model.condition(10, tokens=list(captions))
    other = [c.replace(c.split()[1], "red" if c.split()[1] == "blue" else "blue") for c in captions]
    target = model.condition(10, tokens=other)
    near, far = fk.grids.uniform(50, start=0.8), fk.grids.uniform(50)

    def control(inner: fk.Denoiser) -> fk.Denoiser:
        return AttentionControl(inner, 50, maps=["*attention", "*cross"], share=0.5)

    path = invert(denoiser, x, far, **source)
    text = NullText.fit(denoiser, path, scale=3.0, rate=0.1, **source)
    given = {"grid": far, "scale": 3.0, "control": control, "trajectory": path}
    rows = {
        "given": x,
        "EDICT": exact(denoiser, x, source, target, scale=1.5, grid=near).x,
        "BDIA": exact(denoiser, x, source, target, solver=fk.solve.get("bdia"), scale=1.0, grid=near).x,
        "direct inversion": edit(denoiser, x, source, target, rectify="direct", **given).x,
        "null-text": edit(denoiser, x, source, target, rectify="null-text", null_text=text, **given).x,
        "InfEdit": infedit(denoiser, x, source, target, steps=15, scale=1.5, grid=fk.grids.uniform(15, start=0.7, end=0)),
        "SDEdit": fk.sample(
            fk.guide.CFG(denoiser, 1.5), fk.VP().add_noise(x, fk.noise((10, 3, 16, 16), 0), 0.7), solver="ddim",
            grid=fk.grids.uniform(50, start=0.7), **target,
        ),
    }  # fmt: skip
    everything = torch.cat([v.float() for v in rows.values()])
    pictures.image_grid(everything, HERE / "editing.png", ncol=10, rows=list(rows), scale=3)


def directions() -> None:
    """Digits moved along a direction of the bottleneck that was found from a property of other samples."""
    process = fk.VP()
    denoiser = fk.OnProcess(fk.load("digits").denoiser, process)
    plan = fk.loop.lay(process, "ddim", steps=20, grid="uniform", end=0)
    space = HSpace(denoiser, plan)
    h, x_0 = space.collect(300, (1, 8, 8), seed=1)
    ink = x_0.mean((1, 2, 3))
    found = {"more ink": space.mean_difference(h, ink > ink.median()), "component 1": None, "component 2": None}
    components = space.pca(h, 2)
    for k in range(2):
        found[f"component {k + 1}"] = 2 * components.spread[k] * components.vectors[k]
    start = process.start(fk.noise((3, 1, 8, 8), seed=4))
    rows, names = [], []
    for name, direction in found.items():
        for k in range(3):
            moved = [BottleneckShift(denoiser, direction, s) for s in (-2, -1.3, -0.7, 0, 0.7, 1.3, 2)]
            shifted = [fk.sample(one, start[k : k + 1], plan) for one in moved]
            rows.append(torch.cat(shifted))
            names.append(name if k == 1 else "")
    pictures.image_grid(torch.cat(rows), HERE / "h-space.png", ncol=7, rows=names, scale=5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    edits()
    directions()
