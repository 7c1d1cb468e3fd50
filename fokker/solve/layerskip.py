"""AutoDiffusion's second choice: which layers of a network not to run, step by step."""

from collections.abc import Sequence

from torch import Tensor

from fokker.denoiser import Cond, Denoiser, NetworkDenoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.net.taps import taps
from fokker.process import Time


class LayerSkip(Wrapper):
    """A network's denoiser that leaves out named modules at named evaluations.

    `skip` has one list of module names (or patterns) for each evaluation of a run, in order; evaluations beyond its end skip
    nothing. A module that is skipped hands its first argument on, so its output must have that shape. With nothing to skip
    the bits are those of the network. Raises FokkerError for a denoiser that is no network's and for names that fit no module.

    Reference: Li et al. 2023, arXiv 2309.10438.
    """

    def __init__(self, inner: Denoiser, skip: Sequence[Sequence[str]]) -> None:
        super().__init__(inner)
        if not isinstance(inner, NetworkDenoiser):
            raise FokkerError(f"LayerSkip needs a network's denoiser, not {type(inner).__name__}; wrap it before guidance")
        if isinstance(skip, str) or any(isinstance(names, str) for names in skip):
            raise FokkerError("skip is a list of lists of module names, one for each evaluation")
        self.skip = tuple(tuple(names) for names in skip)
        self.net = inner.net
        with taps(self.net, skip=[name for names in self.skip for name in names]):
            pass  # names that fit nothing are refused here
        self._asked = 0

    def reset(self, run: Run) -> None:
        self._asked = 0

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        names = self.skip[self._asked] if self._asked < len(self.skip) else ()
        self._asked += 1
        with taps(self.net, skip=names):
            belief: Tensor = self.inner(x_t, t, **cond)
        return belief
