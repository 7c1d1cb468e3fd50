"""Short clips of sprites or scanned digits that move at constant speed and bounce off the frame."""

import numpy as np
import torch

from fokker.data import shapes
from fokker.data.draws import Draw, Floats, Ints, split_ids
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

KINDS, LAYOUTS = ("sprites", "digits"), ("tchw", "cthw")


def build(
    n: int = 512,
    seed: int = 0,
    split: str = "train",
    frames: int = 16,
    size: tuple[int, int] = (32, 32),
    kind: str = "sprites",
    speed: tuple[float, float] = (0.04, 0.16),
    layout: str = "tchw",
) -> Arrays:
    """x (T, C, h, w) in [-1, 1], or (C, T, h, w) with layout "cthw", which networks over space and time take.

    kind "sprites": one coloured shape (C = 3) that also turns; label: its shape; condition `colour`. "digits": one of
    scikit-learn's digits of the same split (C = 1), twice enlarged; label 0..9. Conditions of both: `velocity` (2,) a frame
    and `track` (T, 2), the centre's x and y in units of half the shorter side. speed: the range of |velocity|.
    """
    if kind not in KINDS:
        raise unknown("kind of video", kind, KINDS)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if frames < 1 or not 0 <= speed[0] <= speed[1]:
        raise FokkerError(f"frames={frames}, speed={speed}; give at least one frame and 0 <= slowest <= fastest")
    h, w = int(size[0]), int(size[1])
    draw = Draw("video", seed, split_ids(n, split))
    half = np.array([w, h]) / min(h, w)
    radius = draw.uniform("size", low=0.25, high=0.45) if kind == "sprites" else np.full(n, min(0.5, *half))
    heading, pace = draw.uniform("heading", high=2 * np.pi), draw.uniform("speed", low=speed[0], high=speed[1])
    velocity = pace[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    reach = np.maximum(half - radius[:, None], 1e-9)
    track = _bounce(draw.uniform("start", 2, low=-1.0, high=1.0) * reach, velocity, reach, frames)
    classes: tuple[str, ...]
    if kind == "sprites":
        picture, label, colour = _sprites(draw, track, radius, (h, w))
        classes, extra = shapes.NAMES, {"colour": torch.from_numpy(colour)}
    else:
        picture, label = _digits(draw, track, (h, w), split)
        classes, extra = tuple(str(k) for k in range(10)), {}
    x = torch.from_numpy(picture)
    tensors = {
        "x": x if layout == "tchw" else x.transpose(1, 2).contiguous(),
        "label": torch.from_numpy(label),
        "velocity": torch.from_numpy(velocity),
        "track": torch.from_numpy(track),
        **extra,
    }
    names = {"velocity": ("x", "y"), "colour": tuple(shapes.COLOURS)}
    return Arrays(tensors, "video", f"moving {kind}", classes, names)


def _bounce(start: Floats, velocity: Floats, reach: Floats, frames: int) -> Floats:
    """Positions (n, T, 2): straight motion folded into [-reach, reach], as a ball between two walls."""
    free = start[:, None] + velocity[:, None] * np.arange(frames)[None, :, None]
    wall = reach[:, None]
    phase = (free + wall) % (4 * wall)
    return np.asarray(np.minimum(phase, 4 * wall - phase) - wall)


def _sprites(draw: Draw, track: Floats, radius: Floats, size: tuple[int, int]) -> tuple[np.ndarray, Ints, Ints]:
    n, frames = track.shape[:2]
    shape, colour = draw.integers("shape", len(shapes.NAMES)), draw.integers("colour", len(shapes.COLOURS))
    start, spin = draw.uniform("angle", high=2 * np.pi), draw.uniform("spin", low=-0.2, high=0.2)
    angle = start[:, None] + spin[:, None] * np.arange(frames)
    pose = np.concatenate([np.repeat(radius, frames)[:, None], track.reshape(-1, 2), angle.reshape(-1, 1)], axis=1)
    rgb = np.array(list(shapes.COLOURS.values()))[colour]
    picture, _ = shapes.paint(
        np.repeat(shape, frames)[:, None],
        np.repeat(rgb, frames, axis=0)[:, None],
        pose[:, None],
        size,
        np.zeros((1, 3, *size)),
    )
    return picture.reshape(n, frames, 3, *size), shape, colour


def _digits(draw: Draw, track: Floats, size: tuple[int, int], split: str) -> tuple[np.ndarray, Ints]:
    from fokker.data.toys import digits

    source = digits.build(split=split)
    which = draw.integers("digit", len(source))
    ink = (source.x[:, 0].numpy().astype(np.float64) + 1.0) / 2.0
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    x, y, _ = shapes.grid(size)
    picture = np.empty((*track.shape[:2], 1, *size), dtype=np.uint8)
    for t in range(track.shape[1]):
        # a digit's 8 pixels span one unit; bilinear between the centres of pixels, nothing beyond them
        column = np.clip((x - track[:, t, 0, None, None]) * 8.0 + 4.5, 0.0, 8.999)
        row = np.clip((y - track[:, t, 1, None, None]) * 8.0 + 4.5, 0.0, 8.999)
        i, j = row.astype(np.int64), column.astype(np.int64)
        a, b, k = row - i, column - j, which[:, None, None]
        upper = padded[k, i, j] * (1 - b) + padded[k, i, j + 1] * b
        lower = padded[k, i + 1, j] * (1 - b) + padded[k, i + 1, j + 1] * b
        picture[:, t, 0] = np.rint((upper * (1 - a) + lower * a) * 255.0)
    return picture, source.label.numpy()[which]
