"""Grids of images: pixels stay pixels (nearest enlargement), every row and column says what it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fokker.errors import FokkerError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

INK, MUTED, PAPER, MISSING = (31, 36, 48), (107, 114, 128), (255, 255, 255), (203, 213, 225)


def to_bytes(x: Tensor, limits: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """Images (n, 1 or 3, h, w) with values in `limits` as uint8 (n, h, w, 3); what is not finite becomes pale blue-grey."""
    low, high = limits
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise FokkerError(f"images of shape {tuple(x.shape)}: give (n, channels, height, width) with 1 or 3 channels")
    if not low < high:
        raise FokkerError(f"limits={limits} are not accepted; give (black, white) with black below white")
    x = x.detach().to("cpu", torch.float64).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    known = x.isfinite().all(dim=-1, keepdim=True)
    levels = ((x.nan_to_num(low) - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)
    return torch.where(known, levels, torch.tensor(MISSING, dtype=torch.uint8))


def font(size: int, bold: bool = False) -> "ImageFont.FreeTypeFont":
    """The house's sans serif, the same as in the charts, at a size in pixels."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def save(picture: "Image.Image", path: str | Path, text: Mapping[str, str] | None = None) -> Path:
    """Write a PNG, folders made where missing, with `text` (provenance) as its text chunks."""
    from PIL import PngImagePlugin

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise FokkerError(f"{path.name} is not a PNG file name; pictures are written without loss, so end it in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    picture.save(path, pnginfo=chunks, optimize=True)
    return path


@dataclass(frozen=True)
class _Sheet:
    """Where things go on a grid: tiles of one size, gaps, and margins as wide as their words."""

    tile: tuple[int, int]
    ncol: int
    gap: int
    left: int
    top: int
    title: int

    def corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, self.ncol)
        width, height = self.tile
        return self.left + column * (width + self.gap), self.top + row * (height + self.gap + self.title) + self.title


def _fitted(draw: "ImageDraw.ImageDraw", words: str, width: int, size: int) -> tuple[str, "ImageFont.FreeTypeFont"]:
    """Words cut to a width: smaller letters first, then an ellipsis."""
    for smaller in range(size, 7, -1):
        if draw.textlength(words, font(smaller)) <= width:
            return words, font(smaller)
    while len(words) > 1 and draw.textlength(words + "…", font(8)) > width:
        words = words[:-1]
    return words.rstrip() + "…", font(8)


def image_grid(
    x: Tensor,
    path: str | Path | None = None,
    ncol: int | None = None,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    heading: str = "",
    scale: int | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
    text: Mapping[str, str] | None = None,
) -> "Image.Image":
    """Images (n, 1 or 3, h, w) row by row as one picture, enlarged `scale` times without smoothing, written to `path` if given.

    titles   words above each image         rows, columns  words beside each row, above each column
    heading  words above the whole picture  text           provenance for the PNG's text chunks
    limits   the values that are black and white; those that are not finite are drawn pale blue-grey

    Raises FokkerError where the numbers of words and images do not fit.
    """
    from PIL import Image, ImageDraw

    levels = to_bytes(x, limits)
    n, height, width = levels.shape[:3]
    if n == 0:
        raise FokkerError("there are no images to show; give at least one")
    ncol = ncol or (
        len(columns) if columns else min(n, -(-n // len(rows)) if rows else max(1, round((n * 1.4) ** 0.5)))
    )
    nrow = -(-n // ncol)
    for words, wanted, what in ((titles, n, "titles"), (rows, nrow, "rows"), (columns, ncol, "columns")):
        if words is not None and len(words) != wanted:
            raise FokkerError(f"{len(words)} {what} for {wanted} places ({n} images, {ncol} a row); give one each")
    target = 96 if n <= 24 else 64 if n <= 120 else 40
    scale = scale or max(1, round(target / max(height, width)))
    tile = (width * scale, height * scale)
    size = max(10, min(14, tile[0] // 6))
    gap = max(2, min(tile) // 24)

    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(int(ruler.textlength(w, font(size))) + 12 for w in rows or [""]) if rows else 0
    margin, header = 8, size + 12 if heading else 0
    top = margin + header + (size + 8 if columns else 0)
    sheet = _Sheet(tile, ncol, gap, margin + left, top, size + 6 if titles else 0)
    right, bottom = sheet.corner(nrow * ncol - 1)
    total = max(right + tile[0] + margin, int(ruler.textlength(heading, font(size + 2, bold=True))) + 2 * margin)
    picture = Image.new("RGB", (total, bottom + tile[1] + margin), PAPER)
    draw = ImageDraw.Draw(picture)
    if heading:
        draw.text((margin, margin), heading, INK, font(size + 2, bold=True))
    for index in range(n):
        corner = sheet.corner(index)
        picture.paste(Image.fromarray(levels[index].numpy()).resize(tile, Image.Resampling.NEAREST), corner)
        if titles:
            words, face = _fitted(draw, titles[index], tile[0] + gap - 2, size)
            draw.text((corner[0] + tile[0] // 2, corner[1] - 3), words, INK, face, anchor="ms")
    for row, words in enumerate(rows or []):
        x0, y0 = sheet.corner(row * ncol)
        draw.text((x0 - 8, y0 + tile[1] // 2), words, INK, font(size), anchor="rm")
    for column, words in enumerate(columns or []):
        words, face = _fitted(draw, words, tile[0] + gap - 2, size)
        draw.text((sheet.corner(column)[0] + tile[0] // 2, margin + header + size), words, INK, face, anchor="ms")
    if path is not None:
        save(picture, path, text)
    return picture


def before_after(
    measurement: Tensor,
    restored: Tensor | Mapping[str, Tensor],
    truth: Tensor,
    path: str | Path | None = None,
    captions: Sequence[str] | None = None,
    heading: str = "",
    scale: int | None = None,
    limits: tuple[float, float] = (-1.0, 1.0),
    text: Mapping[str, str] | None = None,
) -> "Image.Image":
    """Rows of measurement, restored images (one row a method), truth, and their absolute errors on one common scale.

    All (n, 1 or 3, h, w); a smaller measurement is enlarged by whole pixels, and pixels that were not measured may be NaN.
    Errors are averaged over channels and drawn from white (none) to dark (the largest, which the row says).
    """
    methods = restored if isinstance(restored, Mapping) else {"restored": restored}
    for name, images in methods.items():
        if images.shape != truth.shape:
            raise FokkerError(
                f"{name} has shape {tuple(images.shape)} and the truth {tuple(truth.shape)}; they must agree"
            )
    shown = measurement.detach().cpu()
    if (
        shown.ndim != 4
        or truth.shape[2] % shown.shape[2]
        or truth.shape[3] % shown.shape[3]
        or len(shown) != len(truth)
    ):
        raise FokkerError(
            f"a measurement of shape {tuple(shown.shape)} does not fit over a truth of {tuple(truth.shape)}; "
            "give as many images, of a size that divides the true one"
        )
    for axis in (2, 3):
        shown = shown.repeat_interleave(truth.shape[axis] // shown.shape[axis], dim=axis)
    low, high = limits
    errors = [(images - truth).detach().cpu().double().abs().mean(dim=1) for images in methods.values()]
    largest = max(float(e.max()) for e in errors) or 1.0
    parts = [shown, *methods.values(), truth]
    bands = [(p.detach().cpu().double().expand(-1, 3, -1, -1) - low) / (high - low) for p in parts]
    bands += [_heat(e / largest) for e in errors]
    labels = ["measured", *methods, "truth", *(f"error of {m}" if len(methods) > 1 else "error" for m in methods)]
    labels[-1] += f" (dark: {largest:.2g})"
    return image_grid(
        torch.cat(bands),
        path,
        ncol=len(truth),
        rows=labels,
        columns=captions,
        heading=heading,
        scale=scale or max(1, round(80 / max(truth.shape[2:]))),
        limits=(0.0, 1.0),
        text=text,
    )


def _heat(share: Tensor) -> Tensor:
    """Shares (n, h, w) in [0, 1] as colours (n, 3, h, w) from white to dark, even in lightness, safe for the colour-blind."""
    import matplotlib

    colours = torch.as_tensor(matplotlib.colormaps["magma_r"](share.clamp(0, 1).numpy())[..., :3])
    return colours.permute(0, 3, 1, 2).to(torch.float64)
