"""The chains of tokens on which checks of discrete diffusion are run."""

import torch
from torch import Tensor

from fokker.data.toys import text
from fokker.discrete import MarkovChain
from fokker.keyed import uniform


def english(length: int) -> MarkovChain:
    """Spaces, vowels, consonants and stops as they follow one another in real English text."""
    start, transition = text.chain(4)
    return MarkovChain(torch.from_numpy(start), torch.from_numpy(transition), length)


def sparse(size: int, length: int, seed: int, successors: int = 2) -> MarkovChain:
    """Every token has `successors` that may follow it, drawn anew for each seed; all other pairs are all but forbidden.

    They keep 1e-9 of a row, so that the belief stays defined after a sampler's own mistake: it is then the one with fewest.
    """
    u = uniform((size, 2 * size), seed, stream="check", bits=52)
    allowed = u[:, :size].argsort(1).argsort(1) < successors
    weight = torch.where(allowed, 0.5 + u[:, size:], 1e-9)
    transition = weight / weight.sum(1, keepdim=True)
    return MarkovChain(torch.full((size,), 1 / size), transition, length)


def forbidden(law: MarkovChain, x: Tensor) -> float:
    """The share of neighbouring pairs (n, length - 1) that the law does not have."""
    return float((law.transition[x[:, :-1], x[:, 1:]] < 1e-6).double().mean())
