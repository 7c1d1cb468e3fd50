"""Measurements of images (and of signals and volumes of any rank): mask, blur, downsampling, greying, matrices, views."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import noise, uniform
from fokker.restore import Operator


class Mask(Operator):
    """y = m x with m in {0, 1}, broadcast to x: inpainting. Unknown entries of y are 0.

    `keep` is a mask tensor, or the share of positions that stay, drawn by `seed` for `shape` = the sample's (channels, *size);
    channels share a position.
    """

    def __init__(self, keep: float | Tensor, shape: Sequence[int] | None = None, seed: int = 0) -> None:
        if isinstance(keep, Tensor):
            mask = keep
        else:
            if shape is None:
                raise FokkerError("a mask drawn at random needs shape=(channels, *size) of a sample")
            if not 0 < keep < 1:
                raise FokkerError(f"keep={keep} is not accepted; give the share of positions that stay, in (0, 1)")
            mask = (uniform((1, *shape[1:]), seed, stream="check") < keep).to(torch.float64)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise FokkerError("a mask holds zeros (unknown) and ones (known) only")
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def seen(self, v: Tensor) -> Tensor:
        return self.mask.to(v) * v

    def pinv(self, y: Tensor) -> Tensor:
        return self.mask.to(y) * y

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        # a selection, so that known values equal the measurement to the bit
        return torch.where(self.mask.to(x.device) > 0, y, x)

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        known = self.mask.to(v)
        scale = a * known + b
        # where nothing is measured and b is 0 the least-norm solution is 0
        return torch.where(scale > 0, v / torch.where(scale > 0, scale, torch.ones_like(scale)), torch.zeros_like(v))


class Blur(Operator):
    """Circular convolution with a normalised kernel over the trailing dimensions of x.

    `kernel` is a tensor of the rank of the signal (odd sizes), or the standard deviation of a Gaussian in pixels for `ndim`
    dimensions. Diagonal in Fourier space, so adjoint, inverse and solve are exact; singular values under `cutoff` are left out
    of the pseudo-inverse.
    """

    def __init__(self, kernel: float | Tensor, ndim: int = 2, cutoff: float = 1e-6) -> None:
        if not isinstance(kernel, Tensor):
            if not kernel > 0:
                raise FokkerError(f"a blur of {kernel} pixels is not accepted; give a standard deviation above 0")
            at = torch.arange(-int(4 * kernel) - 1, int(4 * kernel) + 2, dtype=torch.float64)
            line = torch.exp(-0.5 * (at / kernel) ** 2)
            kernel = line
            for _ in range(ndim - 1):
                kernel = kernel[..., None] * line
        self.kernel, self.cutoff = (kernel / kernel.sum()).to(torch.float64), cutoff

    def _spectrum(self, size: Sequence[int]) -> Tensor:
        dims = tuple(range(self.kernel.ndim))
        padded = torch.zeros(tuple(size), dtype=torch.float64)
        index = torch.meshgrid(
            *[(torch.arange(k) - k // 2) % n for k, n in zip(self.kernel.shape, size, strict=True)], indexing="ij"
        )
        padded.index_put_(index, self.kernel, accumulate=True)
        spectrum: Tensor = torch.fft.fftn(padded, dim=dims)
        return spectrum

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        dims = tuple(range(-self.kernel.ndim, 0))
        out: Tensor = torch.fft.ifftn(torch.fft.fftn(x.to(torch.float64), dim=dims) * gain.to(x.device), dim=dims)
        return out.real.to(x.dtype)

    def _gain(self, x: Tensor) -> Tensor:
        return self._spectrum(x.shape[-self.kernel.ndim :])

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._gain(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._gain(y).conj())

    def pinv(self, y: Tensor) -> Tensor:
        gain = self._gain(y)
        kept = gain.abs() > self.cutoff
        return self._filter(y, torch.where(kept, 1 / torch.where(kept, gain, torch.ones_like(gain)), torch.zeros_like(gain)))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        power = self._gain(v).abs() ** 2
        scale = a * power + b
        kept = scale > a * self.cutoff**2
        gain = torch.where(kept, 1 / torch.where(kept, scale, torch.ones_like(scale)), torch.zeros_like(scale))
        return self._filter(v, gain.to(torch.complex128))


class Downsample(Operator):
    """The mean over blocks of `factor` pixels along the `ndim` trailing dimensions; sizes must be multiples of the factor."""

    def __init__(self, factor: int, ndim: int = 2) -> None:
        if int(factor) != factor or factor < 1:
            raise FokkerError(f"factor={factor} is not accepted; give a whole number of at least 1")
        self.factor, self.ndim, self.block = factor, ndim, float(factor**ndim)

    def forward(self, x: Tensor) -> Tensor:
        for d in range(-self.ndim, 0):
            if x.shape[d] % self.factor:
                raise FokkerError(f"size {tuple(x.shape[-self.ndim :])} is not a multiple of the factor {self.factor}")
            x = x.reshape(*x.shape[:d], -1, self.factor, *x.shape[d:][1:]).mean(d)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for d in range(-self.ndim, 0):
            y = y.repeat_interleave(self.factor, d) / self.factor
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) * self.block

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        return v / (a / self.block + b)


class Matrix(Operator):
    """y = M x on flattened samples: x (batch, ...) with prod(...) = columns, y (batch, rows)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        if matrix.ndim != 2:
            raise FokkerError(f"a matrix (rows, columns) is needed, not a tensor of shape {tuple(matrix.shape)}")
        self.matrix = matrix.to(torch.float64)
        self.shape = tuple(shape) if shape is not None else (matrix.shape[1],)
        values, vectors = torch.linalg.eigh(self.matrix @ self.matrix.T)
        self._values, self._vectors = values.clamp_min(0), vectors

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x.flatten(1) @ self.matrix.T.to(x)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = (y @ self.matrix.to(y)).reshape(-1, *self.shape)
        return x

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        scale = a * self._values.to(v) + b
        # with b = 0, what eigh leaves of a zero is rounding
        kept = scale > a * self._values.max().to(v) * 1e-12
        gain = torch.where(kept, 1 / torch.where(kept, scale, torch.ones_like(scale)), torch.zeros_like(scale))
        vectors = self._vectors.to(v)
        solution: Tensor = ((v @ vectors) * gain) @ vectors.T
        return solution

    @classmethod
    def gaussian(cls, rows: int, shape: Sequence[int], seed: int = 0) -> "Matrix":
        """A random measurement with independent N(0, 1/rows) entries: compressed sensing."""
        return cls(_gaussian(rows, math.prod(shape), seed), shape)


def _gaussian(rows: int, columns: int, seed: int) -> Tensor:
    entries = noise((rows, columns), seed, stream="check", index=2, dtype=torch.float64)
    return entries / math.sqrt(rows)


class CompressedSensing(Operator):
    """Independent N(0, 1/rows) combinations of pixels, rows = `keep` times the number of pixels: Gaussian compressed sensing.

    Of a whole sample of `shape` (channels, *size), y (batch, rows); or with `block` of every block of that many pixels a
    side in every channel of an image of any size that is a multiple, one matrix for all of them, y (batch, channels, blocks,
    rows): what is measurable in practice. Raises FokkerError for a share outside (0, 1] or a missing shape.
    """

    def __init__(
        self, keep: float, shape: Sequence[int] | None = None, seed: int = 0, block: int | None = None
    ) -> None:
        if not 0 < keep <= 1:
            raise FokkerError(f"keep={keep} is not accepted; give the number of measurements a pixel, in (0, 1]")
        if shape is None:
            raise FokkerError("compressed sensing needs shape=(channels, *size) of a sample")
        if block is not None and any(n % block for n in shape[1:]):
            raise FokkerError(f"block={block} does not divide the size {tuple(shape[1:])}; use a divisor of both")
        self.shape, self.block = tuple(shape), block
        columns = math.prod(shape) if block is None else block ** (len(shape) - 1)
        if columns > 1 << 12:
            raise FokkerError(f"a matrix for {columns} pixels at once is too large; give block=, such as 16")
        self.matrix = Matrix(_gaussian(max(1, round(keep * columns)), columns, seed))

    def forward(self, x: Tensor) -> Tensor:
        return self._many(self.matrix.forward, self._blocks(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._picture(self._many(self.matrix.adjoint, y))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        def rows(c: float | Tensor) -> float | Tensor:
            return c.expand((*v.shape[:-1], 1)).reshape(-1, 1) if isinstance(c, Tensor) and c.ndim else c

        return self._many(lambda u: self.matrix.solve(u, rows(a), rows(b)), v)

    def _many(self, function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        return function(v.reshape(-1, v.shape[-1])).reshape(*v.shape[:-1], -1)

    def _blocks(self, x: Tensor) -> Tensor:
        """(batch, pixels), or (batch, channels, blocks, pixels of a block)."""
        if self.block is None:
            return x.flatten(1)
        size, n = x.shape[2:], self.block
        split = x.reshape(*x.shape[:2], *(k for s in size for k in (s // n, n)))
        order = [0, 1, *range(2, split.ndim, 2), *range(3, split.ndim, 2)]
        return split.permute(order).reshape(*x.shape[:2], -1, n ** len(size))

    def _picture(self, v: Tensor) -> Tensor:
        if self.block is None:
            return v.reshape(-1, *self.shape)
        size, n = self.shape[1:], self.block
        d = len(size)
        split = v.reshape(*v.shape[:2], *(s // n for s in size), *[n] * d)
        order = [0, 1, *(k for i in range(d) for k in (2 + i, 2 + d + i))]
        return split.permute(order).reshape(*v.shape[:2], *size)


class Colourise(Operator):
    """y = sum_c w_c x_c: the grey picture, from which colours are to be found.

    `weights` None: the mean over the channels, shape[0] of them.
    """

    def __init__(self, weights: Sequence[float] | None = None, shape: Sequence[int] = (3,)) -> None:
        channels = shape[0]
        w = torch.as_tensor([1.0 / channels] * channels if weights is None else list(weights), dtype=torch.float64)
        if len(w) != channels or not bool(w.any()):
            raise FokkerError(f"weights={weights} for {channels} channels are not accepted; one number a channel, not all 0")
        self.weights, self.gain = w, float(w.square().sum())

    def _column(self, x: Tensor) -> Tensor:
        return self.weights.to(x).reshape(-1, *[1] * (x.ndim - 2))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise FokkerError(f"this picture has {x.shape[1]} channels and the weights are {len(self.weights)}; set shape=")
        return (self._column(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._column(y) * y

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / self.gain

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        return v / (a * self.gain + b)
