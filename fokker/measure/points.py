"""One number an item: end-point errors, likelihoods, classes, and the distance of categorical laws."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.measure import features as extract
from fokker.measure.features import Features, digest
from fokker.measure.metric import EXECUTION, Metric, mean_error, pair, rows, share_error
from fokker.measure.value import Better, Setting, Value


@runtime_checkable
class HasLogProb(Protocol):
    """Anything with a log-density: a law."""

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EndPointRMS(Metric):
    """The root mean square, over items and coordinates, of x - truth: what a solver's end point misses the exact one by.

    error: sd(|x_i - y_i|^2 / d) / (2 rms sqrt n).
    """

    name: ClassVar[str] = "end_point_rms"

    def each(self, samples: Tensor, truth: Tensor) -> Tensor:
        """The root mean square over the coordinates of each item, shape (n,), for `compare`."""
        x, y = pair(samples, truth)
        return (x - y).flatten(1).square().mean(dim=1).sqrt()

    def __call__(self, samples: Tensor, truth: Tensor) -> Value:
        squares = self.each(samples, truth).square()
        rms = math.sqrt(float(squares.mean()))
        error = mean_error(squares) / (2 * rms) if rms else 0.0
        return self.value(rms, len(squares), error, found={"truth": digest(truth)})


@dataclass(frozen=True)
class RelativeError(Metric):
    """The median over items of |x - truth| / |truth|.

    error: half the distance of the order statistics one standard error (sqrt n / 2 ranks) to either side of the median.
    """

    name: ClassVar[str] = "relative_error"

    def each(self, samples: Tensor, truth: Tensor) -> Tensor:
        """|x_i - y_i| / |y_i|, shape (n,); raises FokkerError for a true item that is exactly 0."""
        x, y = pair(samples, truth)
        size = y.flatten(1).square().sum(dim=1).sqrt()
        if bool((size == 0).any()):
            raise FokkerError(
                f"{int((size == 0).sum())} true items are exactly 0: relative errors do not exist; use EndPointRMS"
            )
        return (x - y).flatten(1).square().sum(dim=1).sqrt() / size

    def __call__(self, samples: Tensor, truth: Tensor) -> Value:
        each = self.each(samples, truth)
        ranks = torch.tensor([0.5, 0.5 - 0.5 / math.sqrt(len(each)), 0.5 + 0.5 / math.sqrt(len(each))]).to(each)
        median, low, high = each.quantile(ranks).tolist()
        return self.value(median, len(each), (high - low) / 2, found={"truth": digest(truth)})


@dataclass(frozen=True)
class NLL(Metric):
    """The mean negative log-density of data under a model, in nats an item. error: of the mean over the data."""

    name: ClassVar[str] = "nll"
    unit: ClassVar[str] = "nats"
    chunk: int = field(default=512, metadata=EXECUTION)

    def scale(self, nats: Tensor, dim: int) -> Tensor:
        """Nats an item in the unit of the metric; `dim` is the number of coordinates."""
        return nats

    def each(self, data: Tensor, model: HasLogProb | Callable[[Tensor], Tensor]) -> Tensor:
        """The number of each item, shape (n,), for `compare`; `model` is a law or a function x (n, ...) -> log p (n,)."""
        rows(data, at_least=1, what="data")
        log_prob = model.log_prob if isinstance(model, HasLogProb) else model
        parts = [-log_prob(part).detach().to("cpu", torch.float64) for part in torch.split(data, self.chunk)]
        nats = torch.cat([part.reshape(-1) for part in parts])
        if nats.shape != (len(data),):
            raise FokkerError(
                f"the log-density gave shape {tuple(nats.shape)} for {len(data)} items; it must give ({len(data)},)"
            )
        if bool(nats.isnan().any()):
            raise FokkerError(
                f"the log-density is NaN for {int(nats.isnan().sum())} of {len(data)} items; repair the model first"
            )
        return self.scale(nats, data[0].numel())

    def __call__(
        self,
        data: Tensor,
        model: HasLogProb | Callable[[Tensor], Tensor],
        law: HasLogProb | Callable[[Tensor], Tensor] | None = None,
    ) -> Value:
        """The mean over (n, ...) data; where the true law is known, its own number is the floor."""
        each = self.each(data, model)
        floor = None if law is None else float(self.each(data, law).mean())
        floor_n = None if law is None else len(each)
        return self.value(float(each.mean()), len(each), mean_error(each), floor, floor_n, {"data": digest(data)})


@dataclass(frozen=True)
class BitsPerDim(NLL):
    """NLL / (d log 2) - log2 bin_width: the code length of a coordinate on a lattice of that width, in bits.

    `bin_width` is in the unit of the data: 2/256 for bytes scaled to [-1, 1], 1 for a plain density. For dequantised data
    the number is an upper bound of the discrete code length. Reference: Theis, van den Oord, Bethge 2016, arXiv 1511.01844.
    """

    name: ClassVar[str] = "bits_per_dim"
    unit: ClassVar[str] = "bits/dim"
    bin_width: float = 1.0

    def __post_init__(self) -> None:
        if not self.bin_width > 0:
            raise FokkerError(
                f"bin_width={self.bin_width} is not accepted; give a positive width in the unit of the data"
            )

    def scale(self, nats: Tensor, dim: int) -> Tensor:
        return nats / (dim * math.log(2)) - math.log2(self.bin_width)


@dataclass(frozen=True)
class ClassAccuracy(Metric):
    """The share of samples that a classifier (features whose argmax is the class) gives the class they were asked for.

    error: binomial. floor: the accuracy on real items, where they are given.
    """

    name: ClassVar[str] = "class_accuracy"
    better: ClassVar[Better] = "higher"
    classifier: Features | str = "digits-logreg"
    chunk: int = field(default=512, metadata=EXECUTION)

    def each(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Which samples have the class of their label, shape (n,), bool."""
        if labels.shape != samples.shape[:1]:
            raise FokkerError(
                f"{len(samples)} samples with labels of shape {tuple(labels.shape)}; give one label a sample"
            )
        return extract.get(self.classifier)(samples, self.chunk).argmax(dim=1) == labels.cpu()

    def __call__(self, samples: Tensor, labels: Tensor, real: tuple[Tensor, Tensor] | None = None) -> Value:
        """The share for (n, ...) samples and labels (n,); `real` items with their labels give the floor."""
        share = float(self.each(samples, labels).double().mean())
        floor = None if real is None else float(self.each(*real).double().mean())
        floor_n = None if real is None else len(real[0])
        return self.value(share, len(samples), share_error(share, len(samples)), floor, floor_n)


@dataclass(frozen=True)
class TotalVariation(Metric):
    """sum |p_hat - p| / 2 between the frequencies of discrete samples and a categorical law.

    floor: the exact expectation for n draws of the law itself, sum of E|B(n, p) / n - p| / 2 over the states. error: the
    first order in the frequencies, too large at the floor. n is a setting, since the estimate is biased upwards.
    Reference of the floor: De Moivre's mean absolute deviation of the binomial law.
    """

    name: ClassVar[str] = "total_variation"
    biased: ClassVar[bool] = True

    def __call__(self, samples: Tensor, probabilities: Tensor) -> Value:
        """Samples (n,) with probabilities (states,), or token sequences (n, l) with one axis of probabilities a position."""
        p = probabilities.detach().to("cpu", torch.float64)
        tokens = samples.detach().cpu().reshape(len(samples), -1)
        if samples.is_floating_point() or tokens.shape[1] != p.ndim or len(tokens) < 2:
            raise FokkerError(
                f"samples {samples.dtype} {tuple(samples.shape)} with probabilities {tuple(p.shape)}: give at least 2 integer "
                "samples, one column for each axis of the probabilities"
            )
        if bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-6:
            raise FokkerError(f"probabilities sum to {float(p.sum()):.6g}; they must be non-negative and sum to 1")
        if bool((tokens < 0).any()) or bool((tokens >= torch.tensor(p.shape)).any()):
            raise FokkerError(
                f"samples hold tokens outside 0 .. size - 1 of {tuple(p.shape)}; give the law of all states"
            )
        n = len(tokens)
        strides = torch.tensor(p.stride())
        frequency = torch.bincount((tokens * strides).sum(dim=1), minlength=p.numel()).double() / n
        p = p.reshape(-1)
        sign = (frequency - p).sign() / 2
        spread = float((sign.square() * frequency).sum() - (sign * frequency).sum() ** 2)
        deviation = _binomial_deviation(n, p).sum() / 2
        found: dict[str, Setting] = {"law": digest(probabilities)}
        value = float((frequency - p).abs().sum()) / 2
        return self.value(value, n, math.sqrt(max(spread, 0.0) / n), float(deviation), n, found)


def _binomial_deviation(n: int, p: Tensor) -> Tensor:
    """E|B(n, p) / n - p| = 2 (k / n) C(n, k) p^k (1 - p)^(n - k + 1) with k = floor(n p) + 1."""
    inner = p.clamp(1e-300, 1 - 1e-16)
    k = (n * inner).floor() + 1
    log_choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_mass = log_choose + k * inner.log() + (n - k + 1) * torch.log1p(-inner)
    return torch.where((p > 0) & (p < 1), 2 * k / n * log_mass.exp(), 0.0)


@dataclass(frozen=True)
class EffectiveSampleSize(Metric):
    """(sum w)^2 / sum w^2 of importance weights: how many equal weights would be worth as much, from 1 to n.

    Reference: Kish 1965, "Survey sampling".
    """

    name: ClassVar[str] = "effective_sample_size"
    better: ClassVar[Better] = "higher"
    biased: ClassVar[bool] = True

    def __call__(self, log_weights: Tensor) -> Value:
        """Log-weights (n,), not normalised; -inf is a weight of 0."""
        w = log_weights.detach().to("cpu", torch.float64)
        if w.ndim != 1 or bool(w.isnan().any()) or not bool(w.isfinite().any()) or bool((w == torch.inf).any()):
            raise FokkerError(
                f"log_weights of shape {tuple(w.shape)}: give (n,) without NaN or +inf, and at least one above -inf"
            )
        size = torch.exp(2 * w.logsumexp(dim=0) - (2 * w).logsumexp(dim=0))
        return self.value(float(size), len(w))
