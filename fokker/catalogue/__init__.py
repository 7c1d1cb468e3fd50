"""The one list: every published system and every building block as a record, and what follows from a record.

One TOML file a family beside this module; `blocks.toml` holds what is not one of the published systems. A record:

    [[record]]
    id = "dpm-solver-pp"                              # the field's name in kebab-case
    title = "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
    arxiv = "2211.01095"
    authors = ["Cheng Lu", "Yuhao Zhou"]              # "others" as the last one for et al.; may be left out
    kind = "solver"                                   # one of KINDS
    entry = "fokker.solve.multistep:DPMSolverPP"      # left empty while the system is planned
    options = { order = 2 }                           # given to the entry unless the caller says otherwise
    claim = "What its check must show, with the numbers expected."

A method is one class in one file and its record. The record makes it importable from `fokker` and from the package
of its kind, listed, citable, runnable by name and tested. A class of the user's own goes by `module:Class` or
`file.py:Class` wherever a name is taken. The status of a system is derived from measurements
(`fokker.catalogue.measured`), never typed.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from fokker.catalogue.entry import build, load_object, load_user_object
from fokker.catalogue.measured import as_json, count, status, table
from fokker.catalogue.record import KINDS, Record, families, get, index, records
from fokker.errors import FokkerError, unknown

__all__ = [
    "KINDS",
    "Record",
    "as_json",
    "count",
    "entry_class",
    "families",
    "find",
    "get",
    "iterate_entries",
    "lazy_names",
    "names",
    "public",
    "records",
    "resolve",
    "status",
    "table",
]


def names(kind: str) -> list[str]:
    """The names that `resolve` takes for a kind, sorted."""
    return sorted(record.id for record in records(kind=kind, planned=False))


def entry_class(record: Record | str) -> Any:
    """The class or function of a record."""
    record = get(record) if isinstance(record, str) else record
    if not record.entry:
        raise FokkerError(f"{record.id!r} is planned, it has no implementation yet; see `fokker systems`")
    return load_object(record.entry)


def find(kind: str, name: str) -> tuple[Any, Mapping[str, Any]]:
    """The class or function that a name means for a kind, and the options that the record sets."""
    if ":" in name:
        return load_user_object(name), {}
    record = index().get(name)
    if record is None:
        raise unknown(kind, name, names(kind))
    if record.kind != kind:
        raise FokkerError(f"{name!r} is a {record.kind}, not a {kind}; accepted: {', '.join(names(kind))}")
    return entry_class(record), record.options


def resolve(kind: str, name: str, /, *arguments: Any, **options: Any) -> Any:
    """The instance that a name means: an id of the catalogue, or a user's own `module:Class` or `file.py:Class`.

    `arguments` come first (a wrapper's denoiser, a grid's number of steps). Options are those of the constructor;
    an unknown one is refused with the nearest, and so is an unknown name.
    """
    target, preset = find(kind, name)
    return build(target, name, arguments, {**preset, **options})


@functools.cache
def _entries() -> Mapping[str, Record]:
    by_name: dict[str, Record] = {}
    for record in index().values():
        if record.entry:
            by_name.setdefault(record.name, record)
    return by_name


def public(name: str, kinds: Collection[str] | None = None) -> Any:
    """The class or function of this name (`DPMSolverPP`) among all entries; AttributeError when there is none."""
    record = None if name.startswith("_") else _entries().get(name)
    if record is None or (kinds is not None and record.kind not in kinds):
        raise AttributeError(f"fokker has no public name {name!r}")
    return load_object(record.entry)


def lazy_names(kinds: str | Collection[str] = ()) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__, __dir__ = lazy_names("solver")` gives a package the names of a kind, imported when asked for.

    Several kinds make one set of names; none stands for all.
    """
    chosen = {kinds} if isinstance(kinds, str) else set(kinds)
    for kind in chosen:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)

    def getattr_fn(name: str) -> Any:
        return public(name, chosen or None)

    def dir_fn() -> list[str]:
        return sorted(name for name, record in _entries().items() if not chosen or record.kind in chosen)

    return getattr_fn, dir_fn


def iterate_entries() -> Iterator[tuple[Record, Any]]:
    """Every record that has an implementation, with the class or function it points at."""
    for record in records(planned=False):
        yield record, load_object(record.entry)
