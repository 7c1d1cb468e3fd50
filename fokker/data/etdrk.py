"""Exponential time differencing for periodic 1-D equations u_t = L u + N(u), exact in the stiff linear part."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fokker.data.draws import Floats

Spectrum = NDArray[np.complex128]


class ETDRK4:
    """Fourth-order Runge-Kutta steps of length h in Fourier space, for a diagonal linear part.

    v' = c v + N(v) is integrated with phi-functions of c h, evaluated by a contour mean so that c = 0 is no special case.

    Reference: Cox, Matthews 2002; Kassam, Trefethen 2005, "Fourth-order time-stepping for stiff PDEs".
    """

    def __init__(self, linear: Floats, nonlinear: Callable[[Spectrum], Spectrum], h: float) -> None:
        self.nonlinear = nonlinear
        contour = np.exp(1j * np.pi * (np.arange(64) + 0.5) / 64)
        r = h * linear[:, None] + contour
        self.full, self.half = np.exp(h * linear), np.exp(h * linear / 2)
        self.q = h * np.mean((np.exp(r / 2) - 1) / r, axis=1).real
        self.f1 = h * np.mean((-4 - r + np.exp(r) * (4 - 3 * r + r**2)) / r**3, axis=1).real
        self.f2 = h * np.mean((2 + r + np.exp(r) * (r - 2)) / r**3, axis=1).real
        self.f3 = h * np.mean((-4 - 3 * r - r**2 + np.exp(r) * (4 - r)) / r**3, axis=1).real

    def step(self, v: Spectrum) -> Spectrum:
        """The spectrum (..., modes) one step later."""
        n0 = self.nonlinear(v)
        a = self.half * v + self.q * n0
        n1 = self.nonlinear(a)
        b = self.half * v + self.q * n1
        n2 = self.nonlinear(b)
        c = self.half * a + self.q * (2 * n2 - n0)
        return np.asarray(self.full * v + self.f1 * n0 + 2 * self.f2 * (n1 + n2) + self.f3 * self.nonlinear(c))


def advection(wavenumbers: Floats, points: int) -> Callable[[Spectrum], Spectrum]:
    """N(v) = -(u^2 / 2)_x in Fourier space, the top third of the modes cut so that products do not alias."""
    kept = np.arange(len(wavenumbers)) < points / 3.0
    factor = -0.5j * wavenumbers * kept

    def nonlinear(v: Spectrum) -> Spectrum:
        u = np.fft.irfft(v, points, axis=-1)
        return np.asarray(factor * np.fft.rfft(u * u, axis=-1), dtype=np.complex128)

    return nonlinear
