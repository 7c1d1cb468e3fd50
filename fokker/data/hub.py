"""Image data sets of the Hugging Face hub, or saved in their format (extra [hf])."""

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fokker.data.decode import colour, to_pixels
from fokker.data.source import Condition, Indices, Source, as_index, to_float
from fokker.errors import FokkerError, unknown


def open_hub(
    name: str,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    background: str | Sequence[int] = "white",
) -> "Hub":
    """An image data set by its hub name (downloaded, its size told first), or a folder that `datasets` saved to disk.

    size: (h, w), resized and centre-cropped; needed where images differ. image, label: the columns, by default the first
    image and the first class column. Raises FokkerError where `datasets` is not installed or has no such column.
    """
    try:
        import datasets
    except ImportError:
        raise FokkerError("hf:NAME needs the package 'datasets'; install it with pip install 'fokker[hf]'") from None
    table: Any
    if Path(name).is_dir() and any((Path(name) / f).exists() for f in ("state.json", "dataset_dict.json")):
        table = datasets.load_from_disk(name)
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise unknown("split", split, table)
            table = table[split]
    else:
        try:
            bytes_needed = datasets.load_dataset_builder(name).info.download_size
            stated = f"{bytes_needed / 2**20:.0f} MiB" if bytes_needed else "a download of unstated size"
            print(f"{name} from the Hugging Face hub: {stated}", file=sys.stderr)
            table = datasets.load_dataset(name, split=split)
        except Exception as error:  # the hub client raises many kinds; the user needs one sentence
            raise FokkerError(f"hf:{name} cannot be loaded ({type(error).__name__}: {str(error)[:200]})") from error
    features = table.features
    image = image or next((k for k, v in features.items() if isinstance(v, datasets.Image)), None)
    if image is None or image not in features:
        raise unknown("image column", image, features)
    label = label or next((k for k, v in features.items() if isinstance(v, datasets.ClassLabel)), None)
    if label is not None and label not in features:
        raise unknown("label column", label, features)
    classes = tuple(features[label].names) if label and isinstance(features[label], datasets.ClassLabel) else ()
    return Hub(name, table, image, label, classes, size, channels, colour(background))


class Hub(Source):
    """A table of `datasets` behind the contract of a Source; made by `open_hub`, which describes the options."""

    def __init__(
        self,
        name: str,
        table: Any,
        image: str,
        label: str | None,
        classes: tuple[str, ...],
        size: tuple[int, int] | None,
        channels: int,
        background: tuple[int, int, int],
    ) -> None:
        if channels not in (1, 3, 4):
            raise FokkerError(f"channels={channels}; give 1 (grey), 3 (colour) or 4 (colour and opacity)")
        self.name, self.about = f"hf:{name}", "a Hugging Face data set"
        self._table, self._image, self._label = table, image, label
        self._resize = None if size is None else (int(size[0]), int(size[1]))
        self._channels, self._background = channels, background
        first = to_pixels(table[0][image], channels, self._resize, background)
        self.shape, self.classes = tuple(first.shape), classes
        self.conditions = {"label": Condition((), True, classes)} if classes else {}
        self.texts = {}

    def __len__(self) -> int:
        return len(self._table)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        index = as_index(indices, len(self)).tolist()
        rows = self._table[index]
        images = [to_pixels(im, self._channels, self._resize, self._background) for im in rows[self._image]]
        odd = next((k for k, p in enumerate(images) if p.shape != self.shape), None)
        if odd is not None:
            raise FokkerError(
                f"{self.name}: item {index[odd]} is {images[odd].shape}, item 0 {self.shape}; give size=(h, w)"
            )
        labels = rows[self._label] if self._label else [-1] * len(index)
        return {"x": to_float(torch.from_numpy(np.stack(images))), "label": torch.tensor(labels, dtype=torch.int64)}

    @cached_property
    def fingerprint(self) -> str:
        facts = [self.name, self._table._fingerprint, self.shape, self._resize, self._background, self.classes]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
