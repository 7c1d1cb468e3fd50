"""Compositions: beliefs that are weighted sums of the beliefs of (denoiser, condition) terms, and how the terms are asked.

A composition of weights a_i stands for the score sum a_i s_i, hence for the belief sum a_i D_i + (1 - sum a_i) x_t / alpha.
What has to know the terms themselves (particle weights, density estimators, superposition) asks for `parts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.process import Process, Time, expand

Weight = float | Tensor  # one for all samples, or (batch,)


@dataclass(frozen=True)
class Part:
    """A term of a composition: the belief of `denoiser` under `cond`, `weight` times."""

    denoiser: Denoiser
    cond: dict[str, Cond]
    weight: Weight


@runtime_checkable
class Composition(Protocol):
    """What tells its terms at a state: CFG, Compose, Superposition."""

    def parts(self, x_t: Tensor, t: Time, **cond: Cond) -> list[Part]: ...


def branches(denoiser: Denoiser, x_t: Tensor, t: Time, conds: list[dict[str, Any]], batched: bool = True) -> list[Tensor]:
    """The beliefs under several sets of conditions, asked in one batch if their conditions have equal names and shapes."""
    names = set(conds[0])
    fits = all(set(c) == names for c in conds) and all(
        isinstance(c[k], Tensor) and c[k].shape == conds[0][k].shape and c[k].shape[:1] == x_t.shape[:1]
        for c in conds
        for k in names
    )
    if not (batched and fits and denoiser.stackable):
        return [denoiser(x_t, t, **c) for c in conds]
    n = len(conds)
    # shapes and not lengths, which would fix the batch of an exported graph
    times = torch.cat([t] * n) if isinstance(t, Tensor) and t.ndim and t.shape[0] == x_t.shape[0] else t
    joint = {k: torch.cat([c[k] for c in conds]) for k in names}
    answer: Tensor = denoiser(torch.cat([x_t] * n), times, **joint)
    return list(answer.unflatten(0, (n, -1)).unbind())


def beliefs(parts: Sequence[Part], x_t: Tensor, t: Time, batched: bool = True) -> list[Tensor]:
    """The belief of every part, parts of one denoiser in one batch."""
    out: list[Tensor | None] = [None] * len(parts)
    for denoiser in dict.fromkeys(part.denoiser for part in parts):
        own = [i for i, part in enumerate(parts) if part.denoiser is denoiser]
        for i, belief in zip(own, branches(denoiser, x_t, t, [parts[i].cond for i in own], batched), strict=True):
            out[i] = belief
    return [belief for belief in out if belief is not None]


def coordinates(process: Process, belief: Tensor) -> Tensor:
    """Where weighted sums of beliefs are weighted sums of scores: a mean as it is, probabilities of tokens as logarithms."""
    return torch.log(belief.clamp_min(torch.finfo(belief.dtype).tiny)) if process.tokens else belief


def from_coordinates(process: Process, c: Tensor) -> Tensor:
    """The belief at these coordinates: probabilities add up to 1."""
    return torch.softmax(c, -1) if process.tokens else c


def summed(process: Process, x_t: Tensor, t: Time, weights: Sequence[Weight], found: Sequence[Tensor]) -> Tensor:
    """The belief of the score sum a_i s_i: sum a_i D_i + (1 - sum a_i) x_t / alpha; of tokens prod p_i^a_i, normalised.

    Raises FokkerError without signal (alpha = 0) unless the weights are numbers that sum to 1.
    """
    found = [coordinates(process, belief) for belief in found]
    wide = [expand(a, found[0]).to(found[0]) if isinstance(a, Tensor) else a for a in weights]
    total: Tensor = sum((a * D for a, D in zip(wide[1:], found[1:], strict=True)), wide[0] * found[0])
    rest: Any = 1.0 - sum(wide)
    if process.tokens or (not isinstance(rest, Tensor) and abs(rest) < 1e-12):
        return from_coordinates(process, total)
    alpha = process.coefficients(t, x_t)[0]
    if not isinstance(alpha, Tensor) and alpha == 0:
        raise FokkerError("a composition whose weights do not sum to 1 has no belief where alpha is 0; use start below 1")
    belief: Tensor = total + rest * x_t / alpha
    return belief


def chosen(denoiser: Denoiser, value: Any, n: int, device: torch.device) -> dict[str, Cond]:
    """Conditions for n samples from a mapping, or from the value of the one discrete condition (`label` if there is one).

    Raises FokkerError where it is not clear which condition a value is of.
    """
    if isinstance(value, dict):
        return {k: _rows(v, n, device) for k, v in value.items()}
    names = [name for name in denoiser.conditions or () if name != "y"]
    name = "label" if "label" in names else names[0] if len(names) == 1 else None
    if name is None or isinstance(value, bool) or not isinstance(value, int):
        raise FokkerError(f"the condition {value!r} is not understood; give a mapping such as {{'label': 3}}, or a class")
    return {name: torch.full((n,), value, dtype=torch.int64, device=device)}


def _rows(v: Cond, n: int, device: torch.device) -> Cond:
    """A condition for all samples: plain integers become one row each."""
    return torch.full((n,), v, dtype=torch.int64, device=device) if isinstance(v, int) else v
