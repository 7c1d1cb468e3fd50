"""Measurements of a part of the state, or of what a decoder makes of it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from fokker.codec import Codec
from fokker.errors import FokkerError
from fokker.restore import Operator


class Cropped(Operator):
    """An operator on the upper left `size` of a larger canvas, of which it sees nothing else.

    A C with C C^T = I, so (A C)^+ = C^T A^+ and A C (A C)^T = A A^T. `canvas` and `size` are those of the trailing dimensions.
    """

    def __init__(self, inner: Operator, size: Sequence[int], canvas: Sequence[int]) -> None:
        if len(size) != len(canvas) or any(a > b for a, b in zip(size, canvas)):
            raise FokkerError(f"a view of {tuple(size)} does not fit a canvas of {tuple(canvas)}")
        self.inner, self.size, self.canvas, self.linear = inner, tuple(size), tuple(canvas), inner.linear

    def cut(self, x: Tensor) -> Tensor:
        """C x."""
        view: Any = (..., *(slice(n) for n in self.size))
        return x[view]

    def paste(self, x: Tensor) -> Tensor:
        """C^T x."""
        pads = [k for n, m in zip(reversed(self.size), reversed(self.canvas)) for k in (0, m - n)]
        return pad(x, pads)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(self.cut(x))

    def seen(self, v: Tensor) -> Tensor:
        return self.inner.seen(v)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.paste(self.inner.adjoint(y))

    def pinv(self, y: Tensor) -> Tensor:
        return self.paste(self.inner.pinv(y))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        return self.inner.solve(v, a, b)

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        out = x.clone()
        self.cut(out).copy_(self.inner.consistent(self.cut(x), y))
        return out


class Decoded(Operator):
    """A measurement of what a decoder makes of a latent, y = A(decode(z)): nonlinear where the decoder is.

    `codec` has `decode` and `encode`; the pseudo-inverse is encode(A^+ y), a start and no inverse.
    """

    linear = False

    def __init__(self, inner: Operator, codec: Codec) -> None:
        self.inner, self.codec = inner, codec

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(self.codec.decode(x))

    def seen(self, v: Tensor) -> Tensor:
        return self.inner.seen(v)

    def adjoint(self, y: Tensor) -> Tensor:
        raise FokkerError("a measurement behind a decoder has no adjoint; use DPS, REDDiff or STSL")

    def pinv(self, y: Tensor) -> Tensor:
        return self.codec.encode(self.inner.pinv(y))
