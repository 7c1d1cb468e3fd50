"""What a data set is: a map-style source of items, each a sample `x` with its label and conditions."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fokker.data.epochs import Shards
from fokker.errors import FokkerError

Indices = Sequence[int] | range | Tensor | np.ndarray


class Condition(NamedTuple):
    """One thing that is known beside x: its shape per item, whether it is a category, and its names.

    A category (`discrete`) is int64 below len(names), -1 for "unknown"; otherwise it is float32 and `names`, where there
    are any, name its columns.
    """

    shape: tuple[int, ...]
    discrete: bool
    names: tuple[str, ...] = ()


class Source(ABC):
    """A data set: `len(d)`, `d[i] -> {"x", "label", ...}`, `d.batch(indices) -> {"x": (n, *shape), "label": (n,), ...}`.

    x is float32, images in [-1, 1] as (C, H, W); in a data set of tokens it is int64 below len(d.vocabulary). Every item
    has a label, -1 where the set has no classes. `d.conditions` says what else an item carries; `d.texts` holds strings
    (captions, spellings), which never enter a batch. `d.bounds` is the interval that x lies in, None for physical units.
    The order of items is fixed, and `d.fingerprint` changes with the content or the options. `d.shards` tells training to
    visit the items shard by shard, None to visit them anywhere.
    """

    name: str = ""
    about: str = ""
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = (-1.0, 1.0)
    conditions: dict[str, Condition]
    texts: Mapping[str, Sequence[str]]
    skipped: tuple[tuple[str, str], ...] = ()
    shards: Shards | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """The items at `indices` in that order, each tensor stacked along a new first dimension."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for content and options."""

    def __getitem__(self, i: int) -> dict[str, Tensor | int]:
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"item {i} of {self.name!r}, which has {n} items")
        item: dict[str, Tensor | int] = {k: v[0] for k, v in self.batch([i % n]).items()}
        label = item["label"]
        assert isinstance(label, Tensor)
        item["label"] = int(label)
        return item

    def all(self) -> dict[str, Tensor]:
        """Every item as one batch."""
        return self.batch(range(len(self)))

    def __repr__(self) -> str:
        names = ", ".join(self.conditions)
        return f"{self.name}: {len(self)} x {tuple(self.shape)}, {len(self.classes)} classes, conditions: {names}"


def to_float(pixels: Tensor) -> Tensor:
    """8-bit pixels 0..255 to float32 in [-1, 1]: x = p / 127.5 - 1."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def as_index(indices: Indices, n: int) -> Tensor:
    """Indices as an int64 tensor, or FokkerError where one is outside 0..n-1."""
    if isinstance(indices, range):
        index = torch.arange(indices.start, indices.stop, indices.step)
    elif isinstance(indices, Tensor):
        index = indices.to(torch.int64).cpu()
    else:
        index = torch.from_numpy(np.array(indices, dtype=np.int64))
    if index.ndim != 1:
        raise FokkerError(f"indices have shape {tuple(index.shape)}; give a list of item numbers")
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= n):
        raise FokkerError(f"indices run from {int(index.min())} to {int(index.max())}; the set has items 0 to {n - 1}")
    return index


class Arrays(Source):
    """A data set held in memory: tensors with one row an item; x may be uint8, which is scaled to [-1, 1] when fetched.

    `tensors` needs "x" and may have "label" (int64) and any further condition. `names` gives the names of a condition's
    categories (int64) or columns (float32). Raises FokkerError where lengths differ.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        about: str = "",
        classes: Sequence[str] = (),
        names: Mapping[str, Sequence[str]] | None = None,
        vocabulary: Sequence[str] = (),
        texts: Mapping[str, Sequence[str]] | None = None,
        bounds: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        kept = {k: v if v.dtype in (torch.uint8, torch.int64) else v.to(torch.float32) for k, v in tensors.items()}
        x = kept["x"]
        kept.setdefault("label", torch.full((len(x),), -1, dtype=torch.int64))
        for key, value in kept.items():
            if len(value) != len(x):
                raise FokkerError(f"{name}: {key!r} has {len(value)} rows and 'x' has {len(x)}; they must be equal")
        self.name, self.about, self.bounds = name, about, bounds
        self.tensors, self.shape = kept, tuple(x.shape[1:])
        self.classes, self.vocabulary, self.texts = tuple(classes), tuple(vocabulary), dict(texts or {})
        columns = {**(names or {}), "label": self.classes}
        self.conditions = {
            k: Condition(tuple(v.shape[1:]), v.dtype == torch.int64, tuple(columns.get(k, ())))
            for k, v in kept.items()
            if k != "x" and (k != "label" or self.classes)
        }

    def __len__(self) -> int:
        return len(self.tensors["x"])

    @property
    def x(self) -> Tensor:
        """Every x as one tensor (n, *shape)."""
        return self._fetch("x", slice(None))

    @property
    def label(self) -> Tensor:
        """Every label, int64 (n,)."""
        return self.tensors["label"]

    def _fetch(self, key: str, index: Tensor | slice) -> Tensor:
        rows = self.tensors[key][index]
        return to_float(rows) if rows.dtype == torch.uint8 else rows

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        index = as_index(indices, len(self))
        return {key: self._fetch(key, index) for key in self.tensors}

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(repr((self.classes, self.vocabulary, self.bounds)).encode(), digest_size=16)
        for key, value in sorted(self.tensors.items()):
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().data)
        return digest.hexdigest()
