"""The contract of a check, and its runner.

A check of the system `some-id` is the module `fokker/checks/some_id.py`; it is found by that name, there is no list.
What several checks share lives in modules whose name begins with an underscore. A check module has a docstring that
says what theory or the paper expects and what the null is (the method switched off, or broken on purpose), and

    EXPECT = "endpoint error <= 0.6 x DDIM's at 18 evaluations, slope 2 +- 0.2"

    def check(seed: int, null: bool = False) -> Outcome:
        ...
        return Outcome(
            measured={"rms error": error, "slope": slope},
            baseline={"rms error of DDIM": reference},
            criteria=[
                Criterion("error over DDIM's", error / reference, "<=", 0.6),
                *within("slope", slope, 1.8, 2.2),
            ],
        )

A check states numbers and bounds; the verdict is computed from them and cannot be written by hand. With `null=True`
the same measurement is made of a method that cannot work, against the same bounds, and the verdict must be a fail.
All randomness comes from `seed`. Expectations are set before measuring and are never loosened.
"""

import hashlib
import importlib
import math
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from fokker.errors import FokkerError, unknown

SEEDS = (0, 1, 2)

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
    ">=": lambda value, bound: value >= bound,
    ">": lambda value, bound: value > bound,
    "==": lambda value, bound: value == bound,
}


@dataclass(frozen=True)
class Criterion:
    """One comparison of a measured number with a bound; a value that is not finite never holds."""

    name: str
    value: float
    op: str
    bound: float

    def __post_init__(self) -> None:
        if self.op not in _COMPARE:
            raise unknown("comparison", self.op, _COMPARE)
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def holds(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.bound) and _COMPARE[self.op](self.value, self.bound)

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'FAILS'}  {self.name}: {self.value:.4g} {self.op} {self.bound:.4g}"


def within(name: str, value: float, low: float, high: float) -> tuple[Criterion, Criterion]:
    """The two criteria low <= value <= high."""
    return Criterion(name, value, ">=", low), Criterion(name, value, "<=", high)


def exactly(name: str, fact: bool) -> Criterion:
    """A statement that is either true or not (equal bits, one evaluation, an error raised), as a criterion."""
    return Criterion(name, float(fact), "==", 1.0)


@dataclass(frozen=True)
class Outcome:
    """What one run of a check measured, beside what on the same seed, and the criteria that judge it."""

    measured: Mapping[str, float]
    baseline: Mapping[str, float]
    criteria: Sequence[Criterion | tuple[str, float, str, float]]
    expect: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "measured", {name: float(value) for name, value in self.measured.items()})
        object.__setattr__(self, "baseline", {name: float(value) for name, value in self.baseline.items()})
        rows = tuple(row if isinstance(row, Criterion) else Criterion(*row) for row in self.criteria)
        object.__setattr__(self, "criteria", rows)

    def rows(self) -> Iterator[Criterion]:
        for row in self.criteria:
            yield row if isinstance(row, Criterion) else Criterion(*row)

    @property
    def passed(self) -> bool:
        """All criteria hold, there is at least one, and no measured number is NaN or infinite."""
        rows = list(self.rows())
        return bool(rows) and all(row.holds for row in rows) and all(map(math.isfinite, self.measured.values()))


@dataclass(frozen=True)
class SeedRun:
    """The outcome of a check at one seed; `error` tells why there is none, `crashed` that it was no refusal of ours."""

    seed: int
    seconds: float
    outcome: Outcome | None
    error: str = ""
    crashed: bool = False

    @property
    def passed(self) -> bool:
        return self.outcome is not None and self.outcome.passed

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"seed": self.seed, "passed": self.passed, "seconds": round(self.seconds, 2)}
        if self.outcome is not None:
            out["measured"] = {name: number(value) for name, value in self.outcome.measured.items()}
            out["baseline"] = {name: number(value) for name, value in self.outcome.baseline.items()}
            out["criteria"] = [
                {"name": c.name, "value": number(c.value), "op": c.op, "bound": number(c.bound), "holds": c.holds}
                for c in self.outcome.rows()
            ]
            if self.outcome.note:
                out["note"] = self.outcome.note
        if self.error:
            out |= {"error": self.error, "crashed": self.crashed}
        return out


@dataclass(frozen=True)
class Report:
    """A check run over its seeds: the verdict is a pass when every seed passes."""

    id: str
    null: bool
    expect: str
    runs: tuple[SeedRun, ...]
    source: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.runs) and all(run.passed for run in self.runs)

    @property
    def ok(self) -> bool:
        """The run did what it should: a check passed at every seed, or a null failed at every seed.

        A null may fail by a FokkerError (a run that left the finite numbers); any other exception proves nothing.
        """
        if self.null:
            return bool(self.runs) and not any(run.passed or run.crashed for run in self.runs)
        return self.passed

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Plain data: `measured` and `baseline` are means over the seeds, `runs` has every seed with its criteria."""
        outcomes = [run.outcome for run in self.runs if run.outcome is not None]
        return {
            "id": self.id,
            "null": self.null,
            "passed": self.passed,
            "expectation": self.expect,
            "measured": _mean([outcome.measured for outcome in outcomes]),
            "baseline": _mean([outcome.baseline for outcome in outcomes]),
            "seeds": [run.seed for run in self.runs],
            "runs": [run.as_json() for run in self.runs],
            "seconds": round(self.seconds, 2),
            "check": self.source,
            **self.provenance,
        }

    def lines(self) -> Iterator[str]:
        """The report for a terminal: every number, every criterion of every seed, the verdict last."""
        yield f"{self.id}{' (null)' if self.null else ''}: {self.expect}"
        for run in self.runs:
            yield f"seed {run.seed} ({run.seconds:.1f} s)"
            if run.outcome is not None:
                for label, values in (("measured", run.outcome.measured), ("baseline", run.outcome.baseline)):
                    for name, value in values.items():
                        yield f"  {label}  {name} = {value:.4g}"
                for row in run.outcome.rows():
                    yield f"  {row}"
                if run.outcome.note:
                    yield f"  {run.outcome.note}"
            if run.error:
                yield f"  {run.error}"
        verdict = "pass" if self.passed else "fail"
        wanted = ("fail at every seed", "as it must") if self.null else ("pass", "as expected")
        yield f"verdict: {verdict} ({wanted[1] if self.ok else f'expected: {wanted[0]}'})"


def module_name(identifier: str) -> str:
    """The module that holds the check of a system: `dpm-solver` -> `fokker.checks.dpm_solver`."""
    return f"{__name__}.{identifier.replace('-', '_')}"


def has_check(identifier: str) -> bool:
    """Whether a check of this name exists; nothing is imported but this package."""
    return _source(identifier).is_file()


def _source(identifier: str) -> Path:
    plain = re.fullmatch(r"[a-z0-9-]+", identifier)
    return Path(__file__).parent / (f"{identifier.replace('-', '_')}.py" if plain else "")


def checked() -> list[str]:
    """The ids that have a check, sorted."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py"))


def load(identifier: str) -> ModuleType:
    """The check module of a system."""
    if not has_check(identifier):
        raise unknown("check", identifier, checked())
    module = importlib.import_module(module_name(identifier))
    for name in ("EXPECT", "check"):
        if not hasattr(module, name):
            raise FokkerError(f"{module.__name__} has no {name}; a check module defines EXPECT and check(seed, null)")
    return module


def digest(identifier: str) -> str:
    """A short hash of a check's source, by which a measurement says which check it was made with."""
    source = _source(identifier)
    return hashlib.sha256(source.read_bytes()).hexdigest()[:12] if source.is_file() else ""


def reproduce(
    identifier: str,
    null: bool = False,
    seeds: Sequence[int] = SEEDS,
    on_seed: Callable[[SeedRun], None] | None = None,
) -> Report:
    """Run the check of one system over the seeds; with `null` its broken twin, whose verdict must be a fail.

    A check that raises does not pass: the reason is part of the report. KeyboardInterrupt is not caught.
    """
    module = load(identifier)
    runs = []
    for seed in seeds:
        begin = time.perf_counter()
        outcome, error, crashed = None, "", False
        try:
            outcome = module.check(seed, null)
        except Exception as problem:
            place = traceback.extract_tb(problem.__traceback__)[-1]
            error = f"{type(problem).__name__} at {Path(place.filename).name}:{place.lineno}: {problem}"
            crashed = not isinstance(problem, FokkerError)
        run = SeedRun(seed, time.perf_counter() - begin, outcome, error, crashed)
        runs.append(run)
        if on_seed is not None:
            on_seed(run)
    return Report(identifier, null, str(module.EXPECT), tuple(runs), digest(identifier), provenance())


def reproduce_all(
    path: Path | None = None,
    ids: Iterable[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    on_report: Callable[[Report], None] | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run every check (or those of `ids`) and its null; the numbers go into the catalogue's measured.json, system by system.

    `path` is another file to keep them in. `jobs` checks run at once, each in a process of its own with its share of the
    threads, those that took longest before first. Systems that are not run keep their last measurement.
    Returns the whole measured data.
    """
    from fokker.catalogue import measured

    data = measured.read(path)
    chosen = checked() if ids is None else list(ids)
    if jobs > 1:
        chosen = sorted(chosen, key=lambda name: -measured.seconds(data, name))
    for report, null_report in _both(chosen, seeds, jobs):
        with measured.alone(path):
            # read again: another run may have kept its numbers meanwhile
            data = measured.add(measured.read(path), report, null_report)
            measured.write(data, path)
        for finished in (report, null_report):
            if on_report is not None:
                on_report(finished)
    return data


def _with_null(identifier: str, seeds: Sequence[int]) -> tuple[Report, Report]:
    return reproduce(identifier, False, seeds), reproduce(identifier, True, seeds)


def _both(ids: Sequence[str], seeds: Sequence[int], jobs: int) -> Iterator[tuple[Report, Report]]:
    """Every check with its null, as they finish. The two share a process, so that what both train is trained once."""
    if jobs <= 1 or len(ids) <= 1:
        yield from (_with_null(name, seeds) for name in ids)
        return
    workers = min(jobs, len(ids))
    threads = max(1, (os.cpu_count() or 1) // workers)
    # spawned, since a fork would copy locks that torch's threads hold
    with ProcessPoolExecutor(workers, get_context("spawn"), _share, (threads,)) as pool:
        waiting = [pool.submit(_with_null, name, list(seeds)) for name in ids]
        try:
            yield from (done.result() for done in as_completed(waiting))
        except BrokenProcessPool:
            raise FokkerError(
                "a process that ran checks was killed, most likely for want of memory; run fewer at once (--jobs 1)"
            ) from None
        finally:
            for done in waiting:
                done.cancel()


def _share(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def provenance() -> dict[str, Any]:
    """Where numbers come from: date, package version, commit, machine, torch, threads."""
    import torch

    import fokker

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "version": str(getattr(fokker, "__version__", "")),
        "commit": commit(),
        "hardware": hardware(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The short commit of the checkout that holds the package, with + when it was changed; empty elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short=10", "HEAD")
    return name + "+" if name and git("status", "--porcelain", "--untracked-files=no", "--", "fokker/*.py") else name


def hardware() -> str:
    """The machine in a few words: processor, cores, accelerator if there is one."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    cores = f"{os.cpu_count()} cores"
    return ", ".join([name, cores, *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])])


def number(value: float) -> float | str:
    """A float as strict JSON can hold it: NaN and infinities become words."""
    return value if math.isfinite(value) else str(value)


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float | str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: number(math.fsum(values) / len(values)) if all(map(math.isfinite, values)) else "nan"
        for name in names
        for values in [[row[name] for row in rows if name in row]]
    }
