"""Several sources under one measurement: each with a prior of its own, coupled by nothing but the data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.process import Time
from fokker.restore import Operator


class Sources(Denoiser):
    """The belief of independent sources x (batch, sources, ...), source k by the k-th denoiser: a product of priors.

    All on one process; conditions go to those that know them. With `Sum` as operator every restorer separates the sources:
    joint posterior sampling of tissue and haze, speech and noise, stars and background. `restore.get("dps", ...,
    step=tensor)` guides each source by its own scale. One evaluation of each denoiser. Raises FokkerError for other
    processes or numbers of sources.

    Reference: Stevens, Meral, Yu, Apostolakis, Robert, van Sloun 2023, arXiv 2307.11204.
    """

    evaluations = 0

    def __init__(self, denoisers: Sequence[Denoiser]) -> None:
        if not denoisers or any(repr(d.process) != repr(denoisers[0].process) for d in denoisers):
            raise FokkerError(f"{len(denoisers)} denoisers of sources are not accepted; give one a source, on one process")
        super().__init__(denoisers[0].process)
        self.denoisers = nn.ModuleList(denoisers)
        self.stackable = all(d.stackable for d in denoisers)

    @property
    def conditions(self) -> tuple[str, ...] | None:
        known = [d.conditions for d in self._each()]
        return None if any(k is None for k in known) else tuple(dict.fromkeys(name for k in known for name in k or ()))

    @property
    def data_std(self) -> float | None:
        known = [d.data_std for d in self._each()]
        # the square root of the mean variance over all numbers of the state
        return None if None in known else (sum(s * s for s in known if s is not None) / len(known)) ** 0.5

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if x_t.ndim < 2 or x_t.shape[1] != len(self.denoisers):
            raise FokkerError(f"a state {tuple(x_t.shape)} does not hold {len(self.denoisers)} sources in dimension 1")
        found = []
        for k, denoiser in enumerate(self._each()):
            own = denoiser.conditions
            given = {name: value for name, value in cond.items() if own is None or name in own}
            found.append(denoiser(x_t[:, k], t, **given))
        return torch.stack(found, 1)

    def _each(self) -> list[Denoiser]:
        return [d for d in self.denoisers if isinstance(d, Denoiser)]


class Sum(Operator):
    """y = A(x_1 + ... + x_n) of sources x (batch, sources, ...), A the identity unless `inner` is given."""

    def __init__(self, inner: Operator | None = None, sources: int = 2) -> None:
        if sources < 1:
            raise FokkerError(f"sources={sources} is not accepted; give how many are summed, at least 1")
        self.inner, self.sources, self.linear = inner, sources, inner is None or inner.linear

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.sources:
            raise FokkerError(f"a state {tuple(x.shape)} does not hold {self.sources} sources in dimension 1")
        total = x.sum(1)
        return total if self.inner is None else self.inner.forward(total)

    def seen(self, v: Tensor) -> Tensor:
        return v if self.inner is None else self.inner.seen(v)

    def adjoint(self, y: Tensor) -> Tensor:
        x = y if self.inner is None else self.inner.adjoint(y)
        return x[:, None].repeat(1, self.sources, *[1] * (x.ndim - 1))

    def solve(self, v: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 0.0) -> Tensor:
        if self.inner is None:
            return v / (self.sources * a + b)
        return self.inner.solve(v, self.sources * a, b)
