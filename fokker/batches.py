"""Many samples in parts that fit into memory: how many at once, and what happens when it was too many.

Noise belongs to a sample, so a set may be cut anywhere: the parts are the whole, up to the rounding of matrix products whose
order of summation depends on the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError

SHARE = 0.5  # of what is free: the rest is for convolution buffers, the states of the run, and neighbours
MOST = 64  # beyond this a batch is hardly faster, and several processes would have nothing to share


def size(model: nn.Module, call: Callable[[], object], most: int = MOST, device: torch.device | str = "cpu") -> int:
    """How many samples fit at once, from `call()`, which runs `model` on one sample: at most `most`, at least 1.

    On a GPU what the call took at its peak is held against `SHARE` of the free memory; elsewhere what its innermost layers put
    out, added up as if nothing were freed.
    """
    with torch.no_grad():
        taken = _peak(call, torch.device(device)) if torch.device(device).type == "cuda" else _outputs(model, call)
    return max(1, min(most, int(SHARE * free(device) / max(1, taken))))


def _peak(call: Callable[[], object], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return int(torch.cuda.max_memory_allocated(device)) - before


def _outputs(model: nn.Module, call: Callable[[], object]) -> int:
    total = 0

    def count(_: nn.Module, __: object, out: object) -> None:
        nonlocal total
        if isinstance(out, Tensor):
            total += out.numel() * out.element_size()

    hooks = [m.register_forward_hook(count) for m in model.modules() if next(m.children(), None) is None]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return total


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
