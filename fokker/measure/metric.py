"""What every metric shares: options that become settings, sets of items, floors, and a registry by name."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown
from fokker.keyed import uniform
from fokker.measure import features as extract
from fokker.measure.features import PIXELS, Features
from fokker.measure.value import Better, Setting, Value

# Marks an option that changes how long a measurement takes or what is reported beside it, never the number itself.
EXECUTION = {"setting": False}

# Law draws made here must not coincide with the draws of a user who sampled the same law with a small seed.
_LAW_SEED = 0x6D65_6173_7572_6500


@runtime_checkable
class Samplable(Protocol):
    """Anything that can stand for an infinite reference set: a law."""

    def sample(self, n: int, seed: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class Metric:
    """A measurement with its options; a subclass states `name`, direction and unit, and whether the number depends on n."""

    name: ClassVar[str] = ""
    better: ClassVar[Better] = "lower"
    unit: ClassVar[str] = ""
    biased: ClassVar[bool] = False

    def settings(self) -> dict[str, Setting]:
        """Every option that changes the number; features as their name and digest."""
        out: dict[str, Setting] = {}
        for option in fields(self):
            if not option.metadata.get("setting", True):
                continue
            given = getattr(self, option.name)
            if option.name in ("features", "classifier"):
                given = extract.get(given)
                out[option.name] = given.name
                out[f"{option.name}_digest"] = given.digest
            else:
                out[option.name] = given
        return out

    def value(
        self,
        value: float,
        n: int,
        error: float | None = None,
        floor: float | None = None,
        floor_n: int | None = None,
        found: Mapping[str, Setting] | None = None,
    ) -> Value:
        """The Value of this metric; `found` adds settings known only from the data (the digest of a reference)."""
        settings = self.settings() | dict(found or {})
        if self.biased:
            settings["n"] = n
        finite = error if error is not None and math.isfinite(error) else None
        used = str(settings.get("features", settings.get("classifier", "")))
        return Value(value, self.name, n, self.better, self.unit, used, finite, floor, floor_n, settings)


def rows(x: Tensor, at_least: int = 2, what: str = "samples") -> Tensor:
    """The items as given, checked: a tensor with a leading axis of at least `at_least`."""
    if x.ndim < 2 or len(x) < at_least:
        raise FokkerError(f"{what} of shape {tuple(x.shape)}: give (n, ...) with n of at least {at_least}")
    return x


def finite(x: Tensor, what: str = "samples") -> Tensor:
    """The items in float64 on the CPU; raises FokkerError where some are not finite."""
    x = rows(x.detach().to("cpu", torch.float64), at_least=1, what=what)
    bad = int((~x.flatten(1).isfinite()).any(dim=1).sum())
    if bad:
        raise FokkerError(f"{bad} of {len(x)} {what} are not finite; find out why before measuring the others")
    return x


def pair(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Two checked sets that belong together item by item."""
    if samples.shape != truth.shape:
        raise FokkerError(
            f"samples {tuple(samples.shape)} and truth {tuple(truth.shape)} must have the same shape, item by item"
        )
    return finite(samples), finite(truth, "true items")


def share_error(share: float, n: int) -> float:
    """The standard error of a share of n items; two successes and two failures are added, so that it is never 0.

    Reference: Agresti, Coull 1998, "Approximate is better than exact for interval estimation of binomial proportions".
    """
    p = (share * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / (n + 4))


def mean_error(each: Tensor) -> float:
    """The standard error of the mean of independent numbers."""
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan


@dataclass(frozen=True)
class SetMetric(Metric):
    """A metric between a set of samples and a reference: real items, or a law (from which as many items are drawn).

    features  a Features or the name of one      floor  also measure real against real
    seed      of law draws and random halves     splits how many random halvings the floor averages over
    chunk     items a call of the feature extractor; never changes the number
    """

    features: Features | str = PIXELS
    floor: bool = field(default=True, metadata=EXECUTION)
    seed: int = field(default=0, metadata=EXECUTION)
    splits: int = field(default=4, metadata=EXECUTION)
    chunk: int = field(default=512, metadata=EXECUTION)

    def __call__(self, samples: Tensor, reference: Tensor | Samplable) -> Value:
        """The value for (n, ...) samples; real against real is two random halves of the reference, or two draws of the law."""
        extractor = extract.get(self.features)
        drawn = not isinstance(reference, Tensor)
        real = self._draw(reference, len(samples), 0) if not isinstance(reference, Tensor) else reference
        if samples.shape[1:] != real.shape[1:]:
            raise FokkerError(
                f"samples have shape {tuple(samples.shape[1:])} an item and the reference {tuple(real.shape[1:])}; "
                "they must agree"
            )
        x = extractor(rows(samples), self.chunk)
        y = extractor(rows(real, what="reference items"), self.chunk)
        found: dict[str, Setting] = {"reference": extract.digest(real), "reference_n": len(real), **self.resolve(y)}
        value, error = self.estimate(x, y, found)
        floor, floor_n = None, None
        if self.floor:
            values = []
            for split in range(self.splits):
                if drawn and not isinstance(reference, Tensor):
                    a, b = (extractor(self._draw(reference, len(x), 1 + 2 * split + k), self.chunk) for k in (0, 1))
                else:
                    a, b = halves(y, self.seed, split)
                floor_n = len(a)
                values.append(self.estimate(a, b, found)[0])
            floor = self.typical(values)
        return self.value(value, len(x), error, floor, floor_n, found)

    def _draw(self, law: Samplable, n: int, index: int) -> Tensor:
        return law.sample(n, seed=_LAW_SEED + 4096 * self.seed + index)

    def resolve(self, reference: Tensor) -> dict[str, Setting]:
        """Options that the reference decides (a bandwidth); none here."""
        return {}

    def estimate(self, x: Tensor, y: Tensor, found: Mapping[str, Setting]) -> tuple[float, float]:
        """The number and its standard error for feature rows x (n, d) and y (m, d)."""
        raise FokkerError(f"{type(self).__name__} measures nothing by itself; use one of the metrics built on it")

    def typical(self, values: list[float]) -> float:
        """One floor out of those of several splits."""
        return sum(values) / len(values)


def shuffled(n: int, seed: int, index: int) -> Tensor:
    """A random order of n items, the same everywhere for the same seed and index."""
    return uniform((1, n), seed, stream="measure", index=index)[0].argsort()


def halves(items: Tensor, seed: int, split: int) -> tuple[Tensor, Tensor]:
    """Two random halves of a set, equal in size; raises FokkerError below 4 items."""
    half = len(items) // 2
    if half < 2:
        raise FokkerError(
            f"a floor needs two halves of at least 2 items, there are {len(items)} items; give more, or floor=False"
        )
    order = shuffled(len(items), seed, split)
    return items[order[:half]], items[order[half : 2 * half]]


def registered() -> dict[str, type[Metric]]:
    """Every metric that states a name, the user's own included."""
    found: dict[str, type[Metric]] = {}
    waiting: list[type[Metric]] = [Metric]
    while waiting:
        for metric in waiting.pop().__subclasses__():
            waiting.append(metric)
            if metric.name:
                found[metric.name] = metric
    return found


def names() -> list[str]:
    """The names of all metrics, sorted."""
    return sorted(registered())


def get(name: str, **options: Any) -> Metric:
    """A metric by name with its options; an unknown name or option raises FokkerError with the near match."""
    known = registered()
    if name not in known:
        raise unknown("metric", name, known)
    accepted = {option.name: option for option in fields(known[name])}
    for given in options:
        if given not in accepted:
            raise unknown(f"option of {name}", given, accepted)
    for option in accepted.values():
        if option.default is MISSING and option.default_factory is MISSING and option.name not in options:
            raise FokkerError(f"{name} needs {option.name}; give get({name!r}, {option.name}=...)")
    return known[name](**options)
