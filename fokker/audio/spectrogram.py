"""The complex spectrogram with compressed magnitudes, as a codec that inverts to rounding."""

from typing import Any

import torch
from torch import Tensor

from fokker.codec import Codec
from fokker.errors import FokkerError


class ComplexSTFT(Codec):
    """c = scale |S|^compress e^{i arg S}, S the short-time Fourier transform; real and imaginary parts are two channels.

    Waveforms (batch, 1, samples) to (batch, 2, points / 2 + 1, frames) and back. The window is Hann's, of `points` samples,
    moved on by `hop`; 510 points, hop 128, compress 0.5 and scale 0.15 are the paper's at 16 kHz. Decoding gives
    frames * hop - hop samples and more, cut to the length that was last encoded. Raises FokkerError for another shape.

    Reference: Richter et al. 2023, arXiv 2208.05830.
    """

    def __init__(self, points: int = 510, hop: int = 128, compress: float = 0.5, scale: float = 0.15) -> None:
        super().__init__()
        if points < 4 or not 0 < hop <= points // 2 or not 0 < compress <= 1 or scale <= 0:
            raise FokkerError(
                f"points={points}, hop={hop}, compress={compress}, scale={scale}: use hop of at most half the points, "
                "compress in (0, 1] and a positive scale"
            )
        self.points, self.hop, self.compress, self.scale = points, hop, compress, scale
        self.samples: int | None = None
        self.window = torch.hann_window(points, dtype=torch.float64)

    def encode(self, data: Tensor) -> Tensor:
        if data.ndim != 3 or data.shape[1] != 1:
            raise FokkerError(f"a waveform of shape {tuple(data.shape)}; give (batch, 1, samples)")
        if data.shape[2] <= self.points // 2:
            raise FokkerError(f"{data.shape[2]} samples are fewer than half a window of {self.points}; give a longer recording")
        self.samples = data.shape[2]
        # whole hops: what is appended is cut off again
        padded = torch.nn.functional.pad(data[:, 0], (0, -self.samples % self.hop))
        spectrum = torch.stft(
            padded, self.points, self.hop, window=self.window.to(data), center=True, pad_mode="reflect", return_complex=True
        )
        return torch.view_as_real(self.scale * self._power(spectrum, self.compress)).permute(0, 3, 1, 2).to(data.dtype)

    def decode(self, x: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous()) / self.scale
        waveform = torch.istft(
            self._power(spectrum, 1 / self.compress), self.points, self.hop, window=self.window.to(x), center=True
        )
        return waveform[:, None, : self.samples]

    @staticmethod
    def _power(z: Tensor, p: float) -> Tensor:
        """|z|^p e^{i arg z}, 0 at 0."""
        size = z.abs()
        return z * torch.where(size > 0, size.clamp_min(1e-30) ** (p - 1), torch.zeros_like(size))

    @property
    def config(self) -> dict[str, Any]:
        options = {"points": self.points, "hop": self.hop, "compress": self.compress, "scale": self.scale}
        return {**super().config, **options}
