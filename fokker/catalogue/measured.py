"""What was measured: the file that `fokker reproduce --all` writes, the status that follows from it, and its page.

`measured.json` beside this module holds, for each system whose check ran, the report of the check and of its null.
A status is computed from it and from nothing else: `works`, `not reproduced`, `planned`.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from fokker import checks
from fokker.catalogue.record import FOLDER, Record, families, get, records
from fokker.errors import FokkerError

STATUSES = ("works", "not reproduced", "planned")
PATH = FOLDER / "measured.json"


def read(path: Path | None = None) -> dict[str, Any]:
    """The measured data: system id -> {"report", "null_report"}; empty when nothing was measured."""
    path = path or PATH
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as problem:
        raise FokkerError(f"{str(path)!r} is not JSON ({problem}); run `fokker reproduce --all` again") from problem
    return dict(data)


def write(data: Mapping[str, Any], path: Path | None = None) -> None:
    """Write the measured data in one step: a reader sees the old file or the new one."""
    path = path or PATH
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    with fresh.open("w") as file:
        file.write(json.dumps(dict(sorted(data.items())), indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def alone(path: Path | None = None) -> Iterator[None]:
    """Within the block no other process that asks so reads the file to write it: two checks may be kept at once."""
    name = hashlib.sha256(str((path or PATH).resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"fokker-{name}.lock"):
        yield


def seconds(data: Mapping[str, Any], identifier: str) -> float:
    """How long a check and its null took when they were last measured; infinite when they were not."""
    last = data.get(identifier)
    return math.inf if last is None else float(last["seconds"]) + float(last["null_run"]["seconds"])


def add(data: Mapping[str, Any], report: checks.Report, null_report: checks.Report) -> dict[str, Any]:
    """The measured data with one system measured anew."""
    if report.id != null_report.id or report.null or not null_report.null:
        raise FokkerError(f"reports of {report.id} and {null_report.id}; give a check and its own null")
    return {**data, report.id: {**report.as_json(), "null_ok": null_report.ok, "null_run": null_report.as_json()}}


def verdict(record: Record, last: Mapping[str, Any] | None) -> str:
    """The status of a record whose last measurement is `last`.

    `works` needs a pass at three seeds or more and a null that failed at each of them; what was measured and is not
    that is `not reproduced`; what has no implementation, no check or no measurement is `planned`.
    """
    if not record.entry or last is None or not checks.has_check(record.id):
        return "planned"
    enough = len(set(last.get("seeds", ()))) >= len(checks.SEEDS)
    return "works" if enough and last.get("passed") is True and last.get("null_ok") is True else "not reproduced"


def reason(last: Mapping[str, Any]) -> str:
    """Why a measurement does not stand for `works`: the failed criteria, in numbers; empty when it does."""
    failed = [
        f"{row['name']} {_short(row['value'])}, not {row['op']} {_short(row['bound'])} (seed {run['seed']})"
        for run in last.get("runs", ())
        for row in run.get("criteria", ())
        if not row["holds"]
    ]
    failed += [f"{run['error']} (seed {run['seed']})" for run in last.get("runs", ()) if run.get("error")]
    if not failed and not last.get("passed"):
        failed.append("a measured number was not finite, or there was no criterion")
    if len(set(last.get("seeds", ()))) < len(checks.SEEDS):
        failed.append(f"measured at {len(set(last.get('seeds', ())))} seeds of {len(checks.SEEDS)}")
    if not last.get("null_ok"):
        failed.append("the null did not fail at every seed, so the check proves nothing")
    return "; ".join(failed)


def status(identifier: str, data: Mapping[str, Any] | None = None) -> str:
    """`works`, `not reproduced` or `planned`: derived, never typed."""
    return verdict(get(identifier), (read() if data is None else data).get(identifier))


def table(rows: Iterable[Record], data: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """The records as rows of text for a terminal: id, family, kind, status, arxiv, entry, title."""
    data = read() if data is None else data
    return [
        {
            "id": record.id,
            "family": record.family,
            "kind": record.kind,
            "status": verdict(record, data.get(record.id)) if record.system else "",
            "arxiv": record.arxiv,
            "entry": record.entry,
            "title": record.title,
        }
        for record in rows
    ]


def as_json(record: Record | str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A record as plain data; `last` is its last measurement, `stale` whether the check was changed since."""
    record = get(record) if isinstance(record, str) else record
    last = (read() if data is None else data).get(record.id)
    return {
        "id": record.id,
        "title": record.title,
        "arxiv": record.arxiv,
        "authors": list(record.authors),
        "year": record.published,
        "family": record.family,
        "kind": record.kind,
        "system": record.system,
        "status": verdict(record, last) if record.system else None,
        "entry": record.entry,
        "options": dict(record.options),
        "claim": record.claim,
        "last": last,
        "stale": last is not None and last.get("check") != checks.digest(record.id),
    }


def count(data: Mapping[str, Any] | None = None) -> dict[str, int]:
    """How many systems have each status."""
    data = read() if data is None else data
    found = [verdict(record, data.get(record.id)) for record in records(systems_only=True)]
    return {name: found.count(name) for name in STATUSES}


def render(data: Mapping[str, Any] | None = None) -> str:
    """The page of results in Markdown: every system that was measured, its numbers and how to measure them again."""
    data = read() if data is None else data
    known = {record.id: record for record in records(systems_only=True)}
    total = count(data)
    lines = [
        "# Measured results",
        "",
        "Made by `fokker reproduce --all`; not to be edited by hand. Each number can be measured again with",
        "`fokker reproduce ID`, and its null with `fokker reproduce ID --null`. Numbers are means over the seeds.",
        "",
        f"Of {len(known)} systems: " + ", ".join(f"{total[name]} {name}" for name in STATUSES) + ".",
    ]
    for family in families():
        rows = [record for record in known.values() if record.family == family and record.id in data]
        if not rows:
            continue
        lines += ["", f"## {family.capitalize()}", ""]
        lines += ["| system | status | measured | baseline | expectation | seeds | seconds |", "| --- " * 7 + "|"]
        lines += [_row(record, data[record.id]) for record in rows]
        lines += [f"\n`{r.id}`: {reason(data[r.id])}." for r in rows if verdict(r, data[r.id]) == "not reproduced"]
    lines += ["", "## Where and when", ""]
    places: dict[tuple[str, ...], list[str]] = {}
    for identifier in sorted(set(data) & set(known)):
        last = data[identifier]
        place = tuple(str(last.get(key, "")) for key in ("date", "commit", "version", "hardware", "torch", "threads"))
        places.setdefault(place, []).append(identifier)
    lines += ["| date | commit | fokker | machine | torch | threads | systems |", "| --- " * 7 + "|"]
    lines += [f"| {' | '.join(place)} | {', '.join(ids)} |" for place, ids in sorted(places.items())]
    return "\n".join(lines) + "\n"


def _row(record: Record, last: Mapping[str, Any]) -> str:
    stale = " (check changed since)" if last.get("check") != checks.digest(record.id) else ""
    link = f"[{record.id}](https://arxiv.org/abs/{record.arxiv})"
    measured, baseline = (_numbers(last.get(key, {})) for key in ("measured", "baseline"))
    seeds = ", ".join(str(seed) for seed in last.get("seeds", ()))
    cells = (link, verdict(record, last) + stale, measured, baseline, str(last.get("expectation", "")), seeds)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {_short(last.get('seconds', 0.0))} |"


def _numbers(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
