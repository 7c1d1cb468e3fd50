"""Verifiers: functions that score finished samples, one or several at once, whose verdicts have a price."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond
from fokker.errors import FokkerError

Verifier = Callable[..., Tensor]  # (x_0 (n, ...), and those conditions that it names) -> (n,), larger is better


@dataclass(frozen=True)
class SelfSimilarity:
    """A verifier that needs no judge: cos(feature(D(x_t)), feature(x_0)), the belief at time `t` against the sample.

    `feature` maps (n, ...) to (n, features); None compares the numbers themselves. For searches over whole runs.
    Reference: Ma et al. 2025, arXiv 2501.09732 (self-supervised verifiers; sigma 0.4 there).
    """

    t: float
    feature: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x_0: Tensor, belief: Tensor) -> Tensor:
        ours, early = (v if self.feature is None else self.feature(v) for v in (x_0, belief))
        return torch.cosine_similarity(ours.flatten(1).to(torch.float64), early.flatten(1).to(torch.float64))


@dataclass(frozen=True)
class Jury:
    """One verifier or several; several decide by the mean of their ranks, so that no scale drowns another.

    `cost` is what the verdicts on one sample are worth in evaluations of the denoiser.
    """

    members: tuple[Verifier, ...]
    cost: float = 0.0

    @classmethod
    def of(cls, verifier: Verifier | Sequence[Verifier], cost: float = 0.0) -> "Jury":
        """Raises FokkerError unless there is a verifier and no cost is negative."""
        members = (verifier,) if callable(verifier) else tuple(verifier)
        if not members or not all(callable(v) for v in members):
            raise FokkerError("give a verifier, a function of samples (n, ...) that returns (n,), or several of them")
        if not cost >= 0:
            raise FokkerError(f"cost={cost} is not accepted; give what a verdict costs in evaluations, at least 0")
        return cls(members, float(cost))

    @property
    def early(self) -> float | None:
        """The time at which a member wants the belief; None if none does."""
        return next((v.t for v in self.members if isinstance(v, SelfSimilarity)), None)

    def scores(self, x_0: Tensor, cond: Mapping[str, Cond], belief: Tensor | None = None) -> Tensor:
        """What every member says, (n, members) in float64 on the CPU; a verdict that is no number is the worst there is."""
        with torch.no_grad():
            said = [self._asked(v, x_0, cond, belief).to("cpu", torch.float64) for v in self.members]
        return torch.nan_to_num(torch.stack(said, 1), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def _asked(self, verifier: Verifier, x_0: Tensor, cond: Mapping[str, Cond], belief: Tensor | None) -> Tensor:
        if isinstance(verifier, SelfSimilarity):
            if belief is None:
                raise FokkerError("SelfSimilarity compares a sample with a belief on its way; use a search over whole runs")
            return verifier(x_0, belief)
        said: Any = verifier(x_0, **{k: v for k, v in cond.items() if k in _named(verifier, cond)})
        if not isinstance(said, Tensor) or said.shape != (len(x_0),):
            found = tuple(said.shape) if isinstance(said, Tensor) else type(said).__name__
            raise FokkerError(f"the verifier returned {found} for {len(x_0)} samples; it must return one number each, (n,)")
        return said

    def verdicts(self, scores: Tensor) -> Tensor:
        """Numbers to compare candidates of a group by, (groups, candidates), from their scores (..., members)."""
        if scores.shape[-1] == 1:
            return scores[..., 0]
        a, b = scores[:, :, None], scores[:, None, :]
        return ((a > b) + 0.5 * (a == b)).sum(2).mean(-1)

    def best(self, scores: Tensor) -> Tensor:
        """The index of the best candidate of each group, the first of equals, (groups,)."""
        return self.verdicts(scores).argmax(1)


def _named(function: Verifier, cond: Mapping[str, Cond]) -> set[str]:
    """The conditions that a function takes."""
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return set()
    return set(cond) if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters[1:]}
