"""The tables and the picture of docs/acceleration.md: python docs/figures/acceleration.py (some minutes of one core).

All ways of one table are timed in turn in one process.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fokker as fk
from fokker import pictures
from fokker.cache import DeepCache, EncoderPropagation, compare, feature_change
from fokker.denoiser import NetworkDenoiser
from fokker.net.layers import seeded
from fokker.quant import CalibrationSet, Quantised, quantize, size
from fokker.quant.quantize import nearest

HERE, PROCESS = Path(__file__).parent.parent, fk.VP()
STEPS = 50


def ways(denoiser: fk.Denoiser, shape: tuple[int, ...], x: Tensor, **cond: Tensor) -> dict[str, Any]:
    """What is compared, each from the same noise."""
    plan = fk.loop.lay(PROCESS, "ddim", steps=STEPS, grid="uniform", end=0)
    one = {k: v[:1].expand(64, *v.shape[1:]) for k, v in cond.items()}
    few = CalibrationSet.from_trajectory(denoiser, plan, shape, 64, seed=1, **one)
    small = quantize(denoiser, few)
    keys = feature_change(denoiser, x[:2], plan, **{k: v[:2] for k, v in cond.items()}).keys(17)
    found: dict[str, Any] = {f"{STEPS} steps": denoiser}
    found |= {f"DeepCache, refresh {n}": DeepCache(denoiser, n) for n in (2, 3, 5)}
    found["17 of 50 keys"] = EncoderPropagation(denoiser, keys)
    found["17 of 50 keys, decoders at once"] = EncoderPropagation(denoiser, keys, plan)
    found["int8"] = small
    found["int8, DeepCache, refresh 3"] = DeepCache(small, 3)
    found["20 steps"] = (denoiser, fk.loop.lay(PROCESS, "ddim", steps=20, grid="uniform", end=0))
    print(f"{size(denoiser) / 1e6:.2f} MB, quantised {size(small) / 1e6:.2f} MB")
    return {"plan": plan, "ways": found}


def zoo(name: str, n: int, **cond: Tensor) -> None:
    model = fk.load(name)
    denoiser = fk.OnProcess(model.denoiser, PROCESS)
    x = PROCESS.start(fk.noise((n, *model.shape), seed=0))
    made = ways(denoiser, model.shape, x, **cond)
    print(f"--- {name}, batch {n}, {torch.get_num_threads()} thread")
    rows = compare(made["ways"], x, made["plan"], repeats=5, **cond)
    for row in rows:
        print(row, f" {rows[0].seconds / row.seconds:.2f} x as fast")
    if name == "digits":
        shown = ["50 steps", "DeepCache, refresh 3", "DeepCache, refresh 5", "17 of 50 keys", "int8"]
        grid = [fk.sample(made["ways"][k], x[:10], made["plan"], label=cond["label"][:10]) for k in shown]
        pictures.image_grid(torch.cat(grid), HERE / "acceleration.png", ncol=10, rows=shown, scale=5)


class Theirs(nn.Module):
    """A U-Net of diffusers in the size of a small latent model, with random weights: for its times alone."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        down, up = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
        with seeded(0):
            self.unet = UNet2DModel(32, 4, 4, block_out_channels=(96, 192, 384), down_block_types=down, up_block_types=up)
        self.eval()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.unet(x, c).sample
        return out


def diffusers() -> None:
    denoiser = NetworkDenoiser(Theirs(), PROCESS)
    x = PROCESS.start(fk.noise((1, 4, 32, 32), seed=0))
    plan = fk.loop.lay(PROCESS, "ddim", steps=9, grid="uniform", end=0)
    print("--- diffusers' UNet2DModel, random weights, 4 x 32 x 32, 9 steps")
    levels = {f"DeepCache, refresh 3, skip {k}": DeepCache(denoiser, 3, k) for k in (0, 2, 5)}
    others = {"3 of 9 keys": EncoderPropagation(denoiser, 3), "3 of 9 keys, at once": EncoderPropagation(denoiser, 3, plan)}
    few = CalibrationSet.from_trajectory(denoiser, plan, (4, 32, 32), 4, seed=1)
    rows = compare({"9 steps": denoiser, **levels, **others, "int8": quantize(denoiser, few)}, x, plan, repeats=2)
    for row in rows:
        print(f"{row.name:<28}{row.seconds:>9.3f} s{row.macs / 1e9:>10.3f} GMAC  {rows[0].seconds / row.seconds:.2f} x as fast")


def best(call: Callable[[], Any], repeats: int = 40) -> float:
    found = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - begin)
    return 1e3 * found


def kernels() -> None:
    """One layer: float32 against int8, with what it costs to quantise its input."""
    print("--- layers, milliseconds")
    for name, layer, x in (
        ("conv 32, 8 x 8, batch 16", nn.Conv2d(32, 32, 3, padding=1), torch.randn(16, 32, 8, 8)),
        ("conv 128, 16 x 16", nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 16, 16)),
        ("conv 320, 32 x 32", nn.Conv2d(320, 320, 3, padding=1), torch.randn(1, 320, 32, 32)),
        ("conv 640, 16 x 16", nn.Conv2d(640, 640, 3, padding=1), torch.randn(1, 640, 16, 16)),
        ("linear 64 -> 128, 16 rows", nn.Linear(64, 128), torch.randn(16, 64)),
        ("linear 320, 4096 rows", nn.Linear(320, 320), torch.randn(4096, 320)),
        ("linear 1280, 256 rows", nn.Linear(1280, 1280), torch.randn(256, 1280)),
    ):
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        layer = layer.to(memory_format=torch.channels_last)
        small = Quantised(layer)
        small.adopt(*nearest(layer.weight, 8))
        small.calibrate(x.min(), x.max())
        with torch.no_grad():
            simulated = small(x)
            small.int8 = True
            full, eight = layer(x), small(x)
            error = float((eight - full).norm() / full.norm())
            same = float((eight - simulated).abs().max() / full.abs().max())
            a, b = best(lambda layer=layer, x=x: layer(x)), best(lambda small=small, x=x: small(x))
        print(f"{name:<28}{a:>9.3f}{b:>9.3f}   {a / b:.1f} x   error {error:.4f}, to its simulation {same:.0e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kernels()
    zoo("digits", 64, label=torch.arange(64) % 10)
    zoo("photos", 4)
    diffusers()
