"""Random numbers of the embedded generators: keyed by substrate, field, seed and item, so that an item never depends on n."""

from typing import TypeVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from fokker.errors import FokkerError, unknown
from fokker.keyed import noise, uniform

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T")

SPLITS = ("train", "test", "all")


def split_ids(n: int, split: str) -> Ints:
    """The ids of the first n items of a split of an endless generator: every fifth id is test, the others are train."""
    if n < 1:
        raise FokkerError(f"n={n} items asked for; give n >= 1")
    i = np.arange(n, dtype=np.int64)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return {"train": i + i // 4, "test": 5 * i + 4, "all": i}[split]


class Draw:
    """Numbers for the items `ids` of one substrate: `draw.uniform("position", 2)` is (n, 2), a function of the key alone.

    The key is (substrate, field, seed, id); a generator that gains a field keeps the numbers of the others.
    """

    def __init__(self, substrate: str, seed: int, ids: Ints) -> None:
        self.substrate, self.seed, self.ids = substrate, seed, torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def _index(self, field: str) -> int:
        return crc32(f"{self.substrate}/{field}".encode())

    def uniform(self, field: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Floats:
        """Uniform in (low, high), shape (n, *shape)."""
        u = uniform((len(self), *shape), self.seed, self.ids, "data", self._index(field))
        return np.asarray(low + (high - low) * u.numpy(), dtype=np.float64)

    def normal(self, field: str, *shape: int) -> Floats:
        """Unit normal, shape (n, *shape)."""
        drawn = noise((len(self), *shape), self.seed, self.ids, "data", self._index(field), torch.float64)
        return np.asarray(drawn.numpy(), dtype=np.float64)

    def integers(self, field: str, high: int, *shape: int) -> Ints:
        """Uniform in 0..high-1, shape (n, *shape)."""
        return np.minimum(self.uniform(field, *shape) * high, high - 1).astype(np.int64)

    def ranks(self, field: str, k: int) -> Ints:
        """A permutation of 0..k-1 an item, shape (n, k)."""
        return np.argsort(self.uniform(field, k), axis=1, kind="stable").astype(np.int64)
