"""Samples of Gaussian mixtures whose exact denoiser, score and density are laws of `fokker.laws`."""

import torch

from fokker.data.draws import split_ids
from fokker.data.source import Arrays
from fokker.errors import unknown
from fokker.laws.mixture import GaussianMixture

KINDS = ("ring", "lowrank")


def law(
    kind: str = "ring", dim: int = 64, components: int | None = None, rank: int = 8, law_seed: int = 0
) -> GaussianMixture:
    """The law that `build` samples: 8 modes of deviation 0.1 on a circle of radius sqrt 2, or low-rank modes in `dim` axes."""
    from fokker.laws import named

    if kind not in KINDS:
        raise unknown("kind of mixture", kind, KINDS)
    if kind == "ring":
        return named.ring(components or 8)
    return named.lowrank(dim, components or 10, rank, law_seed)


def build(
    n: int = 4096,
    seed: int = 0,
    split: str = "train",
    kind: str = "ring",
    dim: int = 64,
    components: int | None = None,
    rank: int = 8,
    law_seed: int = 0,
) -> Arrays:
    """x (2,) of a ring of 8 modes or (dim,) of 10 modes of rank 8; label: the component; about unit variance (bounds None).

    The law is fixed by (kind, dim, components, rank, law_seed), see `law`; `seed` only draws from it.
    """
    mixture = law(kind, dim, components, rank, law_seed)
    x, label = mixture.sample_labelled(n, seed, torch.from_numpy(split_ids(n, split)))
    classes = [str(k) for k in range(len(mixture.weights))]
    return Arrays({"x": x, "label": label.to(torch.int64)}, "gmm", f"{kind} of Gaussians", classes, bounds=None)
