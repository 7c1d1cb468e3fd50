"""What feature caches share: which network call of which step this is."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fokker.cache.surgery import find
from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.net.taps import taps
from fokker.process import Time

Call = Callable[..., Any]


class NetworkCache(Wrapper):
    """A wrapper that answers the calls of one network inside; subclasses implement `answer`.

    A step is a row of the plan that asks the denoiser; multi-call solvers have several steps for one of theirs. `step` counts
    them from 0, and the network's calls within a step (the branches of guidance, where they are not batched) are numbered, so
    that none is given what belongs to another. All memory is made in `reset`; outside a run nothing is remembered, and the
    network answers itself.

    The network is the one U-Net inside `inner`, or `net` where it is given.
    """

    def __init__(self, inner: Denoiser, net: nn.Module | None = None) -> None:
        super().__init__(inner)
        # in a tuple, for it is no second module of its own
        self._network = (find(inner) if net is None else net,)

    @property
    def network(self) -> nn.Module:
        """The network whose calls are answered."""
        return self._network[0]

    def reset(self, run: Run) -> None:
        self.step, self.calls = -1, 0
        self.place: tuple[int, Time] | None = None
        self.kept: dict[int, Any] = {}

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.run is None:
            belief: Tensor = self.inner(x_t, t, **cond)
            return belief
        # adaptive steps ask at several times in one row
        place = (self.run.row, t if isinstance(t, float) else 0.0)
        if place != self.place:
            self.place, self.step, self.calls = place, self.step + 1, 0
        self.asked, self.first = (x_t, t, cond), self.calls
        with taps(self.network, around={"": self._around}):
            belief = self.inner(x_t, t, **cond)
        return belief

    def _around(self, call: Call, *args: Any, **kwargs: Any) -> Any:
        number, self.calls = self.calls, self.calls + 1
        return self.answer(number, call, args, kwargs)

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The network's output in call `number` of this step; `call(*args, **kwargs)` runs it."""
        return call(*args, **kwargs)
