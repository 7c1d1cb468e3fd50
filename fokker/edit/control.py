"""Attention control: the target branch of an edit attends as the source branch does."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.net.taps import taps
from fokker.process import Time


class AttentionControl(Wrapper):
    """In a joint batch (source half first), attention maps and features of the source replace the target's.

    maps      names of attention modules (patterns) whose maps are shared for the first `share` of the steps: self-attention
              keeps the layout, cross-attention where each word acts, so that a swapped word takes its place (Prompt-to-Prompt)
    features  names of modules whose outputs are shared for the first `feature_share` of the steps (plug-and-play)
    steps     how many evaluations the run has

    Put it inside the guidance; every branch of guidance is shared in its own half. Raises FokkerError for a batch that has no
    halves.

    References: Hertz et al. 2022, arXiv 2208.01626; Tumanyan et al. 2022, arXiv 2211.12572.
    """

    stackable = True

    def __init__(
        self,
        inner: Denoiser,
        steps: int,
        maps: Sequence[str] = (),
        features: Sequence[str] = (),
        share: float = 0.8,
        feature_share: float = 0.5,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__(inner)
        self.maps, self.features = tuple(maps), tuple(features)
        self.until, self.features_until = share * steps, feature_share * steps
        self._network = (inner if net is None else net,)

    def reset(self, run: Run) -> None:
        self.step, self.row = -1, -1

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.run is None:
            raise FokkerError("AttentionControl counts the steps of a run; call it through fokker.run")
        if self.run.row != self.row:
            self.row, self.step = self.run.row, self.step + 1
        maps = self.maps if self.step < self.until else ()
        features = self.features if self.step < self.features_until else ()
        lend = lent(self.run.batch // 2)
        with taps(self._network[0], edit_maps=dict.fromkeys(maps, lend), edit=dict.fromkeys(features, lend)):
            belief: Tensor = self.inner(x_t, t, **cond)
        return belief


def lent(pairs: int) -> Callable[[Tensor], Tensor]:
    """Copies the source half over the target half, in each block of 2 `pairs` samples of a batch."""

    def share(h: Tensor) -> Tensor:
        if not pairs or len(h) % (2 * pairs):
            raise FokkerError(f"a batch of {len(h)} has no halves of {pairs} source and {pairs} target samples")
        blocks = h.unflatten(0, (-1, 2, pairs))
        return torch.stack([blocks[:, 0], blocks[:, 0]], 1).flatten(0, 2)

    return share
