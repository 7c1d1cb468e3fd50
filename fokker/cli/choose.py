"""From the words of a command line to objects: processes, solvers, grids, plans."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fokker.cli import spec
from fokker.errors import FokkerError, unknown

if TYPE_CHECKING:
    from fokker.grids import Grid
    from fokker.laws import Law
    from fokker.plan import Plan
    from fokker.process import Process
    from fokker.solve import Solver

MOST_STEPS = 10_000


def resolve(kind: str, text: str, *arguments: Any) -> Any:
    """The instance that `text` (see `spec.method`) means among the catalogue's records of a kind."""
    return build(kind, spec.method(text), *arguments)


def build(kind: str, named: spec.Spec, *arguments: Any, **options: Any) -> Any:
    """The instance of a method named on the command line."""
    from fokker import catalogue

    given = {**named.options, **options}
    with own_code(named.name):
        return catalogue.resolve(kind, named.name, *arguments, *named.values, **given)


@contextmanager
def own_code(name: str) -> Iterator[None]:
    """Whatever a class of the user's own raises is told as such, in one sentence."""
    try:
        yield
    except FokkerError:
        raise
    except Exception as problem:
        if ":" not in name:
            raise
        raise FokkerError(f"{name} raised {type(problem).__name__}: {problem}; see where with --debug") from problem


def process(text: str) -> "Process":
    """A process by name, such as `vp` or `edm:sigma_max=40`."""
    from fokker.process import Process

    found = resolve("process", text)
    if not isinstance(found, Process):
        raise FokkerError(f"{text!r} is a {type(found).__name__}, not a process")
    return found


def law(text: str) -> "Law":
    """A law by name: `ring`, `lowrank64`, `lowrank:dim=8,rank=2,seed=1`, or a function of the user's own that makes one."""
    from fokker import laws
    from fokker.catalogue.entry import build as construct
    from fokker.catalogue.entry import load_user_object

    named = spec.method(text)
    sized = re.fullmatch(r"lowrank(\d{1,4})", named.name)
    known = {"ring": laws.ring, "lowrank": laws.lowrank}
    with own_code(named.name):
        if ":" not in named.name and named.name not in known and not sized:
            raise unknown("law", named.name, [*known, "lowrank64"])
        made = laws.lowrank if sized else known.get(named.name) or load_user_object(named.name)
        options = {"dim": int(sized[1]), **named.options} if sized else named.options
        found = construct(made, named.name, named.values, options)
    if not isinstance(found, laws.Law):
        raise FokkerError(f"{text!r} is a {type(found).__name__}, not a law")
    return found


def solver(text: str) -> "Solver":
    """A solver by name, such as `dpmpp-3m` or `mymodule:MySolver`."""
    from fokker import solve

    named = spec.method(text)
    if named.values:
        raise FokkerError(f"{text!r}: write a solver's options by name, such as {named.name}:order=2")
    made = build("solver", named)
    if not isinstance(made, solve.Solver):
        raise FokkerError(f"{text!r} is a {type(made).__name__}, not a solver; subclass fokker.solve.Solver")
    return made


def grid(text: str, end: float | None, start: float | None = None) -> "Callable[[int], Grid]":
    """What makes a grid of a given number of steps."""

    def make(steps: int) -> "Grid":
        from fokker.grids import Grid

        named = spec.method(text)
        ends = {name: t for name, t in (("start", start), ("end", end)) if t is not None}
        options = {**named.options, **ends}
        made = build("grid", spec.Spec(named.name, named.values, options), steps)
        if not isinstance(made, Grid):
            raise FokkerError(f"{text!r} is a {type(made).__name__}, not a grid")
        return made

    return make


def plan(
    solver_text: str,
    on: "Process",
    steps: int | None,
    nfe: int | None,
    grid_text: str,
    end: float | None,
    start: float | None = None,
) -> "Plan":
    """The plan of a solver on a grid with a number of steps, or with at most a number of evaluations."""
    if (steps is None) == (nfe is None):
        raise FokkerError("give either --steps or --nfe")
    method, make = solver(solver_text), grid(grid_text, end, start)
    with own_code(spec.method(solver_text).name):
        return method.plan(on, make(steps)) if steps is not None else method.budget(nfe or 0, on, make)


def stored_plan(path: Path) -> "Plan":
    """The plan in a JSON file."""
    from fokker.plan import Plan

    return Plan.from_json(path.read_text(encoding="utf-8"))
