"""Hyperspectral cubes: a few materials with smooth spectra, mixed linearly by smooth abundances."""

import numpy as np
import torch

from fokker.data.draws import Draw, Floats, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError

_WAVES = 4  # the highest spatial frequency of an abundance, in periods a frame


def build(
    n: int = 64,
    seed: int = 0,
    split: str = "train",
    size: tuple[int, int] = (32, 32),
    bands: int = 16,
    materials: int = 3,
    sharpness: float = 3.0,
) -> Arrays:
    """x (bands, h, w) in [-1, 1]: x = 2 sum_r S_r e_r - 1, S >= 0, sum_r S_r = 1; rank `materials` exactly, shift included.

    Abundances S are the softmax of `sharpness` times random sums of long waves; spectra e_r lie in [0.05, 0.95], each a sum of
    three broad bumps over the bands. Conditions: `abundances` (materials, h, w) and `endmembers` (materials, bands).
    """
    if bands < 1 or not 1 <= materials <= 16 or sharpness < 0:
        raise FokkerError(
            f"bands={bands}, materials={materials}, sharpness={sharpness}; give 1 to 16 materials, sharpness >= 0"
        )
    h, w = int(size[0]), int(size[1])
    draw = Draw("hyperspectral", seed, split_ids(n, split))
    field = sharpness * _smooth(draw, materials, (h, w))
    weight = np.exp(field - field.max(axis=1, keepdims=True))
    abundance = weight / weight.sum(axis=1, keepdims=True)
    spectra = _spectra(draw, materials, bands)
    cube = np.zeros((n, bands, h, w))
    for r in range(materials):
        cube += spectra[:, r, :, None, None] * abundance[:, r, None]
    tensors = {"x": 2.0 * cube - 1.0, "abundances": abundance, "endmembers": spectra}
    return Arrays(
        {k: torch.from_numpy(v) for k, v in tensors.items()}, "hyperspectral", "linear mixtures of few materials"
    )


def _smooth(draw: Draw, materials: int, size: tuple[int, int]) -> Floats:
    """Random fields (n, materials, h, w) of unit variance: waves of at most _WAVES periods, longer ones stronger."""
    y, x = (2 * np.pi * (np.arange(s) + 0.5) / s for s in size)
    field = np.zeros((len(draw), materials, *size))
    power = 0.0
    for a in range(_WAVES + 1):
        for b in range(-_WAVES, _WAVES + 1):
            if a * a + b * b > _WAVES**2 or (a == 0 and b <= 0):
                continue
            scale = 1.0 / (a * a + b * b)
            wave = draw.normal(f"wave{a},{b}", materials, 2) * scale
            angle = a * y[:, None] + b * x
            field += wave[:, :, 0, None, None] * np.cos(angle) + wave[:, :, 1, None, None] * np.sin(angle)
            power += scale**2
    return np.asarray(field / np.sqrt(power))


def _spectra(draw: Draw, materials: int, bands: int) -> Floats:
    """Spectra (n, materials, bands) in [0.05, 0.95]."""
    place = np.linspace(0.0, 1.0, bands)
    centre, width = draw.uniform("centre", materials, 3, 1), draw.uniform("width", materials, 3, 1, low=0.08, high=0.4)
    height, floor = (
        draw.uniform("height", materials, 3, 1, low=0.1, high=0.3),
        draw.uniform("floor", materials, 1, high=0.9),
    )
    bumps = (height * np.exp(-((place - centre) ** 2) / (2 * width**2))).sum(axis=2)
    return np.asarray(0.05 + 0.9 * np.clip(bumps + floor * (1 - bumps), 0.0, 1.0))
