"""A data set beside its measurements: what a restoring process is trained on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fokker.data.source import Condition, Indices, Source, as_index
from fokker.errors import FokkerError
from fokker.keyed import noise
from fokker.restore import Operator


class Degraded(Source):
    """Every item of a source with y, what its measurement A x + noise_std n looks like at the item's own size (A^+ of it).

    y (batch, *shape) is what anchored processes start from. The noise is that of the item's number, so that an item is
    measured once, whoever asks. Raises FokkerError where y would not have the item's shape.
    """

    def __init__(self, source: Source, operator: Operator, noise_std: float = 0.0, seed: int = 0) -> None:
        if noise_std < 0:
            raise FokkerError(f"noise_std={noise_std} is not accepted; give a standard deviation, 0 or more")
        self.source, self.operator, self.noise_std, self.seed = source, operator, float(noise_std), seed
        self.name, self.about, self.shape = f"{source.name}, measured", source.about, source.shape
        self.classes, self.vocabulary, self.bounds = source.classes, source.vocabulary, source.bounds
        self.texts, self.skipped, self.shards = source.texts, source.skipped, source.shards
        found = self.measured(source.batch([0])["x"], [0])
        if tuple(found.shape[1:]) != tuple(source.shape):
            raise FokkerError(f"the measurement of {source.name} has shape {tuple(found.shape[1:])}, the items {source.shape}")
        self.conditions = {**source.conditions, "y": Condition(tuple(source.shape), False)}

    def measured(self, x: Tensor, ids: Sequence[int] | Tensor) -> Tensor:
        """y of items x (batch, *shape) whose numbers are `ids`."""
        y = self.operator(x)
        if self.noise_std:
            y = y + self.noise_std * noise(tuple(y.shape), self.seed, ids, stream="data", index=1).to(y)
        return self.operator.pinv(y)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        whole = self.source.batch(indices)
        return {**whole, "y": self.measured(whole["x"], as_index(indices, len(self)))}

    @property
    def fingerprint(self) -> str:
        text = f"{self.source.fingerprint} {self.operator!r} {self.noise_std} {self.seed}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def degraded(source: Source, options: Mapping[str, Any]) -> Degraded:
    """From a recipe's words: {operator: downsample, factor: 2, noise_std: 0.05}, with the operator's own options."""
    from fokker import catalogue

    given = dict(options)
    name, noise_std, seed = str(given.pop("operator", "")), given.pop("noise_std", 0.0), given.pop("seed", 0)
    if not name:
        raise FokkerError("data.degrade needs an operator, such as {operator: downsample, factor: 2, noise_std: 0.05}")
    return Degraded(source, catalogue.resolve("operator", name, **given), float(noise_std), int(seed))
