"""Many samples in parts that fit into memory: how many at once, and what happens when it was too many.

Noise belongs to a sample, so a set may be cut anywhere: the parts are the whole, up to the rounding of matrix products whose
order of summation depends on the batch.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from fokker.errors import FokkerError

SHARE = 0.5  # of what is free: the rest is for convolution buffers, the states of the run, and neighbours
MOST = 64  # beyond this a batch is hardly faster, and several processes would have nothing to share


def size(
    call: Callable[[], object],
    most: int = MOST,
    device: torch.device | str = "cpu",
    smaller: Callable[[], bool] = lambda: False,
) -> int:
    """How many samples fit at once, from `call()`, which runs one sample: at most `most`, at least 1.

    What the call holds at its peak is held against `SHARE` of the free memory. Where one sample is more than that,
    `smaller()` may change over to a way that takes less (tiles, slices) and say True.
    """
    device = torch.device(device)
    with torch.no_grad():
        fit = _fit(call, device)
        while fit < 1 and smaller():
            fit = _fit(call, device)
    return max(1, min(most, int(fit)))


def _fit(call: Callable[[], object], device: torch.device) -> float:
    available = SHARE * free(device)
    if device.type != "cuda":
        return available / max(1, _laid_out(call))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return 0.0
    return available / max(1, int(torch.cuda.max_memory_allocated(device)) - before)


def _laid_out(call: Callable[[], object]) -> int:
    """The bytes that tensors of the call take at its peak."""
    with _Live() as live:
        call()
    return int(live.peak)


class _Live(TorchDispatchMode):
    """Adds up what operations put out, and takes off what is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = WeakIdKeyDictionary()
        self.now: int = 0
        self.peak: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                self.known.setdefault(given.untyped_storage(), True)  # a weight, or what was counted when it came out
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage() not in self.known:
                self._count(made.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.known[storage] = True
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def free(device: torch.device | str = "cpu") -> int:
    """Bytes that may be taken on a device now: of the GPU's memory, or of the machine's."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 << 30  # where the system does not say: what any machine of today has


def over(
    n: int, batch: int, part: Callable[[int, int], Tensor], smaller: Callable[[], bool] = lambda: False
) -> Tensor:
    """part(first, last) for consecutive ranges of 0 .. n, joined; where memory runs out the batch is halved and it goes on.

    When a single sample does not fit, `smaller()` may change over to a way that takes less (tiles, slices) and say True.
    Raises FokkerError when it cannot.
    """
    found: list[Tensor] = []
    first = 0
    while first < n:
        try:
            found.append(part(first, min(first + batch, n)))
        except (RuntimeError, MemoryError) as problem:
            if not out_of_memory(problem):
                raise
            if (batch == 1 or n - first == 1) and not smaller():
                raise FokkerError("one sample does not fit into memory; give a smaller size or another device") from problem
            batch = (min(batch, n - first) + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            first += len(found[-1])
    return torch.cat(found)


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error means that there was not enough memory; on the CPU torch has no class of its own for it."""
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(problem)
