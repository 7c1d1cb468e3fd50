"""Recipes: a YAML file and `key=value` overrides become one tree of dataclasses, strictly.

Unknown keys are refused with the nearest that exists, wrong types with the place and what is wanted. The sections `data`,
`net`, `process` and `card` are handed on as they stand to whoever builds from them, who is as strict.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fokker.errors import FokkerError, unknown
from fokker.train.ema import Average
from fokker.train.objective import Denoising
from fokker.train.optimiser import Optimiser
from fokker.train.rate import Rate
from fokker.train.trainer import PRECISIONS

T = TypeVar("T")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
RESUME = ("same", "changed", "must")
STORE = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Pictures:
    """Sample grids while training: `n` samples of the averaged weights every `every` samples seen (0 = none)."""

    every: int = 0
    n: int = 64
    solver: str = "dpmpp-2m"
    steps: int = 18


@dataclass(frozen=True)
class Log:
    """A line of log.jsonl every `every` samples; TensorBoard events beside it if asked."""

    every: int = 5_000
    tensorboard: bool = False
    pictures: Pictures = field(default_factory=Pictures)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint every `every` samples, of which the last `keep` stay."""

    every: int = 50_000
    keep: int = 3


@dataclass(frozen=True)
class Recipe:
    """All that determines a training run, and its output folder.

    data        what `fokker.data.open` takes: a name such as toy:digits, or {source: ..., options}
    net         a preset's name, or what `fokker.net.build` takes, {preset: ..., options} included;
                channels, dimension and number of classes are filled in from the data
    process     a name such as EDM, or {process: ..., options}
    conditions  which of the data's conditions the network is given (default: label, if the data have classes)
    sigma_data  the data's standard deviation (default: measured)
    store       the number format of model.safetensors; float16 halves the file
    resume      same: go on only if the recipe is unchanged · changed: go on anyway · must: a checkpoint has to be there
    """

    data: dict[str, Any]
    net: dict[str, Any]
    out: str
    samples: int
    batch: int = 128
    seed: int = 0
    process: dict[str, Any] = field(default_factory=lambda: {"process": "EDM"})
    prediction: str = "edm"
    sigma_data: float | None = None
    conditions: tuple[str, ...] | None = None
    objective: Denoising = field(default_factory=Denoising)
    optimiser: Optimiser = field(default_factory=Optimiser)
    rate: Rate = field(default_factory=Rate)
    average: Average = field(default_factory=Average)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    precision: str = "auto"
    compile: bool = False
    accumulate: int = 1
    sharded: bool = False
    patience: int = 10
    cpu: bool = False
    store: str = "float32"
    resume: str = "same"
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("precision", self.precision, PRECISIONS),
            ("store", self.store, STORE),
            ("resume", self.resume, RESUME),
        ):
            if value not in accepted:
                raise unknown(name, value, accepted)

    def trajectory(self) -> dict[str, Any]:
        """The part that determines the weights after n samples, as JSON: what a resumed run must share with its beginning."""
        how = ["precision", "compile", "accumulate", "sharded", "patience", "cpu"]
        free = ["out", "checkpoint", "log", "store", "resume", "card", *how]
        tree = {k: v for k, v in dataclasses.asdict(self).items() if k not in free}
        if self.rate.kind not in ("cosine", "linear"):
            del tree["samples"]  # such a run may be made longer
        if not self.optimiser.rates:
            del tree["optimiser"]["rates"]  # one rate for all, as it is for recipes that never heard of shares
        plain: dict[str, Any] = _plain(tree)
        return plain


def difference(old: Any, new: Any, place: str = "") -> str | None:
    """The first difference between two JSON trees, as `place: old -> new`, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{place}.{key}" if place else key
            found = difference(old.get(key), new.get(key), inner)
            if found:
                return found
        return None
    return None if old == new else f"{place}: {old!r} -> {new!r}"


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(k): _plain(v) for k, v in tree.items()}
    return [_plain(v) for v in tree] if isinstance(tree, list | tuple) else tree


# --- reading -----------------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file with `key=value` overrides (dotted keys, YAML values) applied on top.

    Raises FokkerError for a missing or unreadable file, an unknown key, a wrong type or a malformed override.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FokkerError(f"there is no file {path}; give the path of a YAML recipe")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FokkerError(f"{path} is not YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(tree, dict):
        raise FokkerError(f"{path} holds {type(tree).__name__}; a recipe is a mapping of keys to values")
    for override in overrides:
        apply(tree, override)
    return read(Recipe, tree)


def apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of a nested mapping from `key=value`."""
    import yaml

    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise FokkerError(f"{override!r} is not an override; write key=value, such as rate.peak=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise FokkerError(f"{override!r}: the value is not YAML; quote it") from None
    for name in names[:-1]:
        below = tree.setdefault(name, {})
        if isinstance(below, str) and name in _SHORT:
            below = tree[name] = {_SHORT[name]: below}
        if not isinstance(below, dict):
            raise FokkerError(f"{override!r}: {name} is {below!r} and has no keys below it")
        tree = below
    tree[names[-1]] = value


_SHORT = {"data": "source", "process": "process", "net": "preset"}  # sections that may be given as a name alone


def read(kind: type[T], tree: Mapping[str, Any], place: str = "") -> T:
    """A dataclass from a mapping; raises FokkerError for unknown keys, missing keys and wrong types, saying where."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{place}{key}"
        if key not in fields:
            raise unknown("key", name, [f"{place}{k}" for k in fields])
        values[str(key)] = _value(hints[key], value, name)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise FokkerError(f"the key {place}{name} is missing; a {kind.__name__.lower()} needs it")
    return kind(**values)


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value` as the annotated type, or FokkerError."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _value(next(a for a in get_args(hint) if a is not type(None)), value, place)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(place, "a section with keys", value)
        return read(hint, value, f"{place}.")  # type: ignore[arg-type]
    if get_origin(hint) is dict:
        if isinstance(value, str) and place in _SHORT:
            return {_SHORT[place]: value}
        if not isinstance(value, Mapping):
            raise _wrong(place, "a section with keys", value)
        kind = get_args(hint)[1]
        return _numbers(value) if kind is Any else {k: _value(kind, v, f"{place}.{k}") for k, v in _dotted(value)}
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(place, "a list", value)
        return tuple(_value(get_args(hint)[0], v, place) for v in value)
    return _scalar(hint, value, place)


def _scalar(hint: Any, value: Any, place: str) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(place, "true or false", value)
        return value
    if hint is str:
        # YAML reads an unquoted no as false; the one option that is called so means the word
        if value is False and place == "precision":
            return "no"
        if not isinstance(value, str):
            raise _wrong(place, "text", value)
        return value
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _wrong(place, "a whole number" if hint is int else "a number", value)
    if hint is int:
        if number != number or math.isinf(number) or number != int(number):
            raise _wrong(place, "a whole number", value)
        return int(number)
    return float(number)


def _number(value: Any) -> Any:
    # YAML 1.1 takes 1e-3 for text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _numbers(tree: Any) -> Any:
    """The tree with YAML's misread numbers (1e-3) as numbers."""
    if isinstance(tree, Mapping):
        return {str(k): _numbers(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_numbers(v) for v in tree]
    return float(tree) if isinstance(tree, str) and _EXPONENT.fullmatch(tree) else tree


def _dotted(tree: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """The values of nested sections by their dotted keys, which may be written either way."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        below = _dotted(value) if isinstance(value, Mapping) else [("", value)]
        found += [(f"{key}.{rest}" if rest else str(key), v) for rest, v in below]
    return found


def _wrong(place: str, wanted: str, value: Any) -> FokkerError:
    return FokkerError(f"{place} must be {wanted}, not {value!r}")
