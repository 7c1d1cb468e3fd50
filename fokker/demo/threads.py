"""How many threads: as many as make an update faster here and now, which on a busy machine is one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fokker.errors import FokkerError
from fokker.net import build

WORTH = 1.15  # how much faster an update must get for more threads to be used
MOST = 4  # pictures of 8 x 8 keep no more busy


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fastest(batch: int = 128, updates: int = 6) -> int:
    """The number of threads of 1, 2, 4 at which forward and backward passes of the network take least, measured."""
    net = build("digits")
    x, c = torch.zeros(batch, 1, 8, 8), torch.zeros(batch)
    label = torch.arange(batch) % 10

    def taken(limit: float) -> float:
        net(x, c, label=label).square().mean().backward()
        begun = time.perf_counter()
        for _ in range(updates):
            net(x, c, label=label).square().mean().backward()
            if time.perf_counter() - begun > limit:  # threads that wait for busy cores may take very long
                return float("inf")
        return time.perf_counter() - begun

    best, least = 1, float("inf")
    for n in (n for n in (1, 2, MOST) if n <= cores()):
        torch.set_num_threads(n)
        now = taken(least / WORTH)
        if now < least:
            best, least = n, now
    return best


@contextmanager
def used(threads: int) -> Iterator[int]:
    """Within the block torch uses this many threads (0: the fastest number); afterwards as many as before."""
    if threads < 0:
        raise FokkerError(f"threads={threads} is not accepted; give how many, or 0 for the fastest number")
    before = torch.get_num_threads()
    try:
        chosen = threads or fastest()
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)
