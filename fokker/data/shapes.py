"""Flat shapes by signed distance, drawn without aliasing at any size: what sprites and moving sprites are made of."""

import numpy as np
from numpy.typing import NDArray

from fokker.data.draws import Floats, Ints

NAMES = ("circle", "square", "triangle", "star", "cross", "ring", "bar")
# the angle after which a shape looks the same again; 0: at every angle
PERIODS = np.array([0.0, np.pi / 2, 2 * np.pi / 3, 2 * np.pi / 5, np.pi / 2, 0.0, np.pi])
COLOURS = {
    "red": (0.90, 0.16, 0.16),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.98, 0.85, 0.15),
    "magenta": (0.85, 0.20, 0.80),
    "cyan": (0.15, 0.80, 0.85),
    "orange": (0.98, 0.55, 0.10),
    "white": (0.95, 0.95, 0.95),
}


def distance(shape: int, u: Floats, v: Floats) -> Floats:
    """Signed distance to the outline of a shape of radius 1 about the origin: negative inside."""
    name = NAMES[shape]
    if name == "circle":
        return np.hypot(u, v) - 0.88
    if name == "ring":
        return np.abs(np.hypot(u, v) - 0.66) - 0.25
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.76
    if name == "bar":
        return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.30)
    if name == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.maximum(np.maximum(a, b) - 0.92, np.minimum(a, b) - 0.30)
    if name == "triangle":
        sides = [
            np.cos(k) * u + np.sin(k) * v for k in (np.pi / 2, np.pi / 2 + 2 * np.pi / 3, np.pi / 2 - 2 * np.pi / 3)
        ]
        return np.asarray(np.maximum.reduce(sides) - 0.52)
    # star: folded to half a spike, whose edge runs from the tip (1, 0) to the notch at radius 0.45 and angle pi / 5
    sector = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + np.pi / 2 + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v)
    notch = 0.45 * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - np.array([1.0, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return np.asarray((radius * np.cos(angle) - 1.0) * normal[0] + radius * np.sin(angle) * normal[1])


def hue_to_rgb(hue: Floats) -> Floats:
    """Hue in [0, 1) to saturated RGB in [0, 1], a last axis of 3."""
    turn = (hue[..., None] + np.array([0.0, 2 / 3, 1 / 3])) % 1.0
    return np.asarray(np.clip(np.abs(6.0 * turn - 3.0) - 1.0, 0.0, 1.0) * 0.8 + 0.15)


def grid(size: tuple[int, int]) -> tuple[Floats, Floats, float]:
    """Centres of pixels as x (1, w) and y (h, 1), and a pixel's width; the shorter side runs from -1 to 1, y downwards."""
    h, w = size
    pixel = 2.0 / min(h, w)
    x = (np.arange(w, dtype=np.float64) + 0.5 - w / 2) * pixel
    y = (np.arange(h, dtype=np.float64) + 0.5 - h / 2) * pixel
    return x[None, :], y[:, None], pixel


def coverage(shape: Ints, pose: Floats, size: tuple[int, int]) -> Floats:
    """How much of each pixel each shape covers: (n, h, w) in [0, 1] from shape (n,) and pose (n, 4) = radius, x, y, angle."""
    x, y, pixel = grid(size)
    radius, cx, cy, angle = (pose[:, k, None, None] for k in range(4))
    dx, dy = (x - cx) / radius, (y - cy) / radius
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    covered = np.zeros_like(u)
    for k in np.unique(shape):
        rows = shape == k
        covered[rows] = np.clip(0.5 - distance(int(k), u[rows], v[rows]) * radius[rows] / pixel, 0.0, 1.0)
    return covered


def paint(
    shape: Ints, rgb: Floats, pose: Floats, size: tuple[int, int], canvas: Floats, block: int = 256
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draws k shapes an image over `canvas` (n or 1, 3, h, w) in [0, 1], the first one first.

    shape (n, k), rgb (n, k, 3), pose (n, k, 4). Returns the pictures as uint8 (n, 3, h, w) and the visible share of each
    shape in each pixel, float32 (n, k, h, w).
    """
    n, k = shape.shape
    pictures = np.empty((n, 3, *size), dtype=np.uint8)
    visible = np.empty((n, k, *size), dtype=np.float32)
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        picture = np.array(
            np.broadcast_to(canvas[rows] if len(canvas) == n else canvas, pictures[rows].shape), dtype=float
        )
        for j in range(k):
            covered = coverage(shape[rows, j], pose[rows, j], size)
            visible[rows, :j] *= (1.0 - covered)[:, None]
            visible[rows, j] = covered
            picture += covered[:, None] * (rgb[rows, j, :, None, None] - picture)
        pictures[rows] = np.rint(picture * 255.0).clip(0, 255)
    return pictures, visible


def phrase(radius: Floats, x: Floats, y: Floats, cuts: tuple[float, float]) -> list[list[str]]:
    """Size and place in words for each shape: [size, vertical, horizontal]; x and y as shares of the half frame."""
    sizes = np.array(["small", "medium", "large"])[np.digitize(radius, cuts)]
    rows = np.array(["top", "middle", "bottom"])[np.digitize(y, (-0.2, 0.2))]
    columns = np.array(["left", "centre", "right"])[np.digitize(x, (-0.2, 0.2))]
    return [[str(a), str(b), str(c)] for a, b, c in zip(sizes, rows, columns, strict=True)]
