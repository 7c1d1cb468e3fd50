"""The next batch, made ready while the current one is being trained on."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fokker.data.epochs import batch_indices
from fokker.data.source import Source
from fokker.denoiser import Denoiser
from fokker.errors import FokkerError
from fokker.train.objective import Key, Objective, Tensors


class Feed:
    """`feed.take(first)` is this process's share of the batch at position `first`, in `parts` equal micro-batches.

    What it returns is a pure function of `first`. One batch is prepared ahead on a thread of its own, so that decoding and
    noise cost nothing where a second core is free.
    """

    def __init__(
        self,
        source: Source,
        objective: Objective,
        denoiser: Denoiser,
        batch: int,
        seed: int,
        conditions: tuple[str, ...],
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch < 1 or batch % (world * parts):
            raise FokkerError(
                f"a batch of {batch} does not divide into {world} processes x {parts} accumulated parts; "
                f"use a multiple of {world * parts}"
            )
        self.source, self.objective, self.denoiser = source, objective, denoiser
        self.batch, self.seed, self.conditions, self.device = batch, seed, conditions, device
        share = batch // world
        self.rows = torch.arange(rank * share, (rank + 1) * share).chunk(parts)
        self.rank, self.world = rank, world
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[list[Tensors]]] | None = None

    def take(self, first: int, following: bool = True) -> list[Tensors]:
        """The micro-batches at `first`; `following` says that the batch after it will be wanted too."""
        ready = self._ahead[1].result() if self._ahead and self._ahead[0] == first else self._make(first)
        self._ahead = None
        if following:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "fokker-feed", initializer=torch.set_num_threads, initargs=(1,))
            self._ahead = (first + self.batch, self._pool.submit(self._make, first + self.batch))
        return ready

    def _make(self, first: int) -> list[Tensors]:
        n, shards = len(self.source), self.source.shards
        indices = batch_indices(first, self.batch, n, self.seed, self.rank, self.world, shards)
        whole = self.source.batch(indices)
        parts = []
        offset = 0
        for rows in self.rows:
            part = {k: whole[k][offset : offset + len(rows)] for k in ("x", *self.conditions)}
            offset += len(rows)
            key = Key(self.seed, first, self.batch, rows)
            parts.append(self.objective.draw(self.denoiser, part, key, self.device))
        return parts

    def close(self) -> None:
        """Stop the thread; it starts again when a batch is taken."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._ahead = None
