"""The contract of a law: what each one states, and what follows for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError, unknown
from fokker.process import Process, Time

# float64 numbers a chunk of states may occupy in one intermediate tensor (32 MiB)
BUDGET = 2**22


class Level(NamedTuple):
    """A noise level: x = alpha x_0 + sigma eps.

    `alpha` and `sigma` are floats, tensors (n, 1) with one level per state, or (n, dim) with one per coordinate. `dof`
    is None for normal noise, else the degrees of freedom of a Student kernel (PFGM++).
    """

    alpha: float | Tensor
    sigma: float | Tensor
    dof: float | None = None

    def part(self, rows: slice) -> "Level":
        """The level of some of the states."""
        alpha, sigma = (c[rows] if isinstance(c, Tensor) else c for c in (self.alpha, self.sigma))
        return Level(alpha, sigma, self.dof)


class Law(ABC):
    """A distribution known exactly.

    Subclasses set `shape` (of one sample), `dim`, `labels` (one per component, or None), and state `belief`,
    `log_density`, `gradient`, `prior`, `draw`, `mean` and `cov`. These work on flat float64 states (n, dim) at a
    `Level`. Shapes, dtypes, times, anchors and memory are dealt with once, in the public methods here: states are (...,
    *shape), results come back in the state's dtype, and one state's result does not depend on the others in its batch.
    """

    shape: tuple[int, ...]
    dim: int
    labels: Tensor | None

    # --- what a law states ---------------------------------------------------------------------------------------

    @abstractmethod
    def belief(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """E[x_0 | x], (n, dim)."""

    @abstractmethod
    def gradient(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """The score, the gradient of `log_density` in x, (n, dim)."""

    @abstractmethod
    def log_density(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """log p(x) at this level, (n,)."""

    @abstractmethod
    def spread(self, x: Tensor, level: Level, prior: Tensor) -> Tensor:
        """The trace of the covariance of x_0 given x, (n,)."""

    @abstractmethod
    def prior(self, label: Tensor | None = None, logits: Tensor | None = None) -> Tensor:
        """Log weights of the components, (components,) or (n, components), under the conditions."""

    @abstractmethod
    def draw(self, prior: Tensor, seed: int, ids: Tensor) -> Tensor:
        """Samples (n, dim), keyed by (seed, id)."""

    @abstractmethod
    def mean(self) -> Tensor:
        """The mean, of shape `shape`."""

    @abstractmethod
    def cov(self) -> Tensor:
        """The covariance (dim, dim) of the flattened samples."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The law on another device; float64 stays float64."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the law's numbers are."""

    @property
    @abstractmethod
    def row_size(self) -> int:
        """Numbers per state in the largest intermediate tensor of `belief`."""

    @property
    @abstractmethod
    def finest(self) -> float:
        """The smallest standard deviation that is not zero: below this noise level nothing happens any more."""

    @property
    @abstractmethod
    def singular(self) -> bool:
        """Whether some direction has no variance, so that there is no density without noise."""

    # --- what follows --------------------------------------------------------------------------------------------

    def denoiser(self, process: Process) -> "LawDenoiser":
        """E[x_0 | x_t] under `process` as a Denoiser.

        Conditions: `label=` (n,) int64, -1 for none; `logits=` (n, components) added to the log weights, zeros for
        none; and `y=` for an anchored process, on which the law of x_0 does not depend.
        """
        return LawDenoiser(self, process)

    def log_prob(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """log p(x) of states (..., *shape), without noise. Raises FokkerError if the law is singular."""
        if self.singular:
            raise FokkerError(
                "this law has directions without variance, so it has no density; use log_prob_t at a t > 0 instead"
            )
        return self._apply("log_density", x, Level(1.0, 0.0), label)

    def log_prob_t(
        self, x_t: Tensor, t: Time, process: Process, label: int | Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """log p_t(x_t), the density of alpha x_0 + beta y + sigma eps, for states (..., *shape)."""
        x, level = self._noised(x_t, t, process, y)
        return self._apply("log_density", x, level, label)

    def score(
        self, x_t: Tensor, t: Time, process: Process, label: int | Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The gradient of log p_t at x_t, which is (alpha E[x_0 | x_t] + beta y - x_t) / sigma^2 (Tweedie)."""
        x, level = self._noised(x_t, t, process, y)
        return self._apply("gradient", x, level, label).reshape(x_t.shape)

    def sample(
        self, n: int, seed: int = 0, ids: Sequence[int] | Tensor | None = None, label: int | Tensor | None = None
    ) -> Tensor:
        """`n` samples (n, *shape) in float64, keyed: sample 17 of a seed is the same alone (`ids=[17]`) and in any
        batch."""
        from fokker.keyed import sample_ids

        which = sample_ids(n if ids is None else len(ids), ids, self.device)
        labels = self._labels(label, (len(which),))
        rows = max(1, BUDGET // (self.row_size * self.dim))
        parts = [
            self.draw(self.prior(None if labels is None else labels[i : i + rows]), seed, which[i : i + rows])
            for i in range(0, max(len(which), 1), rows)
        ]
        return torch.cat(parts).reshape(len(which), *self.shape)

    def flow(
        self,
        process: Process,
        x: Tensor,
        t: Time,
        s: Time,
        label: int | Tensor | None = None,
        y: Tensor | None = None,
        tol: float = 1e-12,
    ) -> Tensor:
        """The exact probability-flow map of `process` from time t to time s, for states (..., *shape).

        See `fokker.laws.flow` for the equation and its accuracy. t and s may be anywhere in [0, 1], the ends included,
        and in either order, one for all or one per state.
        """
        from fokker.laws.flow import transport

        return transport(self, process, x, t, s, label, y, tol)[0]

    def flow_log_prob(
        self,
        process: Process,
        x: Tensor,
        t: Time = 0.0,
        s: Time = 1.0,
        label: int | Tensor | None = None,
        y: Tensor | None = None,
        tol: float = 1e-12,
    ) -> Tensor:
        """log p_t(x) by the change of density along the flow to time s, whose density is known: a check of both.

        Reference: Chen et al. 2018, arXiv 1806.07366; Song et al. 2021, arXiv 2011.13456.
        """
        from fokker.laws.flow import transport

        x_s, change = transport(self, process, x.to(torch.float64), t, s, label, y, tol, density=True)
        return (self.log_prob_t(x_s, s, process, label, y) + change).to(x.dtype)

    # --- borders -------------------------------------------------------------------------------------------------

    def _noised(self, x: Tensor, t: Time, process: Process, y: Tensor | None) -> tuple[Tensor, Level]:
        """The plain state x - beta y and its level, both with the batch dimensions flattened."""
        alpha, beta, sigma = process.coefficients(t, x.to(torch.float64) if isinstance(t, Tensor) else x)
        if process.anchored:
            x = x - beta * process.anchor(y).to(x)
        return x, Level(self._per_state(alpha, x), self._per_state(sigma, x), process.dof)

    def _per_state(self, c: float | Tensor, x: Tensor) -> float | Tensor:
        """A coefficient per leading index of x as (n, 1), or (n, dim) if it varies within a sample."""
        if not isinstance(c, Tensor):
            return c
        if c.numel() == 1:
            return c.reshape(1, 1)
        batch = x.shape[: x.ndim - len(self.shape)]
        if any(size != 1 for size in c.shape[len(batch) :]):
            return c.expand(x.shape).reshape(-1, self.dim)
        return c.reshape(c.shape[: len(batch)]).expand(batch).reshape(-1, 1)

    def _labels(self, label: int | Tensor | None, batch: Sequence[int]) -> Tensor | None:
        if label is None:
            return None
        out = torch.as_tensor(label, dtype=torch.int64, device=self.device)
        if out.shape not in ((), tuple(batch)):
            raise FokkerError(
                f"label has shape {tuple(out.shape)} for states of shape {tuple(batch)}; give one per state"
            )
        return out.expand(batch).reshape(-1)

    def _apply(
        self, what: str, x: Tensor, level: Level, label: int | Tensor | None = None, logits: Tensor | None = None
    ) -> Tensor:
        """One of the stated functions on states (..., *shape) of any dtype, in chunks of bounded memory; (...,
        result)."""
        event = len(self.shape)
        if x.shape[x.ndim - event :] != self.shape or x.ndim < event:
            raise FokkerError(f"a state of shape {tuple(x.shape)} does not end with the law's shape {self.shape}")
        batch = x.shape[: x.ndim - event]
        flat = x.reshape(-1, self.dim).to(torch.float64)
        prior = self.prior(self._labels(label, batch), None if logits is None else logits.reshape(len(flat), -1))
        per_level = isinstance(level.alpha, Tensor) and len(level.alpha) > 1
        per_coordinate = isinstance(level.alpha, Tensor) and level.alpha.shape[-1] > 1
        size = self.row_size * (self.dim if per_coordinate or what in ("spread", "covariance") else 1)
        size *= 8 if level.dof is not None else 1
        function: Callable[[Tensor, Level, Tensor], Tensor] = getattr(self, what)
        rows = max(1, BUDGET // size)
        if len(flat) <= rows:
            out = function(flat, level, prior)
        else:
            parts = [slice(i, i + rows) for i in range(0, len(flat), rows)]
            out = torch.cat(
                [
                    function(flat[p], level.part(p) if per_level else level, prior[p] if prior.ndim == 2 else prior)
                    for p in parts
                ]
            )
        return out.to(x.dtype).reshape(batch + out.shape[1:])


class LawDenoiser(Denoiser):
    """The exact denoiser of a law under a process. The law moves to the device of the states it is given."""

    def __init__(self, law: Law, process: Process) -> None:
        super().__init__(process)
        self.law = law
        self._std: float | None = None

    @property
    def conditions(self) -> tuple[str, ...]:
        return "label", "logits", "y"

    @property
    def data_std(self) -> float:
        if self._std is None:
            self._std = float(self.law.cov().diagonal().mean().sqrt())
        return self._std

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        known = ("label", "logits", "y") if self.process.anchored else ("label", "logits")
        for name in cond:
            if name not in known:
                raise unknown("condition", name, known)
        if x_t.device != self.law.device:
            self.law = self.law.to(x_t.device)
        x, level = self.law._noised(x_t, t, self.process, cond.get("y"))
        return self.law._apply("belief", x, level, cond.get("label"), cond.get("logits")).reshape(x_t.shape)

    def null(self, **cond: Cond) -> dict[str, Cond]:
        # the anchor belongs to the process: there is no belief without it
        anchor = {"y": cond.pop("y")} if "y" in cond else {}
        return super().null(**cond) | anchor
