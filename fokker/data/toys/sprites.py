"""Sprites: coloured shapes with known factors, captions and masks, drawn exactly at any size."""

from collections.abc import Sequence

import numpy as np
import torch

from fokker.data import shapes as draw_shapes
from fokker.data.draws import Draw, Floats, Ints, split_ids
from fokker.data.source import Arrays
from fokker.data.words import PAD, Words
from fokker.errors import FokkerError, unknown

SIZE_WORDS, ROW_WORDS, COLUMN_WORDS = (
    ("small", "medium", "large"),
    ("top", "middle", "bottom"),
    ("left", "centre", "right"),
)
VOCABULARY = (PAD, "and", *SIZE_WORDS, *draw_shapes.COLOURS, *draw_shapes.NAMES, *ROW_WORDS, *COLUMN_WORDS)
FACTORS = ("size", "x", "y", "cos", "sin")
BACKGROUNDS = ("black", "grey", "gradient")
_RADII = {1: (0.25, 0.60), 2: (0.20, 0.40), 3: (0.20, 0.40), 4: (0.20, 0.40)}


def tokenizer(objects: int = 1) -> Words:
    """The captions' tokenizer: size, colour, shape, row and column a sprite, joined by `and`."""
    return Words(VOCABULARY, 6 * objects - 1)


def build(
    n: int = 4096,
    seed: int = 0,
    split: str = "train",
    size: tuple[int, int] = (32, 32),
    objects: int = 1,
    shapes: Sequence[str] = draw_shapes.NAMES,
    colours: Sequence[str] = tuple(draw_shapes.COLOURS),
    hue: bool = False,
    rotate: bool = True,
    background: str = "black",
    alpha: bool = False,
    masks: bool = False,
    depth: bool = False,
) -> Arrays:
    """x (3, h, w) in [-1, 1]: `objects` (1 to 4) sprites a picture, each in its own quarter where there are several.

    label: the (first) sprite's shape, numbered as in `classes`, the shapes asked for. Conditions: `colour`, `factors` (size =
    radius over half the shorter side, x, y in those units, cos and sin of the angle), `tokens` (a caption of the closed
    vocabulary; the strings are texts["caption"]), and for several objects `shape`; with k objects each has a leading axis k.
    hue: colours from the whole circle, with a condition `hue`; the caption then names the nearest. alpha: a fourth channel
    of opacity, 0.3 to 1 inside the sprite, over colour that fills the frame; condition `opacity`. masks: the visible share
    of each sprite a pixel, (k, h, w). depth: (1, h, w), 0.15 / radius on a sprite (smaller is farther), 1 behind it. One
    seed draws the same sprites at every size of the same proportions.
    """
    _validate(objects, shapes, colours, background)
    if alpha and objects != 1:
        raise FokkerError(f"alpha=True with {objects} objects; a picture with opacity has one object")
    h, w = int(size[0]), int(size[1])
    ids = split_ids(n, split)
    draw = Draw("sprites", seed, ids)
    shape = np.array([draw_shapes.NAMES.index(s) for s in shapes])[draw.integers("shape", len(shapes), objects)]
    colour, rgb, turn = _colours(draw, colours, objects, hue)
    pose = _pose(draw, shape, (h, w), rotate)
    # the smaller sprite is the farther one and is drawn first
    far_first = np.argsort(pose[:, :, 0], axis=1, kind="stable")
    order = (np.arange(n)[:, None], far_first)
    picture, seen = draw_shapes.paint(shape[order], rgb[order], pose[order], (h, w), _canvas(draw, background, (h, w)))
    visible = np.empty_like(seen)
    visible[order] = seen
    captions = _captions(shape, colour, pose, (h, w))
    factors = np.concatenate([pose[:, :, :3], np.cos(pose[:, :, 3:]), np.sin(pose[:, :, 3:])], axis=2)
    numbered = np.array([list(shapes).index(s) if s in shapes else -1 for s in draw_shapes.NAMES])[shape]
    tensors = {"x": picture, "label": numbered[:, 0], "colour": colour, "factors": factors}
    if objects > 1:
        tensors["shape"] = numbered
    if hue:
        tensors["hue"] = turn
    if objects == 1:
        tensors |= {k: v[:, 0] for k, v in tensors.items() if k in ("colour", "factors", "hue")}
    if alpha:
        opacity = draw.uniform("opacity", 1, low=0.3, high=1.0)
        plane = np.rint(visible * opacity[..., None, None] * 255).astype(np.uint8)
        flat = np.broadcast_to(np.rint(rgb[:, 0, :, None, None] * 255).astype(np.uint8), (n, 3, h, w))
        tensors |= {"x": np.concatenate([flat, plane], axis=1), "opacity": opacity}
    if masks:
        tensors["masks"] = visible
    if depth:
        distance = (0.15 / pose[:, :, 0])[..., None, None]
        tensors["depth"] = (visible * distance).sum(1, keepdims=True) + 1.0 - visible.sum(1, keepdims=True)
    torches = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}
    torches["tokens"] = tokenizer(objects).encode(captions)
    names = {"colour": tuple(draw_shapes.COLOURS), "shape": tuple(shapes), "factors": FACTORS, "tokens": VOCABULARY}
    return Arrays(torches, "sprites", "procedural sprites", tuple(shapes), names, texts={"caption": captions})


def _validate(objects: int, shapes: Sequence[str], colours: Sequence[str], background: str) -> None:
    if objects not in _RADII:
        raise FokkerError(f"objects={objects}; give 1 to 4 sprites a picture")
    for kind, given, accepted in (
        ("shape", shapes, draw_shapes.NAMES),
        ("colour", colours, tuple(draw_shapes.COLOURS)),
    ):
        if not given:
            raise FokkerError(f"no {kind}s given; choose from {', '.join(accepted)}")
        for name in given:
            if name not in accepted:
                raise unknown(kind, name, accepted)
    if background not in BACKGROUNDS:
        raise unknown("background", background, BACKGROUNDS)


def _colours(draw: Draw, colours: Sequence[str], objects: int, hue: bool) -> tuple[Ints, Floats, Floats]:
    """Colour numbers (n, k) of the palette, RGB (n, k, 3) and hues (n, k)."""
    palette = np.array(list(draw_shapes.COLOURS.values()))
    turn = draw.uniform("hue", objects)
    if hue:
        rgb = draw_shapes.hue_to_rgb(turn)
        return ((rgb[:, :, None] - palette) ** 2).sum(-1).argmin(-1).astype(np.int64), rgb, turn
    allowed = np.array([list(draw_shapes.COLOURS).index(c) for c in colours])
    colour = allowed[draw.integers("colour", len(colours), objects)].astype(np.int64)
    return colour, palette[colour], turn


def _pose(draw: Draw, shape: Ints, size: tuple[int, int], rotate: bool) -> Floats:
    """Radius, x, y, angle of each sprite, (n, k, 4); every sprite lies inside the frame, or its own quarter of it."""
    n, k = shape.shape
    half = np.array([size[1], size[0]]) / min(size)
    low, high = _RADII[k]
    radius = draw.uniform("size", k, low=low, high=high)
    place = draw.uniform("place", k, 2, low=-1.0, high=1.0)
    centre = np.zeros((n, k, 2))
    if k > 1:
        quarter = draw.ranks("quarter", 4)[:, :k]
        half = half / 2
        centre = np.stack([quarter % 2, quarter // 2], axis=-1) * 2 * half - half
    middle = centre + place * np.maximum(half - radius[..., None], 0.0)
    angle = draw.uniform("angle", k) * draw_shapes.PERIODS[shape] * rotate
    return np.concatenate([radius[..., None], middle, angle[..., None]], axis=2)


def _canvas(draw: Draw, background: str, size: tuple[int, int]) -> Floats:
    if background == "black":
        return np.zeros((1, 3, *size))
    if background == "grey":
        return np.full((1, 3, *size), 0.4)
    x, y, _ = draw_shapes.grid(size)
    angle, level = draw.uniform("gradient", low=0.0, high=2 * np.pi), draw.uniform("level", 3, low=0.1, high=0.5)
    slope = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    return np.clip(level[:, :, None, None] + 0.15 * slope[:, None], 0.0, 1.0)


def _captions(shape: Ints, colour: Ints, pose: Floats, size: tuple[int, int]) -> list[str]:
    low, high = _RADII[shape.shape[1]]
    cuts = (low + (high - low) / 3, high - (high - low) / 3)
    half = np.array([size[1], size[0]]) / min(size)
    colour_names = list(draw_shapes.COLOURS)
    said: list[list[str]] = [[] for _ in range(len(shape))]
    for j in range(shape.shape[1]):
        words = draw_shapes.phrase(pose[:, j, 0], pose[:, j, 1] / half[0], pose[:, j, 2] / half[1], cuts)
        for i, (big, row, column) in enumerate(words):
            said[i].append(f"{big} {colour_names[colour[i, j]]} {draw_shapes.NAMES[shape[i, j]]} {row} {column}")
    return [" and ".join(parts) for parts in said]
