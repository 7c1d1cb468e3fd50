"""DiffuseHigh: an image of the native size, enlarged by noising and denoising it again under its own low band."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fokker.codec import Codec, Identity
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import get as grid_of
from fokker.guide.wavelet import WaveletGuide
from fokker.loop import lay
from fokker.solve import Solver
from fokker.solve.staged import Resize, Stage, Staged, each, run_stages


@dataclass(frozen=True)
class Enlarge:
    """Bicubic to `size`, then unsharp masking: g + amount (g - blur(g)), blur by a binomial kernel of five pixels."""

    size: tuple[int, int]
    amount: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        g = Resize(self.size)(x)
        return g if self.amount == 0 else g + self.amount * (g - blur(g))


def blur(x: Tensor) -> Tensor:
    """Images (n, channels, height, width) under the binomial kernel (1, 4, 6, 4, 1) / 16 along both axes, edges repeated."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    channels = x.shape[1]
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    wide = torch.nn.functional.conv2d(padded, kernel.expand(channels, 1, 1, 5), groups=channels)
    return torch.nn.functional.conv2d(wide, kernel.reshape(5, 1).expand(channels, 1, 5, 1), groups=channels)


def guided_by(denoiser: Denoiser, data: Tensor, until: float, codec: Codec) -> WaveletGuide:
    return WaveletGuide(denoiser, data, until, codec)


@dataclass(frozen=True, eq=False)
class DiffuseHigh:
    """Progressive enlargement without training: sample small, enlarge and sharpen, noise to `start`, denoise guided.

        large = DiffuseHigh(denoiser, sizes=((64, 64), (128, 128), (256, 256)))
        images = large(fk.noise((4, 3, 64, 64))).data

    denoisers   one that takes every size, or one a size
    sizes       (height, width) of the data at each stage, the native size first
    base_steps  steps of the native run; `steps`, those of each enlargement
    start       time to which an enlarged image is noised: too little leaves bicubic softness, too much loses the image
    guided      how many of the `steps` hold the low Haar band to the enlarged image; all of them keep its blur
    sharpen     amount of unsharp masking
    codec       between data and the denoiser's space, one or one a stage; bands are those of the data

    The state given is that of the native size at t = 1, in the denoiser's space. Reference: Kim et al. 2024, arXiv 2406.18459.
    """

    denoisers: Denoiser | Sequence[Denoiser]
    sizes: Sequence[tuple[int, int]]
    base_steps: int = 50
    steps: int = 15
    start: float = 0.3
    guided: int = 5
    sharpen: float = 1.0
    solver: str | Solver = "ddim"
    grid: str = "uniform"
    codec: Codec | Sequence[Codec] | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or not 0 <= self.guided <= self.steps:
            raise FokkerError(
                f"{len(self.sizes)} sizes and guided={self.guided} of steps={self.steps}; give the native size and at least "
                "one more, and guided from 0 to steps"
            )
        each(self.denoisers, len(self.sizes))

    def stages(self) -> list[Stage]:
        """The stages, plans laid out."""
        many = len(self.sizes)
        codecs: list[Codec] = each(self.codec or Identity(), many)
        kind = grid_of(self.grid)
        found = []
        for k, (denoiser, codec) in enumerate(zip(each(self.denoisers, many), codecs, strict=True)):
            if k == 0:
                plan = lay(denoiser.process, self.solver, grid=kind(self.base_steps, end=0))
                found.append(Stage(denoiser, plan, codec=codec))
                continue
            grid = kind(self.steps, start=self.start, end=0)
            times = grid.times(denoiser.process)
            plan = lay(denoiser.process, self.solver, grid=grid)
            wrap = None
            if self.guided:
                until = float(times[self.guided - 1] + times[self.guided]) / 2
                wrap = partial(guided_by, until=until, codec=codec)
            found.append(Stage(denoiser, plan, Enlarge(self.sizes[k], self.sharpen), wrap, codec))
        return found

    def __call__(self, x: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond) -> Staged:
        """Images of the last size from the state x of the first stage; `traces` has every size on the way."""
        return run_stages(self.stages(), x, seed, ids, **cond)
