"""THE CONTRACT of an Operator (a measurement) and of a restorer, and how to add one.

An `Operator` maps x (batch, ...) to y (batch, ...), per sample and linearly unless it says otherwise:

    A(x), A.adjoint(y)      the measurement and its transpose
    A.pinv(y)               the Moore-Penrose inverse
    A.solve(v, a, b)        (a A A^T + b I)^{-1} v, what Gaussian posteriors need
    A.measure(x, noise_std, seed), A.seen(v)    a noisy measurement; v without entries that measure nothing
    A.consistent(x, y)      the nearest x that agrees with y
    A.pull(x, v)            the gradient of <A(x), v>: the adjoint, and all that one with `linear = False` has of it

`A.check(shape)` measures how well <A x, y> = <x, A^T y> holds. Subclasses define `forward`, `adjoint` and, where a closed form
exists, `pinv` and `solve`; the defaults are conjugate gradients.

A restorer (`restore.posterior.Restorer`) is a `Wrapper` around a denoiser: E[x_0 | x_t] becomes (an estimate of) E[x_0 |
x_t, measurement]. It knows no solver; y, and noise levels, are in the range of the data. The measurement belongs to the
samples: its leading dimension is the batch's, and nothing is summed over the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.keyed import noise


class Operator:
    """A linear measurement y = A x, per sample; see the contract in this module's docstring."""

    linear = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        raise FokkerError(f"{type(self).__name__} does not define forward(x); an operator must")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        raise FokkerError(f"{type(self).__name__} does not define adjoint(y); a linear operator must")

    def seen(self, v: Tensor) -> Tensor:
        """v in the measurement's space without the entries that measure nothing (a mask's unknown ones): there y is 0."""
        return v

    def measure(
        self, x: Tensor, noise_std: float = 0.0, seed: int = 0, ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """A x + noise_std n with n unit normal where something is measured, keyed by (seed, id)."""
        y = self.forward(x)
        if noise_std == 0:
            return y
        return y + noise_std * self.seen(noise(tuple(y.shape), seed, ids, "measure", 99, y.dtype, y.device))

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        """The gradient of <A x, v> in x: A^T v, or the Jacobian's transpose at x for one that is not `linear`."""
        if self.linear:
            return self.adjoint(v)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            pulled: Tensor = torch.autograd.grad(self.forward(at), at, v)[0]
        return pulled

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        """(a A A^T + b I)^{-1} v for v in the measurement space; `a` and `b` are numbers or broadcast to v.

        With b = 0 and a singular A A^T the least-norm solution.
        """
        return conjugate_gradients(lambda u: a * self.forward(self.adjoint(u)) + b * u, v)

    def pinv(self, y: Tensor) -> Tensor:
        """The least-norm least-squares solution, A^T (A A^T)^+ y."""
        return self.adjoint(self.solve(y))

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """The point nearest to x that agrees with the measurement, x + A^+ (y - A x)."""
        return x + self.pinv(y - self.forward(x))

    def check(self, shape: tuple[int, ...], seed: int = 0) -> float:
        """The relative misfit of <A x, y> = <x, A^T y> on random x of `shape` (batch, ...); 0 up to rounding if linear."""
        x = noise(shape, seed, stream="check", dtype=torch.float64)
        Ax = self.forward(x)
        y = noise(tuple(Ax.shape), seed, stream="check", index=1, dtype=torch.float64)
        left, right = (Ax * y).flatten(1).sum(1), (x * self.adjoint(y)).flatten(1).sum(1)
        scale = Ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
        return float(((left - right).abs() / scale).max())


def conjugate_gradients(apply: Any, v: Tensor, steps: int = 200, tolerance: float = 1e-12) -> Tensor:
    """The solution u of apply(u) = v for a positive semi-definite `apply`, per sample (batch, ...)."""

    def dot(p: Tensor, q: Tensor) -> Tensor:
        return (p * q).flatten(1).sum(1).reshape(-1, *[1] * (p.ndim - 1))

    u, r = torch.zeros_like(v), v
    p, energy = r, dot(r, r)
    target = max(tolerance, 4 * torch.finfo(v.dtype).eps) ** 2 * energy
    for _ in range(min(steps, v[0].numel())):
        Ap = apply(p)
        curvature = dot(p, Ap)
        step = torch.where(curvature > 0, energy / curvature, torch.zeros_like(energy))
        u, r = u + step * p, r - step * Ap
        new = dot(r, r)
        if not v.requires_grad and v.device.type == "cpu" and bool((new <= target).all()):
            break
        p, energy = r + torch.where(energy > 0, new / energy, torch.zeros_like(new)) * p, new
    return u


def get(name: str, denoiser: Denoiser, operator: Operator, y: Tensor, **options: Any) -> Wrapper:
    """The restorer of that name around `denoiser`; unknown names and options raise FokkerError."""
    from fokker import catalogue

    wrapper: Wrapper = catalogue.resolve("restorer", name, denoiser, operator, y, **options)
    return wrapper


def names() -> list[str]:
    """The names of all restorers."""
    from fokker import catalogue

    return catalogue.names("restorer")


def __getattr__(name: str) -> Any:
    from fokker.catalogue import public

    return public(name, {"restorer", "operator"})


__all__ = ["Denoiser", "Operator", "Run", "Wrapper", "get", "names"]
