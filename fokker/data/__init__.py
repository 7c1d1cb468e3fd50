"""Data sets: embedded ones by name, the user's own by path, and the order in which training sees them.

A data set is a `Source`: `len(d)`, `d[i] -> {"x": float32 in [-1, 1], "label": int, ...}`, `d.batch(indices)` with every tensor
stacked, `d.shape`, `d.classes`, `d.conditions`, `d.texts`, `d.fingerprint`.

To add an embedded one, put a module in `fokker/data/toys/` with a function `build(n, seed, split, ...)` that returns a
Source; its file name is its name, and nothing else is edited.
"""

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import iter_modules
from typing import TypeVar

from fokker.data.epochs import Shards, batch_indices, order
from fokker.data.faults import Finding, Report, check
from fokker.data.source import Arrays, Condition, Source
from fokker.errors import unknown
from fokker.options import check_types

__all__ = [
    "Arrays",
    "Condition",
    "Finding",
    "Report",
    "Shards",
    "Source",
    "batch_indices",
    "check",
    "names",
    "open",
    "order",
    "toy",
]

S = TypeVar("S", bound=Source)


def names() -> tuple[str, ...]:
    """The names of the embedded data sets."""
    return tuple(sorted(m.name for m in iter_modules([str(Path(__file__).parent / "toys")])))


def toy(name: str, n: int | None = None, seed: int = 0, split: str = "train", **options: object) -> Arrays:
    """An embedded data set by name; n items (default: its own choice) of a split, a function of (name, seed, split, options).

    split: "train", "test" (never overlapping) or "all". The options are those of `fokker.data.toys.NAME.build`; an unknown
    one raises FokkerError with the nearest that exists.
    """
    if name not in names():
        raise unknown("embedded data set", name, names())
    build: Callable[..., Arrays] = import_module(f"fokker.data.toys.{name}").build
    given = {**options, "seed": seed, "split": split} | ({} if n is None else {"n": n})
    return _call(build, f"option of {name}", given)


def open(spec: str | os.PathLike[str], **options: object) -> Source:
    """A data set from what a user names.

    spec: `toy:NAME` (embedded), a folder of images (class sub-folders optional), a .tar of images (`class/name.jpg` or
    webdataset `key.jpg` + `key.cls`), a folder of such tars, a .npz or .safetensors file of arrays, or `hf:NAME` (needs the
    extra [hf]; the only one that may download). Options: see `toy`, `fokker.data.images.open_images`,
    `fokker.data.arrays.open_arrays`, `fokker.data.hub.open_hub`. Raises FokkerError for a bad file, by name, before any
    training step.
    """
    text = os.fspath(spec)
    if text.startswith("toy:"):
        return toy(text.removeprefix("toy:"), **options)  # type: ignore[arg-type]
    if text.startswith("hf:"):
        from fokker.data.hub import open_hub

        return _call(open_hub, "option of a hub data set", options, text.removeprefix("hf:"))
    if Path(text).suffix in (".npz", ".safetensors"):
        from fokker.data.arrays import open_arrays

        return _call(open_arrays, "option of a file of arrays", options, text)
    from fokker.data.images import open_images

    return _call(open_images, "option of a set of images", options, text)


def _call(function: Callable[..., S], kind: str, options: Mapping[str, object], *given: str) -> S:
    """Calls with options that were checked against the function's own parameters."""
    parameters = list(signature(function).parameters.values())[len(given) :]
    accepted = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    for option in options:
        if option not in accepted:
            raise unknown(kind, option, accepted)
    check_types(function, kind.removeprefix("option of "), options, given)
    return function(*given, **options)
