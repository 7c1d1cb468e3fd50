"""A record of the catalogue, and the records as they are read from the TOML files of the families."""

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fokker.errors import FokkerError, unknown

KINDS: Mapping[str, str] = {
    "law": "a distribution known exactly",
    "data": "a data set or its generator",
    "process": "a forward noising",
    "denoiser": "a denoiser, or a way to make one",
    "network": "an architecture or a layer",
    "tokens": "diffusion of tokens: a noising, a sampler, a change of their belief",
    "grid": "the times of a run",
    "solver": "a plan or a step from noise to data",
    "tuner": "a search for the best plan, grid or start",
    "driver": "many runs of the loop: particles, search, stages, streams, chains",
    "guidance": "a wrapper that tilts the belief towards a condition",
    "wrapper": "another change of the belief: a threshold, a shifted time",
    "operator": "a measurement with its adjoint",
    "restorer": "a wrapper or a recipe that meets a measurement",
    "editor": "a change of a given sample",
    "accelerator": "a wrapper or a change of weights that makes a call cheaper",
    "objective": "a training loss or a term of one",
    "distiller": "a teacher, a student and an objective",
    "codec": "an encoder and a decoder",
    "metric": "a number with its unit, direction and sampling error",
    "diagnostic": "a prediction of theory and its measurement on a model",
    "application": "a denoiser at another task",
    "report": "a study of known methods, run again",
    "survey": "a review of the field, kept as documentation",
}

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Record:
    """A published system or a building block: what it is, where it lives here, what its check must show."""

    id: str
    title: str
    family: str
    kind: str
    claim: str = ""
    arxiv: str = ""
    authors: tuple[str, ...] = ()
    year: int = 0
    entry: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    system: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown(f"kind of {self.id}", self.kind, KINDS)
        if self.entry and self.entry.count(":") != 1:
            raise FokkerError(f"entry {self.entry!r} of {self.id}; an entry is 'module:Name'")

    @property
    def published(self) -> int:
        """The year to cite: as stated, else the one in the arXiv id, else 0."""
        return self.year or (2000 + int(self.arxiv[:2]) if self.arxiv[:4].isdigit() else 0)

    @property
    def name(self) -> str:
        """The name of the class or function that the entry points at; empty while planned."""
        return self.entry.partition(":")[2]


@functools.cache
def load(path: Path) -> tuple[Record, ...]:
    """The records of one TOML file; the family is the file's name unless the record says otherwise."""
    with path.open("rb") as file:
        rows = tomllib.load(file).get("record", [])
    return tuple(_record(row, path.stem) for row in rows)


def _record(row: dict[str, Any], family: str) -> Record:
    row = {"family": family, **row}
    for name in ("title", "claim"):
        row[name] = " ".join(row.get(name, "").split())
    row["authors"] = tuple(row.get("authors", ()))
    strange = set(row) - set(Record.__dataclass_fields__)
    if strange:
        raise unknown(f"field of record {row.get('id', '?')}", min(strange), Record.__dataclass_fields__)
    return Record(**row)


@functools.cache
def _files() -> tuple[Path, ...]:
    blocks = FOLDER / "blocks.toml"
    return (*([blocks] if blocks.exists() else []), *sorted(set(FOLDER.glob("*.toml")) - {blocks}))


@functools.cache
def index() -> Mapping[str, Record]:
    """Every record by its id, read once, when first needed."""
    found: dict[str, Record] = {}
    for path in _files():
        for record in load(path):
            if record.id in found:
                raise FokkerError(f"two records have the id {record.id!r} ({found[record.id].family}, {record.family})")
            found[record.id] = record
    return found


def families() -> list[str]:
    """The families of the published systems."""
    return [path.stem for path in _files() if path.stem != "blocks"]


def records(
    family: str | None = None, kind: str | None = None, systems_only: bool = False, planned: bool = True
) -> list[Record]:
    """The records of a family and of a kind; `planned=False` leaves out those without an implementation."""
    if family is not None and family not in {*families(), "blocks"}:
        raise unknown("family", family, [*families(), "blocks"])
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return [
        record
        for record in index().values()
        if (family is None or record.family == family)
        and (kind is None or record.kind == kind)
        and (record.system or not systems_only)
        and (planned or record.entry)
    ]


def get(identifier: str) -> Record:
    """The record of an id; an unknown one is refused with the nearest."""
    record = index().get(identifier)
    if record is None:
        raise unknown("system", identifier, index())
    return record
