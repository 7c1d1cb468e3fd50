"""Directions in h-space: the bottleneck of a U-Net, where a shift changes what a sample means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fokker.cache.surgery import find, middle
from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.loop import run
from fokker.net.taps import taps
from fokker.plan import Plan
from fokker.process import Time


class BottleneckShift(Wrapper):
    """The bottleneck's activation h plus scale * direction, at every step or at those of `steps`.

    direction  (channels, ...) for all steps, (steps, channels, ...) one a step, or either with a batch axis before the channels
    scale      0 is off; a number
    steps      first and last + 1 of the evaluations that are shifted

    All else stays: the skip connections, the condition, the injected noise. Inside guidance every branch is shifted alike.

    Reference: Kwon, Jeong, Uh 2023, arXiv 2210.10960; Haas et al. 2024, arXiv 2303.11073.
    """

    def __init__(
        self,
        inner: Denoiser,
        direction: Tensor,
        scale: float = 1.0,
        steps: Sequence[int] | None = None,
        net: nn.Module | None = None,
        tap: str | None = None,
    ) -> None:
        super().__init__(inner)
        self._network = (find(inner) if net is None else net,)
        self.tap = tap or middle(self._network[0])
        self.direction, self.scale, self.steps = direction, scale, steps

    def reset(self, run: Run) -> None:
        self.step, self.row = -1, -1

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        step = 0
        if self.run is not None:
            if self.run.row != self.row:
                self.row, self.step = self.run.row, self.step + 1
            step = self.step
        if self.scale == 0 or (self.steps is not None and not self.steps[0] <= step < self.steps[1]):
            plain: Tensor = self.inner(x_t, t, **cond)
            return plain

        def shifted(h: Any) -> Any:
            extra = self.direction.ndim - (h.ndim - 1)
            if extra not in (0, 1) or (extra == 1 and step >= len(self.direction)):
                raise FokkerError(
                    f"a direction of shape {tuple(self.direction.shape)} does not fit a bottleneck of {tuple(h.shape[1:])} at "
                    f"step {step}; give one for all steps, or one a step"
                )
            return h + self.scale * (self.direction[step] if extra else self.direction).to(h)

        with taps(self._network[0], edit={self.tap: shifted}):
            belief: Tensor = self.inner(x_t, t, **cond)
        return belief


@dataclass(frozen=True)
class Directions:
    """Directions (k, steps, channels, ...) of unit norm, and how far the activations spread along each (k,)."""

    vectors: Tensor
    spread: Tensor


class HSpace:
    """The bottleneck of a denoiser along the runs of a plan.

        space = HSpace(model.denoiser, plan)
        h, x_0 = space.collect(500, (1, 8, 8))                     # (n, steps, channels, ...)
        found = space.pca(h, 3)                                    # global directions, unsupervised
        left = space.mean_difference(h, mass > 0)                  # one for an attribute
        x_0 = fk.sample(BottleneckShift(model.denoiser, left, 2.0), x_1, plan)

    Reference: Haas et al. 2024, arXiv 2303.11073.
    """

    def __init__(self, denoiser: Denoiser, plan: Plan, net: nn.Module | None = None, tap: str | None = None) -> None:
        self.denoiser, self.plan = denoiser, plan
        self.net = find(denoiser) if net is None else net
        self.tap = tap or middle(self.net)

    def collect(
        self, n: int, shape: tuple[int, ...], seed: int = 0, batch: int = 256, **cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """(h, x_0) of n runs from the noises 0 .. n - 1: activations (n, steps, channels, ...) and samples (n, *shape)."""
        found, samples = [], []
        for first in range(0, n, batch):
            ids = range(first, min(first + batch, n))
            here: dict[str, Any] = {
                k: v[first : first + len(ids)] if isinstance(v, Tensor) else v for k, v in cond.items()
            }
            x = self.denoiser.process.start(noise((len(ids), *shape), seed, ids))
            rows: list[Tensor] = []

            def keep(h: Tensor, rows: list[Tensor] = rows) -> Tensor:
                rows.append(h.detach())
                return h

            with taps(self.net, edit={self.tap: keep}):
                samples.append(run(self.denoiser, x, self.plan, seed=seed, ids=list(ids), **here).x0)
            found.append(torch.stack(rows, 1))
        return torch.cat(found), torch.cat(samples)

    def pca(self, h: Tensor, k: int, per_step: bool = False) -> Directions:
        """The first k principal components of activations (n, steps, ...), all steps as one vector or each step by itself.

        By the Gram matrix of the n centred activations. Signs are free. Raises FokkerError for k not below n.
        """
        if not 1 <= k < len(h):
            raise FokkerError(f"k={k} components of {len(h)} activations; use 1 to {len(h) - 1}")
        if per_step:
            steps = [self.pca(h[:, j : j + 1], k) for j in range(h.shape[1])]
            spread = torch.stack([s.spread for s in steps], 1).square().sum(1).sqrt()
            return Directions(torch.cat([s.vectors for s in steps], 1), spread)
        flat = (h - h.mean(0)).flatten(1).to(torch.float64)
        values, vectors = torch.linalg.eigh(flat @ flat.T)
        values, vectors = values.flip(0)[:k].clamp_min(0), vectors.flip(1)[:, :k]
        directions = (flat.T @ vectors / values.clamp_min(1e-30).sqrt()).T
        return Directions(directions.reshape(k, *h.shape[1:]).to(h.dtype), (values / (len(h) - 1)).sqrt().to(h.dtype))

    def mean_difference(self, h: Tensor, positive: Tensor) -> Tensor:
        """Mean activation of the positive samples (n,) bool minus that of the others: (steps, channels, ...)."""
        if positive.shape != (len(h),) or not bool(positive.any()) or bool(positive.all()):
            raise FokkerError(
                f"{int(positive.sum())} of {len(h)} samples are positive; give one truth value a sample, of both kinds"
            )
        return h[positive].mean(0) - h[~positive].mean(0)

    def jacobian(
        self, x_t: Tensor, t: float, k: int, iterations: int = 50, seed: int = 0, **cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """The k strongest directions in which h moves the noise prediction of one state: (values (k,), directions (k, *h)).

        Subspace iteration v <- J^T J v with J = d eps / d h at x_t (1, ...), one Jacobian-vector and one vector-Jacobian
        product each, deflated against the vectors found before.
        """
        if len(x_t) != 1:
            raise FokkerError(f"a Jacobian belongs to one state, not to {len(x_t)}; give x_t (1, ...)")
        with taps(self.net, [self.tap]) as seen, torch.no_grad():
            self.denoiser(x_t, t, **cond)
        h = seen[self.tap]
        function = self.through(x_t, t, **cond)
        value, pull, *_ = torch.func.vjp(function, torch.zeros_like(h))

        # a product with J is the derivative of the pull-back with respect to what it pulls: exact, as it is linear
        def push(v: Tensor) -> Tensor:
            return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1](v)[0]  # type: ignore[no-any-return]

        directions: list[Tensor] = []
        values: list[Tensor] = []
        for j in range(k):
            v = noise((1, *h.shape[1:]), seed, [j], stream="measure", dtype=h.dtype)
            size = torch.zeros(())
            for _ in range(iterations):
                for other in directions:
                    v = v - (v * other).sum() * other
                v = v / v.norm()
                w = pull(push(v))[0]
                size = w.norm().sqrt()
                v = w
            for other in directions:
                v = v - (v * other).sum() * other
            directions.append(v / v.norm())
            values.append(size)
        return torch.stack(values), torch.cat(directions)

    def through(self, x_t: Tensor, t: float, **cond: Cond) -> Callable[[Tensor], Tensor]:
        """dh -> eps(x_t, t) with the bottleneck shifted by dh: differentiable."""

        def function(dh: Tensor) -> Tensor:
            with taps(self.net, edit={self.tap: lambda h: h + dh}):
                return self.denoiser.predict("eps", x_t, t, **cond)

        return function


def project_out(v: Tensor, other: Tensor) -> Tensor:
    """v - <v, c> / <c, c> c over all entries: a direction without its part along another."""
    along: Tensor = (v * other).sum() / other.square().sum() * other
    return v - along
