"""Samples as files: a grid of pictures as PNG, or the numbers themselves, with the record of how they were made."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fokker.cli import provenance

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 48  # pixels a side under which a picture is enlarged by a whole factor, for people to see it


def tile(pictures: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Pictures (n, height, width) or (n, height, width, 3 or 4) as one of them, in rows with a white gap."""
    n, height, width = pictures.shape[:3]
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, math.ceil(SMALLEST / min(height, width)))
    large = pictures.repeat(scale, 1).repeat(scale, 2)
    gap, height, width = max(1, scale // 3), height * scale, width * scale
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap)
    page = np.full((*size, *pictures.shape[3:]), 255, dtype=np.uint8)
    for k, one in enumerate(large):
        top, left = (k // columns) * (height + gap) + gap, (k % columns) * (width + gap) + gap
        page[top : top + height, left : left + width] = one
    return page


def save_numbers(path: Path, values: "Tensor", record: Mapping[str, Any]) -> str:
    """Write samples as a safetensors file or an npz archive, with their record; returns the digest of the numbers."""
    values = values.detach().cpu().contiguous()
    whole = {**record, "digest": provenance.digest(values.numpy())}
    if path.suffix.lower() == ".safetensors":
        from fokker import store

        store.write(path, {"x0": values}, {provenance.CHUNK: whole})
    else:
        np.savez_compressed(path, x0=values.numpy(), fokker=np.array(json.dumps(whole)))
    return str(whole["digest"])


def save_page(path: Path, page: NDArray[np.uint8], record: Mapping[str, Any]) -> str:
    """Write bytes (height, width) or (height, width, 3 or 4) as a PNG with its record; returns the digest of the pixels."""
    from PIL import Image, PngImagePlugin

    whole = {**record, "digest": provenance.digest(page)}
    text = PngImagePlugin.PngInfo()
    text.add_itxt(provenance.CHUNK, json.dumps(whole))
    Image.fromarray(page).save(path, format="PNG", pnginfo=text)
    return str(whole["digest"])
