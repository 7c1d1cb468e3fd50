"""Restorers trained on real photographs along three anchored processes, four solvers unchanged on each.

    python bench/restoration.py [--samples 48000] [--out bench/results/restoration.json] [--picture docs/restoration.png]

16 x 16 patches of the two photographs that scikit-learn ships, measured by 2 x 2 means with noise 0.05 (range -1 to 1).
One small network of the same kind and size for each process; patches of the test split. PSNR, and what
the eye sees: the energy of fine detail relative to the truth's, for every solver at 8 evaluations. A mean
is best in PSNR and too smooth; a sample has the detail and a lower PSNR.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import provenance
from fokker.data import toy
from fokker.data.degraded import degraded
from fokker.train import load_recipe, train

PROCESSES = {
    "ResShift": {"process": "ResidualShift", "kappa": 1.0},
    "mean-reverting": {"process": "MeanReverting"},
    "RDDM": {"process": "ResidualDenoising", "noise": 0.3},
}
SOLVERS = ("ddim", "dpmpp-2m", "unipc", "residual-ancestral")
DEGRADE = {"operator": "downsample", "factor": 2, "noise_std": 0.05}
NFE, PATCHES = 8, 128


def recipe(process: dict[str, Any], samples: int, folder: Path) -> Path:
    path = folder / "recipe.json"  # JSON is YAML
    tree = {
        "data": {"source": "toy:photos", "n": 8192, "size": [16, 16], "degrade": DEGRADE},
        "net": {"kind": "unet", "width": 24, "mults": [1, 2], "blocks": 1},
        "process": process,
        "conditions": ["y"],
        "out": str(folder / "run"),
        "samples": samples,
        "batch": 16,
        "rate": {"peak": 2e-3, "warmup": 1280},
        "log": {"every": 6400},
        "checkpoint": {"every": samples, "keep": 1},
        "cpu": True,
    }
    path.write_text(json.dumps(tree))
    return path


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((x - truth).square().mean() / 4))


def detail(x: Tensor) -> float:
    """The energy of differences between neighbours."""
    return float((x[..., 1:] - x[..., :-1]).square().mean() + (x[..., 1:, :] - x[..., :-1, :]).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Three anchored processes on photographs, four solvers on each.")
    parser.add_argument("--samples", type=int, default=48_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = degraded(toy("photos", n=PATCHES, split="test", size=(16, 16)), DEGRADE).all()
    x, y = test["x"], test["y"]
    found: dict[str, Any] = {"measured": {"psnr": round(psnr(y, x), 2), "detail": round(detail(y) / detail(x), 3)}}
    shown = [x[:12], y[:12]]
    for name, process in PROCESSES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = train(load_recipe(recipe(process, options.samples, Path(folder))), quiet=True)
        found[name] = {}
        for solver in SOLVERS:
            eps = fk.noise(tuple(x.shape), seed=1)
            with torch.no_grad():
                out = fk.sample(model.denoiser, model.process.start(eps, y), solver=solver, nfe=NFE, end=0, y=y)
            found[name][solver] = {"psnr": round(psnr(out, x), 2), "detail": round(detail(out) / detail(x), 3)}
            if solver == "dpmpp-2m":
                shown.append(out[:12])
        print(name, found[name], flush=True)
    print("measured", found["measured"])
    if options.picture is not None:
        from fokker import pictures

        rows = ["truth", "measured", *PROCESSES]
        pictures.image_grid(torch.cat(shown), options.picture, ncol=12, rows=rows, scale=4)
    if options.out is not None:
        options.out.write_text(json.dumps({"samples": options.samples, "nfe": NFE, **provenance(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
