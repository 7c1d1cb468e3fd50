"""One evolutionary engine: a population, mutation, crossover, elitism, and every candidate evaluated once.

Fitness is paired: a caller evaluates all candidates on the same noises, so that differences between them are differences
between them. A ranked predictor, where given, chooses among proposals which one is worth a true evaluation.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fokker.errors import FokkerError

G = TypeVar("G", bound=Hashable)
Random = np.random.Generator
KNOWN = 200  # candidates, the best, that a predictor is fitted to


@dataclass(frozen=True)
class Space(Generic[G]):
    """Candidates (hashable, never changed in place): a random one, a mutation of one, a child of two, and its features."""

    random: Callable[[Random], G]
    mutate: Callable[[G, Random], G]
    cross: Callable[[G, G, Random], G]
    features: Callable[[G], Sequence[float]] | None = None


@dataclass
class Evolution(Generic[G]):
    """What a search found: `best` and its `value`, everything that was evaluated, and the best value after each evaluation."""

    values: dict[G, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    @property
    def ranked(self) -> list[G]:
        """All candidates, best first."""
        return sorted(self.values, key=self.values.__getitem__)

    @property
    def best(self) -> G:
        return self.ranked[0]

    @property
    def value(self) -> float:
        return self.values[self.best]

    @property
    def evaluations(self) -> int:
        return len(self.values)


def evolve(
    space: Space[G],
    fitness: Callable[[G], float],
    budget: int,
    seed: int = 0,
    seeds: Sequence[G] = (),
    population: int = 50,
    parents: int = 10,
    mutated: float = 0.5,
    crossed: float = 0.35,
    proposals: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evolution[G]:
    """Minimise `fitness` with at most `budget` evaluations.

    The first generation is `seeds`, filled up with random candidates; each later one has a share `mutated` of mutations and
    `crossed` of children of the `parents` best ever seen, and random ones for the rest. With `proposals` > 1 a generation
    makes that many times more candidates, and the predictor, refitted to all that is known, keeps the most promising.

    Raises FokkerError for a budget below the number of seeds or shares that exceed 1. Reference: Li et al. 2023, arXiv
    2309.10438 (the engine); Liu et al. 2023, arXiv 2312.07243 (the predictor).
    """
    if budget < max(1, len(seeds)) or population < 2 or parents < 1 or mutated + crossed > 1:
        raise FokkerError(
            f"budget={budget}, population={population}, parents={parents}, mutated={mutated}, crossed={crossed} are not "
            "accepted; evaluate at least all seeds, with two candidates or more and shares that add up to at most 1"
        )
    if proposals > 1 and space.features is None:
        raise FokkerError("a predictor needs a space with features; give Space(features=...) or proposals=1")
    draw = np.random.default_rng(seed)
    found: Evolution[G] = Evolution()

    def evaluate(candidates: Sequence[G]) -> None:
        for candidate in candidates:
            if candidate in found.values or len(found.values) >= budget:
                continue
            value = float(fitness(candidate))
            found.values[candidate] = value if value == value else float("inf")
            found.history.append(min(found.values[candidate], found.history[-1] if found.history else float("inf")))
            if progress is not None:
                progress(len(found.values), budget)

    evaluate([*seeds, *(space.random(draw) for _ in range(population - len(seeds)))])
    generation = population
    for _ in range(50 * budget):  # a small space may have no new candidate left
        if len(found.values) >= budget:
            break
        elite = found.ranked[:parents]
        fresh: dict[G, None] = {}
        for _ in range(4 * generation * proposals):
            if len(fresh) >= generation * proposals:
                break
            child = _child(space, elite, draw, mutated, crossed)
            if child not in found.values:
                fresh[child] = None
        if not fresh:
            break
        chosen = list(fresh)
        if proposals > 1:
            # the order among the good is what counts now
            score = Ranker.fit(space, {g: found.values[g] for g in found.ranked[:KNOWN]})
            chosen = sorted(chosen, key=score)[: max(1, generation // 2)]
        evaluate(chosen)
    return found


def _child(space: Space[G], elite: Sequence[G], draw: Random, mutated: float, crossed: float) -> G:
    u = draw.random()
    one, two = (elite[int(k)] for k in draw.integers(len(elite), size=2))
    if u < mutated:
        return space.mutate(one, draw)
    return space.cross(one, two, draw) if u < mutated + crossed else space.random(draw)


@dataclass(frozen=True)
class Ranker(Generic[G]):
    """A predictor of order, not of value: features and their products, fitted by a logistic loss on pairs.

    score(a) < score(b) says that a is probably the better one.
    """

    space: Space[G]
    centre: Tensor
    scale: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, space: Space[G], values: dict[G, float], ridge: float = 1e-2, updates: int = 60) -> "Ranker[G]":
        """Fit to evaluated candidates: sum over pairs of log(1 + exp(score(better) - score(worse)))."""
        assert space.features is not None
        raw = torch.tensor([list(space.features(g)) for g in values], dtype=torch.float64)
        order = torch.tensor(list(values.values()), dtype=torch.float64)
        centre, scale = raw.mean(0), raw.std(0) + 1e-6
        x = _products((raw - centre) / scale)
        better = (order[:, None] < order[None, :]).to(torch.float64)
        w = torch.zeros(x.shape[1], dtype=torch.float64)
        total = better.sum().clamp_min(1)
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        for k in range(1, updates + 1):
            s = x @ w
            pull = better * torch.sigmoid(s[:, None] - s[None, :]) / total
            slope = x.T @ (pull.sum(1) - pull.sum(0)) + ridge * w
            first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
            w = w - 0.05 * (first / (1 - 0.9**k)) / (torch.sqrt(second / (1 - 0.99**k)) + 1e-8)
        return cls(space, centre, scale, w)

    def __call__(self, candidate: G) -> float:
        assert self.space.features is not None
        x = torch.tensor([list(self.space.features(candidate))], dtype=torch.float64)
        return float(_products((x - self.centre) / self.scale) @ self.weights)


def _products(x: Tensor) -> Tensor:
    upper = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, (x[:, :, None] * x[:, None, :])[:, upper[0], upper[1]] / x.shape[1] ** 0.5], 1)
