"""Features of a frozen denoiser: activations of a module at a noise level, and linear probes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.keyed import noise, sample_ids
from fokker.net.taps import taps


@dataclass(frozen=True)
class FeatureExtractor:
    """Rows (n, d): the activations of modules `names` at x_t, averaged over `draws` of noise, pooled, flattened, side by side.

    denoiser  any; module names are those of its network (`denoiser.net`) if it has one
    names     one or more modules, as `fokker.net.taps` takes them
    t         the noise level; the network is told it as in sampling
    pool      spatial maps are averaged over bins to pool x pool (pool for sequences); 0 keeps them as they are
    draws     noises a sample: one is noisy at large t

    Noise is keyed by sample: give training and test items different `ids`. Reference: Mukhopadhyay et al. 2023,
    arXiv 2307.08702.
    """

    denoiser: Denoiser
    names: Sequence[str]
    t: float = 0.1
    pool: int = 2
    draws: int = 1
    chunk: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1 or self.pool < 0 or self.draws < 1 or not self.names:
            raise FokkerError(
                f"t={self.t}, pool={self.pool}, draws={self.draws}, names={list(self.names)}; give a time in [0, 1], a size "
                "that is not negative, at least one draw and one module"
            )

    @torch.no_grad()
    def __call__(self, x: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None, **cond: Cond) -> Tensor:
        """Features (n, d), float32, of samples x (n, ...); conditions as the denoiser takes them."""
        which = sample_ids(len(x), ids)
        rows = []
        for a in range(0, len(x), self.chunk):
            part = slice(a, a + self.chunk)
            own = {k: v[part] if isinstance(v, Tensor) and v.ndim else v for k, v in cond.items()}
            drawn = [self.one(x[part], k, seed, which[part], own) for k in range(self.draws)]
            rows.append(torch.stack(drawn).mean(0))
        return torch.cat(rows)

    def one(self, x: Tensor, k: int, seed: int, ids: Tensor, cond: dict[str, Cond]) -> Tensor:
        """The features under the k-th noise."""
        eps = noise(tuple(x.shape), seed, ids, "measure", k, x.dtype, x.device)
        alpha, _, sigma = self.denoiser.process.at(self.t)
        root = getattr(self.denoiser, "net", self.denoiser)
        with taps(root, self.names) as seen:
            self.denoiser(alpha * x + sigma * eps, self.t, **cond)
        return torch.cat([self.pooled(h) for h in seen.values()], 1)

    def pooled(self, h: Tensor) -> Tensor:
        """(n, d) of activations (n, C, *space), or (n, tokens, C) of a transformer."""
        if h.ndim == 3:
            h = h.transpose(1, 2)
        if self.pool and h.ndim in (3, 4, 5):
            size = [min(self.pool, s) for s in h.shape[2:]]
            h = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[h.ndim - 3](h, size)  # type: ignore[arg-type]
        return h.flatten(1).float()


@dataclass(frozen=True)
class Probes:
    """Accuracies (modules, times) of linear probes on two splits: choose a cell on one, report it on the other."""

    names: tuple[str, ...]
    times: tuple[float, ...]
    validation: Tensor
    test: Tensor

    @property
    def best(self) -> tuple[str, float]:
        """The module and time of greatest accuracy on the validation split."""
        i, j = divmod(int(self.validation.argmax()), len(self.times))
        return self.names[i], self.times[j]

    @property
    def accuracy(self) -> float:
        """The test accuracy of the best cell."""
        return float(self.test.flatten()[int(self.validation.argmax())])

    def table(self) -> str:
        """The test accuracies as text, modules down, times across."""
        head = " " * 12 + "".join(f"{t:>8.3g}" for t in self.times)
        lines = [
            f"{name:<12}" + "".join(f"{a:>8.3f}" for a in row)
            for name, row in zip(self.names, self.test.tolist(), strict=True)
        ]
        return "\n".join([head, *lines])


def sweep(
    denoiser: Denoiser,
    names: Sequence[str],
    times: Sequence[float],
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    pool: int = 2,
    draws: int = 1,
    strength: float = 1.0,
    seed: int = 0,
    **cond: int,
) -> Probes:
    """A linear probe on every module at every time: the grid of accuracies.

    Each split is (x, label). Features are standardised by the training split and given to scikit-learn's logistic regression
    with penalty |w|^2 / (2 strength). Conditions are constants for all samples, such as label=-1 for none. Noise differs
    between the splits.
    """
    splits = (train, validation, test)
    first = 0
    spans = []
    for x, _ in splits:
        spans.append(torch.arange(first, first + len(x)))
        first += len(x)
    one = train[0][:1]
    none = {k: torch.full((1,), v, dtype=torch.int64) for k, v in cond.items()}
    widths = [FeatureExtractor(denoiser, [name], times[0], pool)(one, seed, None, **none).shape[1] for name in names]
    grids = torch.zeros(2, len(names), len(times), dtype=torch.float64)
    for j, t in enumerate(times):
        # all modules are read in one pass
        found: list[list[Tensor]] = []
        for (x, _), ids in zip(splits, spans, strict=True):
            extractor = FeatureExtractor(denoiser, names, t, pool, draws)
            given = {k: v.expand(len(x)) for k, v in none.items()}
            found.append(list(extractor(x, seed, ids, **given).split(widths, 1)))
        for i in range(len(names)):
            fitted = probe(found[0][i], train[1], strength)
            for row, which in ((0, 1), (1, 2)):
                grids[row, i, j] = float((fitted(found[which][i]) == splits[which][1]).double().mean())
    return Probes(tuple(names), tuple(times), grids[0], grids[1])


@dataclass(frozen=True)
class Probe:
    """A standardised linear classifier: features (n, d) to classes (n,)."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Log-odds (n, classes), float64."""
        return ((features.double() - self.mean) / self.std) @ self.weight.T + self.bias

    def __call__(self, features: Tensor) -> Tensor:
        return self.classes[self.logits(features).argmax(1)]


def probe(features: Tensor, label: Tensor, strength: float = 1.0) -> Probe:
    """A logistic regression on standardised features (n, d) with labels (n,); FokkerError for fewer than two classes."""
    from sklearn.linear_model import LogisticRegression

    rows = features.double()
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    if len(label) != len(rows) or len(set(label.tolist())) < 2:
        raise FokkerError(
            f"{len(rows)} rows with {len(label)} labels; a probe needs one label a row, of two classes or more"
        )
    fit = LogisticRegression(C=strength, max_iter=2000).fit(((rows - mean) / std).numpy(), label.numpy())
    weight, bias = torch.as_tensor(fit.coef_), torch.as_tensor(fit.intercept_)
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return Probe(mean, std, weight, bias, torch.as_tensor(fit.classes_))
