"""DeepCache: the deep part of a U-Net is computed at some steps and kept for those between."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fokker.cache.calls import Call, NetworkCache
from fokker.cache.surgery import below
from fokker.denoiser import Denoiser, Run
from fokker.errors import FokkerError
from fokker.net.taps import taps


class DeepCache(NetworkCache):
    """At refresh steps the whole U-Net is run; at the others only what lies above the skip connection `level`.

    The up block at that level gets the current skip beside the deep features of the last refresh. Shallow layers see the
    current state, time and conditions; only the deep features are old. It knows no solver; inside guidance or around it, each
    branch keeps its own. Every call still counts as an evaluation: what is saved are multiply-adds (`fokker.net.cost`).

    refresh  every how many steps all is computed (1 is off: the same bits), or the indices of those steps, see `nonuniform`;
             step 0 and a change of batch always refresh
    level    the outermost skip connection is 0, the cheapest; one a level in our U-Nets, one a resnet in diffusers'
    modules  names of modules to keep instead, which makes a cache of any network: the blocks of a DiT, say, with `net`

    Reference: Ma, Fang, Wang 2024, arXiv 2312.00858.
    """

    def __init__(
        self,
        inner: Denoiser,
        refresh: int | Sequence[int] = 3,
        level: int = 0,
        modules: Sequence[str] = (),
        net: nn.Module | None = None,
    ) -> None:
        super().__init__(inner, net)
        if isinstance(refresh, int) and refresh < 1:
            raise FokkerError(
                f"refresh={refresh} is not accepted; use an interval of at least 1 step, or indices of steps"
            )
        self.refresh = refresh if isinstance(refresh, int) else frozenset(int(k) for k in refresh)
        self.modules_kept = tuple(modules) or tuple(below(self.network, level))

    def reset(self, run: Run) -> None:
        super().reset(run)
        self.refreshes = 0

    @property
    def due(self) -> bool:
        """Whether this step computes everything."""
        return self.step % self.refresh == 0 if isinstance(self.refresh, int) else self.step in self.refresh

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shape, features = self.kept.get(number, (None, {}))
        if self.due or shape != args[0].shape:
            with taps(self.network, self.modules_kept) as seen:
                out = call(*args, **kwargs)
            self.kept[number] = (args[0].shape, dict(seen))
            self.refreshes += 1
            return out
        with taps(self.network, replace=features):
            return call(*args, **kwargs)


def nonuniform(steps: int, interval: int, centre: float, power: float = 1.4) -> list[int]:
    """ceil(steps / interval) refresh steps, dense around the step `centre` and sparser away from it.

    K + 1 equal steps of u from -centre^(1/p) to (steps - centre)^(1/p) give the indices centre + sign(u) |u|^p, rounded down;
    0 is always one. The power p is lowered by 0.02 until K of them differ. Raises FokkerError for a centre outside the run.

    Reference: Ma, Fang, Wang 2024, arXiv 2312.00858, section 3.3.
    """
    if steps < 1 or interval < 1 or not 0 <= centre <= steps or not power >= 1:
        raise FokkerError(
            f"steps={steps}, interval={interval}, centre={centre}, power={power} are not accepted; "
            "use a centre from 0 to steps and a power of at least 1"
        )
    wanted = math.ceil(steps / interval)
    while power > 1:
        found = _around(steps, wanted, centre, power)
        if len(found) == wanted:
            return found
        power -= 0.02
    return _around(steps, wanted, centre, 1.0)


def _around(steps: int, wanted: int, centre: float, power: float) -> list[int]:
    low, high = -(centre ** (1 / power)), (steps - centre) ** (1 / power)
    u = torch.linspace(low, high, wanted + 1, dtype=torch.float64)
    # a hair up, for a whole number must not be rounded down to the one before
    at = torch.floor(centre + u.sign() * u.abs() ** power + 1e-9).long().tolist()
    return sorted({0, *(k for k in at[1:-1] if 0 <= k < steps)})
