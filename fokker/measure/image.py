"""Restored images against the true ones: PSNR and SSIM."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure.features import digest
from fokker.measure.metric import EXECUTION, Metric, mean_error, pair
from fokker.measure.value import Better, Value


@dataclass(frozen=True)
class ImageMetric(Metric):
    """The mean over images of a score an image; `data_range` is the distance from black to white (2 for [-1, 1])."""

    better: ClassVar[Better] = "higher"
    data_range: float = 2.0
    chunk: int = field(default=256, metadata=EXECUTION)

    def score(self, images: Tensor, truth: Tensor) -> Tensor:
        """The score of each image, shape (n,)."""
        raise FokkerError(f"{type(self).__name__} has no score of its own; use PSNR or SSIM")

    def each(self, images: Tensor, truth: Tensor) -> Tensor:
        """Scores (n,) of images (n, channels, height, width), for `compare`."""
        if images.ndim != 4:
            raise FokkerError(f"images of shape {tuple(images.shape)}: give (n, channels, height, width)")
        if not self.data_range > 0 or self.chunk < 1:
            raise FokkerError(f"data_range={self.data_range}, chunk={self.chunk}: both must be positive")
        x, y = pair(images, truth)
        return torch.cat([self.score(a, b) for a, b in zip(torch.split(x, self.chunk), torch.split(y, self.chunk))])

    def __call__(self, images: Tensor, truth: Tensor) -> Value:
        """The mean score; error: of that mean over the images."""
        each = self.each(images, truth)
        return self.value(float(each.mean()), len(each), mean_error(each), found={"truth": digest(truth)})


@dataclass(frozen=True)
class PSNR(ImageMetric):
    """The peak signal-to-noise ratio 10 log10(data_range^2 / mean (x - y)^2) of each image, averaged in decibels.

    Equal images have infinite PSNR, and so has the mean.
    """

    name: ClassVar[str] = "psnr"
    unit: ClassVar[str] = "dB"

    def score(self, images: Tensor, truth: Tensor) -> Tensor:
        mean_square = (images - truth).square().mean(dim=(1, 2, 3))
        return 10 * torch.log10(self.data_range**2 / mean_square)


@dataclass(frozen=True)
class SSIM(ImageMetric):
    """The structural similarity under a Gaussian window of standard deviation `sigma` pixels, cut at 3.5 sigma.

    The published sigma = 1.5 means a window of 11 pixels; images smaller than the window are refused (use sigma=0.5 for
    8 x 8 digits, a window of 5). Positions whose window leaves the image do not count.
    Reference: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to structural similarity".
    """

    name: ClassVar[str] = "ssim"
    sigma: float = 1.5

    def score(self, images: Tensor, truth: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure

        window = 2 * int(3.5 * self.sigma + 0.5) + 1
        if min(images.shape[2:]) < window or not self.sigma > 0:
            raise FokkerError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels under a window of {window} (sigma={self.sigma}); "
                "give sigma= a smaller positive number"
            )
        # the whole map is asked for and cut here: versions of torchmetrics differ in whether reflected borders count
        _, similarity = structural_similarity_index_measure(
            images, truth, sigma=self.sigma, data_range=self.data_range, reduction="none", return_full_image=True
        )
        border = window // 2
        height, width = images.shape[2] - border, images.shape[3] - border
        inside: Tensor = similarity[..., border:height, border:width]
        return inside.mean(dim=(1, 2, 3))
