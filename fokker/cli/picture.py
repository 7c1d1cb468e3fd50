"""Samples as files: a grid of pictures as PNG, or the numbers themselves, with the record of how they were made."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fokker.cli import provenance
from fokker.errors import FokkerError

SMALLEST = 48  # pixels a side under which a picture is enlarged by a whole factor, for people to see it


def tile(x: Tensor, columns: int | None = None) -> NDArray[np.uint8]:
    """Pictures (n, channels, height, width) in [-1, 1] as one picture (rows, columns, 1 or 3) of bytes.

    Raises FokkerError unless there are 1, 3 or 4 channels (of 4, the first three are shown).
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise FokkerError(
            f"samples of shape {tuple(x.shape[1:])} are no pictures; write them as numbers with --out FILE.safetensors"
        )
    n, _, height, width = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, math.ceil(SMALLEST / min(height, width)))
    byte = ((x[:, :3].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    byte = byte.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap, height, width = max(1, scale // 3), height * scale, width * scale
    page = torch.full((byte.shape[1], rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for k, one in enumerate(byte):
        top, left = (k // columns) * (height + gap) + gap, (k % columns) * (width + gap) + gap
        page[:, top : top + height, left : left + width] = one
    return np.ascontiguousarray(page.permute(1, 2, 0).numpy())


def save(path: Path, x: Tensor, record: Mapping[str, Any]) -> str:
    """Write samples to `path` by its ending, with their record; returns the digest of what is in the file."""
    if path.suffix.lower() == ".png":
        return save_page(path, tile(x), record)
    values = x.detach().cpu().contiguous()
    whole = {**record, "digest": provenance.digest(values.numpy())}
    if path.suffix.lower() == ".safetensors":
        from fokker import store

        store.write(path, {"x0": values}, {provenance.CHUNK: whole})
    else:
        np.savez_compressed(path, x0=values.numpy(), fokker=np.array(json.dumps(whole)))
    return str(whole["digest"])


def save_page(path: Path, page: NDArray[np.uint8], record: Mapping[str, Any]) -> str:
    """Write bytes (height, width, 1 or 3) as a PNG with its record; returns the digest of the pixels."""
    from PIL import Image, PngImagePlugin

    whole = {**record, "digest": provenance.digest(page)}
    text = PngImagePlugin.PngInfo()
    text.add_itxt(provenance.CHUNK, json.dumps(whole))
    Image.fromarray(page.squeeze(-1) if page.shape[-1] == 1 else page).save(path, format="PNG", pnginfo=text)
    return str(whole["digest"])
