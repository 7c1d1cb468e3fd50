"""Gaussian mixtures fitted to data: exact denoisers of real data, without training a network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.laws.algebra import mixture
from fokker.laws.components import Diffused
from fokker.laws.forms import as64
from fokker.laws.law import Level
from fokker.laws.mixture import GaussianMixture


def fit(
    data: Tensor,
    components: int,
    rank: int,
    labels: Tensor | Sequence[int] | None,
    seed: int,
    iterations: int,
    floor: float,
) -> GaussianMixture:
    """See `GaussianMixture.fit`."""
    points = as64(data)
    if points.ndim < 2 or len(points) < 2:
        raise FokkerError(f"data has shape {tuple(points.shape)}; give (n, dim) or (n, *shape) with n > 1")
    shape, flat = tuple(points.shape[1:]), points.flatten(1)
    if not 0 <= rank <= flat.shape[1]:
        raise FokkerError(f"rank={rank} is not accepted for data of dimension {flat.shape[1]}; give 0 .. dim")
    if not bool(torch.isfinite(flat).all()):
        raise FokkerError("data must be finite")
    least = floor * float(flat.var(0, correction=0).mean().clamp_min(1e-300))
    if labels is None:
        return _expectation_maximisation(flat, components, rank, shape, seed, iterations, least)
    classes = torch.as_tensor(labels, dtype=torch.int64, device=flat.device)
    if classes.shape != (len(flat),) or bool((classes < 0).any()):
        raise FokkerError(
            f"labels have shape {tuple(classes.shape)} for {len(flat)} points; give one each, not negative"
        )
    names = sorted(set(classes.tolist()))
    laws = [
        _expectation_maximisation(flat[classes == c], components, rank, shape, seed, iterations, least) for c in names
    ]
    return mixture(laws, [float((classes == c).sum()) for c in names], names)


def _expectation_maximisation(
    points: Tensor, components: int, rank: int, shape: Sequence[int], seed: int, iterations: int, least: float
) -> GaussianMixture:
    """EM for a mixture of probabilistic principal component analysers (Tipping & Bishop 1999), from a k-means start."""
    from sklearn.cluster import KMeans

    if not 0 < components <= len(points):
        raise FokkerError(f"components={components} for {len(points)} points (of a class); give 1 .. that many")
    start = KMeans(components, n_init=4, random_state=seed).fit(points.cpu().numpy())
    chosen = torch.as_tensor(start.labels_, dtype=torch.int64, device=points.device)
    shares = torch.nn.functional.one_hot(chosen, components).to(torch.float64)
    law, before = _maximise(points, shares, rank, shape, least), -torch.inf
    for _ in range(iterations if components > 1 else 0):
        log_joint = law.log_weights + Diffused(law, points, Level(1.0, 0.0)).log_likelihood()
        total = torch.logsumexp(log_joint, 1)
        law = _maximise(points, torch.exp(log_joint - total[:, None]), rank, shape, least)
        after = float(total.mean())
        if after - before < 1e-6 * abs(after):
            break
        before = after
    return law


def _maximise(points: Tensor, shares: Tensor, rank: int, shape: Sequence[int], least: float) -> GaussianMixture:
    """The mixture of greatest likelihood given each point's shares (n, K) in the components, no variance below
    `least`."""
    dim = points.shape[1]
    counts = shares.sum(0).clamp_min(1e-10)
    means = (shares.T @ points) / counts[:, None]
    bases, values, rests = [], [], []
    for k in range(shares.shape[1]):
        spread = (points - means[k]) * (shares[:, k] / counts[k]).sqrt()[:, None]
        eigenvalues, vectors = torch.linalg.eigh(spread.T @ spread)
        top = eigenvalues[dim - rank :].clamp_min(least)
        rest = eigenvalues[: dim - rank].mean().clamp_min(least) if rank < dim else top.amax()
        bases.append(vectors[:, dim - rank :])
        values.append(top)
        rests.append(rest)
    form = torch.stack(bases), torch.stack(values), torch.stack(rests)
    return GaussianMixture.build(torch.log(counts), means, form, None, shape)
