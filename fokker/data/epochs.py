"""The order of training data as pure functions of one counter, the samples seen so far."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from fokker.errors import FokkerError
from fokker.keyed import uniform

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shards:
    """For items that lie in shards, which are read one after the other: `of` (n,) is each item's shard.

    In every epoch the shards come in another order, `window` of them at a time, and the items of a window are mixed. Whoever
    reads them fetches each shard once an epoch, as a whole, and keeps no more than a window of them.
    """

    of: Ints
    window: int


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int, shards: Shards | None) -> Ints:
    # a 32-bit key an item; the rare ties fall to the lower index, on every machine alike
    keys = uniform((1, n), seed, torch.tensor([epoch]), "data")[0].numpy()
    if shards is None:
        permutation = np.argsort(keys, kind="stable").astype(np.int64)
    else:
        many = int(shards.of.max()) + 1
        turn = np.empty(many, dtype=np.int64)
        drawn = uniform((1, many), seed, torch.tensor([epoch]), "data", index=1)[0].numpy()
        turn[np.argsort(drawn, kind="stable")] = np.arange(many) // shards.window
        permutation = np.lexsort((keys, turn[shards.of])).astype(np.int64)
    permutation.setflags(write=False)
    return permutation


def order(n: int, seed: int = 0, epoch: int = 0, shards: Shards | None = None) -> Ints:
    """The permutation of 0..n-1 in which epoch `epoch` visits a set of n items; read-only int64 (n,)."""
    if n < 1 or epoch < 0 or (shards is not None and (len(shards.of) != n or shards.window < 1)):
        raise FokkerError(f"order of n={n} items in epoch {epoch}; give n >= 1, epoch >= 0 and shards of the same n items")
    return _order(n, seed, epoch, shards)


def batch_indices(
    samples_seen: int, batch: int, n: int, seed: int = 0, rank: int = 0, world: int = 1, shards: Shards | None = None
) -> Ints:
    """The items that process `rank` of `world` trains on after `samples_seen` samples of the whole run; int64 (batch / world,).

    Sample p of the run is item order(n, seed, p // n, shards)[p % n]; `batch` counts over all processes, and rank r takes the
    r-th of `world` equal runs of it, so that the concatenation over ranks is what one process would take. A batch may cross
    the end of an epoch; within an epoch no item comes twice. Raises FokkerError where world does not divide batch.
    """
    if batch < 1 or world < 1 or batch % world or samples_seen < 0 or not 0 <= rank < world:
        near = max(world, round(batch / max(world, 1)) * world)
        raise FokkerError(
            f"a batch of {batch} after {samples_seen} samples for rank {rank} of {world}; "
            f"the batch must be a multiple of the number of processes (say {near}) and 0 <= rank < world"
        )
    share = batch // world
    positions = samples_seen + rank * share + np.arange(share, dtype=np.int64)
    items = np.empty(share, dtype=np.int64)
    for epoch in range(int(positions[0]) // n, int(positions[-1]) // n + 1):
        here = positions // n == epoch
        items[here] = order(n, seed, epoch, shards)[positions[here] % n]
    return items
