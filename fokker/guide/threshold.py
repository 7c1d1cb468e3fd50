"""Dynamic thresholding: beliefs that guidance pushed out of the data's range are drawn back into it."""

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.process import Time


class DynamicThreshold(Wrapper):
    """D clamped to [-s, s] and divided by s / limit, with s = max(limit, the `quantile` of |D| over one sample).

    For data that live in [-limit, limit], such as pixels; stack it outside the guidance, so that it sees the guided belief. A
    sample whose belief is inside keeps its bits. `quantile` 1 clamps to the largest value, which only rescales. Raises
    FokkerError for a quantile outside (0, 1] or a limit that is not above 0.

    Reference: Saharia et al. 2022, arXiv 2205.11487, section 2.3; Lu et al. 2022, arXiv 2211.01095.
    """

    def __init__(self, inner: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> None:
        super().__init__(inner)
        if not 0 < quantile <= 1 or not limit > 0:
            raise FokkerError(
                f"quantile={quantile}, limit={limit} are not accepted; use 0 < quantile <= 1 and limit > 0"
            )
        self.quantile, self.limit = quantile, limit

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        size = belief.flatten(1).abs()
        # linear interpolation between order statistics, which torch.quantile refuses above 16 million numbers
        place = self.quantile * (size.shape[1] - 1)
        below = int(place)
        top = size.topk(size.shape[1] - below, dim=1).values
        low, high = top[:, -1], top[:, -min(2, top.shape[1])]
        s = (low + (place - below) * (high - low)).clamp(min=self.limit)
        s = s.reshape(-1, *[1] * (belief.ndim - 1))
        return torch.where(s > self.limit, belief.clamp(-s, s) * (self.limit / s), belief.clamp(-s, s))
