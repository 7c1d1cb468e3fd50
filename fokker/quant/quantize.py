"""Post-training quantisation: a trained denoiser with layers of few bits, calibrated on the states that it will meet."""

import copy
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.net.taps import taps
from fokker.quant.calibrate import RATIOS, CalibrationSet, Sampled
from fokker.quant.layers import QUANTISABLE, Quantised, affine, levels, to_grid


def quantize(
    denoiser: Denoiser,
    calibration: CalibrationSet | None,
    weight_bits: int = 8,
    act_bits: int = 8,
    ends_bits: int = 8,
    search: bool = True,
    int8: bool = True,
    skip: Iterable[str] = (),
) -> Denoiser:
    """A copy of the denoiser whose linear layers and convolutions are `Quantised`; works wherever the denoiser does.

    Weights: per output channel, symmetric, rounded to the nearest. Inputs: per tensor, on the range that `calibration`
    shows. Of each weight row and each input range the clipping ratio in 0.5 .. 1 of least mean squared error is taken
    (`search`), else the full range. What the network returns, its norms and the products inside attention keep full
    precision.

    calibration           None leaves inputs as they are (weights only)
    weight_bits, act_bits 2 to 16, or 0 for full precision
    ends_bits             of the first and the last layer that run, where fewer bits do the most harm
    int8                  where both are 8 bits, run torch's integer kernels on a CPU; else, and with False, all is simulated in
                          floating point, which costs more than it saves
    skip                  names of layers (or patterns) that stay as they are

    Reference: Shang et al. 2023, arXiv 2211.15736.
    """
    out = copy.deepcopy(denoiser)
    found = {name: m for name, m in out.named_modules() if isinstance(m, QUANTISABLE)}
    if any(isinstance(m, Quantised) for m in out.modules()):
        raise FokkerError("this denoiser is quantised already; start from the one in full precision")
    if not found:
        raise FokkerError("this denoiser has no linear layers or convolutions to quantise")
    order = list(found)
    seen: dict[str, Sampled] = {}
    if calibration is not None:
        seen = collect(out, list(found), calibration)
        order = list(seen)
    skipped = tuple(skip)
    for name in order:
        if any(name == pattern or fnmatchcase(name, pattern) for pattern in skipped):
            continue
        end = name in (order[0], order[-1])
        bits = [max(b, ends_bits) if end and b else b for b in (weight_bits, act_bits if name in seen else 0)]
        layer = Quantised(found[name], *bits)
        if bits[0]:
            layer.adopt(*nearest(layer.original, bits[0], search))
        if bits[1]:
            layer.calibrate(*clipped(seen[name], bits[1], search))
        layer.int8 = int8
        replace(out, name, layer)
    return out


def quantised(module: nn.Module) -> dict[str, Quantised]:
    """The quantised layers by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, Quantised)}


def replace(top: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the module `name`."""
    parent, _, child = name.rpartition(".")
    setattr(top.get_submodule(parent), child, new)


def collect(denoiser: Denoiser, names: list[str], calibration: CalibrationSet, batch: int = 128) -> dict[str, Sampled]:
    """What the inputs of these layers are on the calibration set, in the order in which the layers run."""
    seen: dict[str, Sampled] = {}
    calls = -(-len(calibration) // batch)

    def watched(name: str) -> Callable[..., Any]:
        def around(call: Callable[..., Any], x: Tensor) -> Any:
            seen.setdefault(name, Sampled()).add(x, calls)
            return call(x)

        return around

    with taps(denoiser, around={name: watched(name) for name in names}):
        calibration.shown(denoiser, batch)
    return seen


def nearest(weight: Tensor, bits: int, search: bool = True) -> tuple[Tensor, Tensor]:
    """(whole numbers, scale an output channel): symmetric, each row clipped where its squared error is least."""
    top = 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1)
    most = rows.abs().amax(1).clamp_min(1e-12)
    best, scale = torch.full_like(most, torch.inf), most / top
    for ratio in reversed(RATIOS) if search else (1.0,):
        trial = ratio * most / top
        error = (grid(rows, trial, top) * trial[:, None] - rows).square().sum(1)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, trial, scale)
    return grid(rows, scale, top).reshape(weight.shape), scale


def grid(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    """Rows (channels, n) as whole numbers from -top to top in units of each row's scale."""
    return torch.round(rows / scale[:, None]).clamp(-top, top)


def clipped(seen: Sampled, bits: int, search: bool = True) -> tuple[Tensor, Tensor]:
    """The range (low, high) of an input whose grid has the least mean squared error on what was seen.

    Its zero point is searched with its step. The one that the extremes imply rounds to 0 for a SiLU's outputs, -0.28 to 8 say,
    in few bits, and nothing below zero is left, while a shift by one level costs the high end a fifteenth.
    """
    if not search:
        return seen.low, seen.high
    x, best, chosen = seen.numbers(), torch.inf, (seen.low, seen.high)
    for ratio in reversed(RATIOS):
        scale, zero = affine(ratio * seen.low, ratio * seen.high, bits)
        first, most = int(zero), int(torch.ceil(-seen.low.clamp_max(0) / scale))
        for shift in sorted({min(z, levels(bits)) for z in (first, first + 1, most)}):
            error = float(((to_grid(x, scale, torch.tensor(shift), bits) - shift) * scale - x).square().mean())
            if error < best:
                best, chosen = error, (-shift * scale, (levels(bits) - shift) * scale)
    return chosen


def size(module: nn.Module) -> int:
    """Bytes of all parameters, with quantised weights at their bits and one float32 scale a channel."""
    inside = {id(p) for q in quantised(module).values() for p in [q.layer.weight] if q.weight_bits}
    plain = sum(p.numel() * p.element_size() for p in module.parameters() if id(p) not in inside)
    packed = sum(
        q.integers.numel() * q.weight_bits // 8 + 4 * len(q.w_scale)
        for q in quantised(module).values()
        if q.weight_bits
    )
    return plain + packed
