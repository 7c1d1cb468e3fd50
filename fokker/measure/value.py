"""A measured number that cannot be separated from how it was measured."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fokker.errors import FokkerError

Setting = str | int | float | bool | None
Better = Literal["lower", "higher"]


def _plain(x: float | None) -> float | str | None:
    """JSON has no infinities, so those are written as strings, which `float` reads back."""
    return x if x is None or math.isfinite(x) else str(x)


def _read(x: object) -> float | None:
    return None if x is None else float(str(x))


@dataclass(frozen=True)
class Value:
    """One measurement: the number, its unit and direction, its sampling error, its floor, and the settings behind it.

    error     the standard deviation of `value` over new draws of what was sampled; None where it is not known
    floor     what real data against real data gives, from `floor_n` items a side; None where it was not asked for
    settings  every option that changes the number: features, reference, seeds, and n where the estimator is biased in n

    Two values compare (`<`, `<=`, `>`, `>=`, `ratio`) only when name, unit and settings are the same; otherwise FokkerError
    names the difference. Comparing with a plain number is always allowed. `==` is equality of everything.
    """

    value: float
    name: str
    n: int
    better: Better = "lower"
    unit: str = ""
    features: str = ""
    error: float | None = None
    floor: float | None = None
    floor_n: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict, hash=False)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of name, unit and settings: equal digests mean comparable values."""
        text = json.dumps([self.name, self.unit, dict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def difference(self, other: "Value") -> str:
        """What keeps two values from being compared, as words; empty when nothing does."""
        if self.name != other.name:
            return f"one is {self.name}, the other {other.name}"
        if self.unit != other.unit:
            return f"one is in {self.unit or 'no unit'}, the other in {other.unit or 'no unit'}"
        keys = sorted(set(self.settings) | set(other.settings))
        pairs = [(k, self.settings.get(k, "not set"), other.settings.get(k, "not set")) for k in keys]
        return ", ".join(f"{k} is {a} in one and {b} in the other" for k, a, b in pairs if a != b)

    def ratio(self, other: "Value") -> float:
        """value / other.value, for values of the same settings; raises FokkerError otherwise."""
        theirs = self._comparable(other)
        return self.value / theirs if theirs else math.copysign(math.inf, self.value) if self.value else math.nan

    @property
    def over_floor(self) -> float:
        """value / floor: 1 says that the samples cannot be told from real data by this metric at this n."""
        if self.floor is None:
            raise FokkerError(f"{self.name} was measured without a floor; measure it again with floor=True")
        return self.value / self.floor if self.floor else math.inf

    def beats(self, other: "Value") -> bool:
        """Whether this value is strictly the better one, by the direction of the metric."""
        return self < other if self.better == "lower" else self > other

    def __float__(self) -> float:
        return float(self.value)

    def __lt__(self, other: "Value | float") -> bool:
        return self.value < self._comparable(other)

    def __le__(self, other: "Value | float") -> bool:
        return self.value <= self._comparable(other)

    def __gt__(self, other: "Value | float") -> bool:
        return self.value > self._comparable(other)

    def __ge__(self, other: "Value | float") -> bool:
        return self.value >= self._comparable(other)

    def _comparable(self, other: "Value | float") -> float:
        if not isinstance(other, Value):
            return float(other)
        if reason := self.difference(other):
            raise FokkerError(f"these two values of {self.name} do not compare: {reason}; measure both the same way")
        return other.value

    def __str__(self) -> str:
        number, spread = _rounded(self.value, self.error)
        notes = [f"n={self.n}"]
        if self.floor is not None:
            at = f" at n={self.floor_n}" if self.floor_n not in (None, self.n) else ""
            notes.insert(0, f"floor {_rounded(self.floor, self.error)[0]}{at}")
        if self.features:
            notes.append(f"features={self.features}")
        notes.append(f"{self.better} is better")
        return f"{number}{spread}{' ' + self.unit if self.unit else ''} ({', '.join(notes)})"

    def json(self) -> dict[str, object]:
        """Plain JSON: every field and the digest."""
        return {
            "name": self.name,
            "value": _plain(self.value),
            "error": _plain(self.error),
            "floor": _plain(self.floor),
            "floor_n": self.floor_n,
            "n": self.n,
            "unit": self.unit,
            "features": self.features,
            "better": self.better,
            "settings": {k: _plain(v) if isinstance(v, float) else v for k, v in self.settings.items()},
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> "Value":
        """The Value that `json` wrote; raises FokkerError where the digest does not fit the settings."""
        try:
            settings = record["settings"]
            floor_n = record["floor_n"]
            value = _read(record["value"])
            if not isinstance(settings, Mapping) or value is None:
                raise KeyError("settings")
            read = cls(
                value=value,
                name=str(record["name"]),
                n=int(str(record["n"])),
                better="lower" if record["better"] == "lower" else "higher",
                unit=str(record["unit"]),
                features=str(record["features"]),
                error=_read(record["error"]),
                floor=_read(record["floor"]),
                floor_n=None if floor_n is None else int(str(floor_n)),
                settings=dict(settings),
            )
        except KeyError as missing:
            raise FokkerError(
                f"the record of a value has no {missing}; give a dictionary written by Value.json"
            ) from None
        if read.digest != record.get("digest", read.digest):
            raise FokkerError(
                f"the settings of this {read.name} do not fit its digest: the record was altered; measure again"
            )
        return read


def _rounded(value: float, error: float | None) -> tuple[str, str]:
    """The number to the precision that its error allows: one digit of the error, two where it starts with 1."""
    if error is None or not math.isfinite(error) or error <= 0 or not math.isfinite(value):
        return f"{value:.4g}", ""
    leading = math.floor(math.log10(error))
    places = -leading + (1 if error / 10.0**leading < 2 else 0)
    size = math.log10(max(abs(value), error))
    if size < -4 or size >= 6:
        return f"{value:.{max(1, places + math.floor(size))}e}", f" +- {error:.1e}"
    places = max(places, 0)
    return f"{value:.{places}f}", f" +- {error:.{places}f}"
