"""One image file to an array of 8-bit pixels: orientation, transparency, channels and size settled in one place."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fokker.errors import FokkerError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "jp2", "avif"})
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}
_EXIF_ORIENTATION = 0x0112
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its pixels are decoded; size is (h, w) as it will be shown."""

    size: tuple[int, int]
    colour: bool
    alpha: bool
    rotated: bool
    truncated: bool
    frames: int


def colour(background: str | Sequence[int]) -> tuple[int, int, int]:
    """The colour under transparent pixels: a name or three numbers 0..255."""
    if isinstance(background, str):
        if background not in COLOURS:
            raise unknown("background", background, COLOURS)
        return COLOURS[background]
    rgb = tuple(int(c) for c in background)
    if len(rgb) != 3 or min(rgb) < 0 or max(rgb) > 255:
        raise FokkerError(f"background={tuple(background)}; give a name or three numbers from 0 to 255")
    return rgb[0], rgb[1], rgb[2]


def _has_alpha(image: "Image") -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _orientation(image: "Image") -> int:
    # reading EXIF costs as much as decoding a small picture, so only where there is some
    if "exif" not in image.info and image.format not in ("TIFF", "WEBP", "AVIF"):
        return 1
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


# segments of a JPEG that say nothing of orientation or further frames: JFIF, tables, restart interval, Adobe, comment
_PLAIN_SEGMENTS = frozenset({0xE0, 0xDB, 0xC4, 0xDD, 0xEE, 0xFE})


def _plain_jpeg(raw: bytes, end: bytes) -> Header | None:
    """The header of a JPEG without EXIF and the like, found several times faster than by opening it; None for any other."""
    if raw[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            size = int.from_bytes(raw[at + 5 : at + 7], "big"), int.from_bytes(raw[at + 7 : at + 9], "big")
            truncated = _ENDINGS["JPEG"] not in end
            return Header(size, raw[at + 9] != 1, False, False, truncated, 1) if min(size) > 0 else None
        if marker not in _PLAIN_SEGMENTS:
            return None
        at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None


def header(raw: bytes, end: bytes = b"") -> Header:
    """Reads size, mode and orientation without decoding, given a file's bytes, or its first and last ones.

    Raises OSError where the file is no image.
    """
    end = end or raw[-512:]
    plain = _plain_jpeg(raw, end)
    if plain is not None:
        return plain
    from PIL import Image

    with Image.open(io.BytesIO(raw)) as image:
        width, height = image.size
        turned = _orientation(image)
        ending = _ENDINGS.get(image.format or "")
        return Header(
            size=(width, height) if turned >= 5 else (height, width),
            colour=image.mode not in ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L"),
            alpha=_has_alpha(image),
            rotated=turned != 1,
            truncated=ending is not None and ending not in end,
            frames=int(getattr(image, "n_frames", 1)),
        )


def _flatten(image: "Image", background: tuple[int, int, int]) -> "Image":
    """Composites transparency on the stated colour and brings odd modes to L or RGB."""
    from PIL import Image

    if _has_alpha(image):
        rgba = image.convert("RGBA")
        flat = Image.new("RGBA", rgba.size, (*background, 255))
        flat.alpha_composite(rgba)
        return flat.convert("RGB")
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        deep = np.asarray(image, dtype=np.float64)
        top = 65535.0 if deep.max(initial=0.0) > 255.0 else 255.0
        return Image.fromarray(np.rint(deep * (255.0 / top)).clip(0, 255).astype(np.uint8))
    return image


def to_pixels(
    image: "Image",
    channels: int,
    size: tuple[int, int] | None = None,
    background: tuple[int, int, int] = COLOURS["white"],
) -> Pixels:
    """A PIL image to uint8 (C, H, W): upright, composited, in 1, 3 or 4 channels, resized and centre-cropped to (h, w)."""
    from PIL import Image, ImageOps

    if size is not None and image.format == "JPEG":
        # libjpeg halves while decoding; twice the target keeps the bicubic step honest
        image.draft(None, (2 * max(size), 2 * max(size)))
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if channels != 4:
        image = _flatten(image, background)
    if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode(
    raw: bytes,
    channels: int,
    size: tuple[int, int] | None = None,
    background: tuple[int, int, int] = COLOURS["white"],
) -> Pixels:
    """Bytes of an image file to uint8 (C, H, W), as `to_pixels`; raises OSError where the file is broken."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            return to_pixels(image, channels, size, background)
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error
