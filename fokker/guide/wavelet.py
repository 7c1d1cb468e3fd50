"""Structure guidance: the low wavelet band of a belief is held to that of a given image."""

import torch
from torch import Tensor

from fokker.codec import Codec, Identity
from fokker.denoiser import Cond, Denoiser, Wrapper
from fokker.errors import FokkerError
from fokker.process import Time, expand


def haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The orthonormal Haar bands (LL, LH, HL, HH) of the last two dimensions; LL of a constant c is 2 c.

    Half precision is computed in float32. Raises FokkerError for odd sizes.
    """
    if x.ndim < 2 or x.shape[-1] % 2 or x.shape[-2] % 2:
        raise FokkerError(f"a state of shape {tuple(x.shape)} has no Haar bands; its last two sizes must be even")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def inverse_haar(low: Tensor, lh: Tensor, hl: Tensor, hh: Tensor) -> Tensor:
    """The image of the four bands that `haar` gives."""
    rows = [(low + lh + hl + hh, low + lh - hl - hh), (low - lh + hl - hh, low - lh - hl + hh)]
    joined = torch.stack([torch.stack(row, -1).flatten(-2) for row in rows], -2) / 2
    return joined.flatten(-3, -2)


class WaveletGuide(Wrapper):
    """The belief with its low band replaced: inverse DWT of (LL of `guide`; LH, HL, HH of the belief), while t >= until.

    guide  images (batch, channels, height, width) in the data's range, even sizes
    until  time below which the belief is left alone; held to the end, the guide's blur would be kept too
    codec  beliefs are decoded before and encoded after: the bands are those of the data, not of latents

    The solver derives eps from the belief, so both follow the guide. Reference: Kim et al. 2024, arXiv 2406.18459.
    """

    stackable = False  # the guide has the batch's size

    def __init__(self, inner: Denoiser, guide: Tensor, until: float = 0.0, codec: Codec | None = None) -> None:
        super().__init__(inner)
        self.low, self.until, self.codec = haar(guide)[0], float(until), codec or Identity()

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief: Tensor = self.inner(x_t, t, **cond)
        if not isinstance(t, Tensor) and t < self.until:
            return belief
        _, *details = haar(self.codec.decode(belief))
        held = self.codec.encode(inverse_haar(self.low.to(details[0]), *details)).to(belief)
        return (
            torch.where(expand(t >= self.until, held).to(held.device), held, belief) if isinstance(t, Tensor) else held
        )
