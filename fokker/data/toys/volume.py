"""Volumes: head phantoms made of ellipsoids, single ellipsoids of any pose, and cubes of seismic events."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fokker.data.draws import Draw, Floats, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

KINDS = ("phantom", "ellipsoid", "events")
PHANTOM_FACTORS = ("ventricle", "lesion", "axis_z", "axis_y", "axis_x")
POSE = ("axis_a", "axis_b", "axis_c", "z", "y", "x", *(f"r{i}{j}" for i in range(3) for j in range(3)))
EVENT_FACTORS = tuple(f"{what}{k}" for k in range(3) for what in ("time", "slope_y", "slope_x", "height"))


def build(
    n: int = 128,
    seed: int = 0,
    split: str = "train",
    kind: str = "phantom",
    size: tuple[int, int, int] = (32, 32, 32),
    lesions: float = 0.0,
    masks: bool = False,
) -> Arrays:
    """x (1, d, h, w) in [-1, 1].

    "phantom": a head (bright shell, grey inside) with two dark ventricles whose radius is the ageing factor, five small
    inclusions, and with probability `lesions` a bright lesion; label 1 = "lesion"; condition `factors` (ventricle and lesion
    radius, the head's half axes; lengths in units of half the cube); masks=True adds `mask` (1, d, h, w) of the lesion.
    "ellipsoid": one solid of random axes, place and rotation; condition `factors` (half axes, centre, rotation matrix by
    rows, whose columns are the axes). "events": three planes t = t0 + p_y y + p_x x of a Ricker wavelet; condition `factors`.
    Edges are averaged over a voxel. The axes of the array are z, y, x (time first for events).
    """
    if kind not in KINDS:
        raise unknown("kind of volume", kind, KINDS)
    if len(size) != 3 or min(size) < 2 or not 0.0 <= lesions <= 1.0:
        raise FokkerError(f"size={size}, lesions={lesions}; give (depth, height, width) and a probability")
    if masks and kind != "phantom":
        raise FokkerError(f"masks=True with kind={kind!r}; only phantoms have lesions to mask")
    d, h, w = (int(s) for s in size)
    draw = Draw(f"volume-{kind}", seed, split_ids(n, split))
    if kind == "events":
        cubes, factors = _events(draw, (d, h, w))
        return Arrays(_torch(cubes, factors), "volume", "seismic events", names={"factors": EVENT_FACTORS})
    if kind == "ellipsoid":
        pose = _any_pose(draw)
        inside = ellipsoid(pose[:, :3], pose[:, 3:6], pose[:, 6:].reshape(-1, 3, 3), (d, h, w))
        return Arrays(_torch(2.0 * inside - 1.0, pose), "volume", "ellipsoids", names={"factors": POSE})
    parts = anatomy(draw, lesions)
    cubes, lesion = paint(parts, (d, h, w))
    factors = np.concatenate([parts["ventricle"][:, None], parts["lesion"][:, None], parts["head"]], axis=1)
    tensors = _torch(cubes, factors) | {"label": torch.from_numpy((factors[:, 1] > 0).astype(np.int64))}
    if masks:
        tensors["mask"] = torch.from_numpy(lesion[:, None])
    return Arrays(tensors, "volume", "head phantoms", ("healthy", "lesion"), {"factors": PHANTOM_FACTORS})


def ellipsoid(
    axes: Floats, centre: Floats, rotation: Floats | None, size: tuple[int, int, int], block: int = 16
) -> Floats:
    """The share of each voxel inside an ellipsoid, (n, d, h, w), from half axes (n, 3), centre (n, 3), rotation (n, 3, 3).

    Coordinates z, y, x: the shortest side of the cube runs from -1 to 1.
    """
    voxel = 2.0 / min(size)
    z, y, x = np.meshgrid(*((np.arange(s) + 0.5 - s / 2) * voxel for s in size), indexing="ij")
    points = np.stack([z, y, x], axis=-1).reshape(-1, 3)
    out = np.empty((len(axes), len(points)))
    for start in range(0, len(axes), block):
        rows = slice(start, min(start + block, len(axes)))
        local = points[None] - centre[rows, None]
        if rotation is not None:
            local = np.einsum("npk,nkj->npj", local, rotation[rows])
        scaled = local / axes[rows, None]
        k0 = np.sqrt((scaled**2).sum(-1))
        k1 = np.sqrt(((scaled / axes[rows, None]) ** 2).sum(-1))
        # distance to the surface to first order
        out[rows] = np.clip(0.5 - k0 * (k0 - 1.0) / np.maximum(k1, 1e-12) / voxel, 0.0, 1.0)
    return out.reshape(len(axes), *size)


def _torch(cubes: Floats, factors: Floats) -> dict[str, Tensor]:
    return {"x": torch.from_numpy(cubes[:, None].astype(np.float32)), "factors": torch.from_numpy(factors)}


def _any_pose(draw: Draw) -> Floats:
    """Half axes, centre and rotation matrix, (n, 15); the rotation is uniform (a normalised Gaussian quaternion)."""
    axes, centre = draw.uniform("axes", 3, low=0.25, high=0.75), draw.uniform("centre", 3, low=-0.2, high=0.2)
    q = draw.normal("rotation", 4)
    a, b, c, d = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rotation = np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )
    return np.concatenate([axes, centre, rotation.transpose(2, 0, 1).reshape(-1, 9)], axis=1)


def anatomy(draw: Draw, lesions: float = 0.0) -> dict[str, Floats]:
    """What a phantom is made of, by name: lengths, places and grey levels with a row a phantom.

    All are numbers of which a mean makes sense: `paint` of the mean of two anatomies is the head halfway between them.
    """
    parts = {
        "head": draw.uniform("head", 3, low=0.72, high=0.92),
        "place": draw.uniform("place", 3, low=-0.04, high=0.04),
        "tissue": draw.uniform("tissue", low=0.42, high=0.52),
        "ventricle": draw.uniform("ventricle", low=0.08, high=0.22),
    }
    for k in range(5):
        parts[f"inclusion{k}"] = draw.uniform(f"inclusion{k}", 3, low=-0.45, high=0.45)
        parts[f"inclusion{k}-size"] = draw.uniform(f"inclusion{k}-size", 3, low=0.06, high=0.16)
        parts[f"inclusion{k}-shade"] = draw.uniform(f"inclusion{k}-shade", low=0.30, high=0.62)
    ill = draw.uniform("ill") < lesions
    parts["lesion"] = np.where(ill, draw.uniform("lesion", low=0.08, high=0.18), 0.0)
    way = draw.normal("lesion-way", 3)
    parts["lesion-way"] = way / np.linalg.norm(way, axis=1, keepdims=True) * 0.42
    return parts


def paint(parts: Mapping[str, Floats], size: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """Phantoms in [-1, 1] and masks of their lesions, (n, d, h, w), from their anatomies."""
    head, still = parts["head"], parts["place"]
    skull = ellipsoid(head, still, None, size)
    brain = ellipsoid(head - 0.10, still, None, size)
    volume = 0.95 * skull + (parts["tissue"][:, None, None, None] - 0.95) * brain
    for k in range(5):
        blob = ellipsoid(parts[f"inclusion{k}-size"], still + parts[f"inclusion{k}"], None, size) * brain
        volume += blob * (parts[f"inclusion{k}-shade"][:, None, None, None] - volume)
    axes = parts["ventricle"][:, None] * np.array([1.6, 1.3, 0.8])
    for side in (-1.0, 1.0):
        chamber = ellipsoid(axes, still + np.array([0.05, 0.0, side]) * np.array([1.0, 1.0, 0.19]), None, size)
        volume += chamber * (0.08 - volume)
    radius = parts["lesion"]
    ill = radius > 0
    lesion = np.zeros_like(volume)
    if ill.any():
        where = still[ill] + parts["lesion-way"][ill]
        lesion[ill] = ellipsoid(np.repeat(radius[ill, None], 3, axis=1), where, None, size) * brain[ill]
    volume += lesion * (0.75 - volume)
    return 2.0 * volume - 1.0, lesion


def halfway(
    n: int, seed: int = 0, split: str = "train", size: tuple[int, int, int] = (32, 32, 32)
) -> tuple[Tensor, Tensor, Tensor]:
    """n pairs of healthy phantoms and the one halfway between each pair, exactly: three tensors (n, 1, d, h, w)."""
    parts = anatomy(Draw("volume-phantom", seed, split_ids(2 * n, split)))
    first, second = ({k: v[start::2] for k, v in parts.items()} for start in (0, 1))
    middle = {k: (first[k] + second[k]) / 2 for k in parts}
    one, other, between = (torch.from_numpy(paint(p, size)[0][:, None].astype(np.float32)) for p in (first, second, middle))
    return one, other, between


def _events(draw: Draw, size: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """Cubes (n, time, y, x) of three plane events, and their factors (n, 12); time, y and x run from 0 to 1."""
    t, y, x = (np.linspace(0.0, 1.0, s) for s in size)
    start, slopes = draw.uniform("time", 3, low=0.15, high=0.85), draw.uniform("slopes", 3, 2, low=-0.35, high=0.35)
    height = draw.uniform("height", 3, low=0.35, high=0.9) * np.where(draw.uniform("sign", 3) < 0.5, -1.0, 1.0)
    cube = np.zeros((len(draw), *size))
    for k in range(3):
        delay = slopes[:, k, 0, None, None] * y[:, None] + slopes[:, k, 1, None, None] * x
        arrival = start[:, k, None, None] + delay
        ricker = (np.pi * 3.0 * (t[None, :, None, None] - arrival[:, None])) ** 2
        cube += height[:, k, None, None, None] * (1.0 - 2.0 * ricker) * np.exp(-ricker)
    factors = np.concatenate([start[..., None], slopes, height[..., None]], axis=2).reshape(len(draw), 12)
    return np.clip(cube, -1.0, 1.0), factors
