"""From the words of a command line to objects: processes, solvers, grids, plans."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fokker.cli import spec
from fokker.errors import FokkerError

if TYPE_CHECKING:
    from fokker.grids import Grid
    from fokker.plan import Plan
    from fokker.process import Process
    from fokker.solve import Solver

MOST_STEPS = 10_000


def resolve(kind: str, text: str, *arguments: Any) -> Any:
    """The instance that `text` (see `spec.method`) means among the catalogue's records of a kind."""
    from fokker import catalogue

    named = spec.method(text)
    return catalogue.resolve(kind, named.name, *arguments, *named.values, **named.options)


def process(text: str) -> "Process":
    """A process by name, such as `vp` or `edm:sigma_max=40`."""
    from fokker.process import Process

    found = resolve("process", text)
    if not isinstance(found, Process):
        raise FokkerError(f"{text!r} is a {type(found).__name__}, not a process")
    return found


def solver(text: str) -> "Solver":
    """A solver by name, such as `dpmpp-3m` or `mymodule:MySolver`."""
    from fokker import solve

    named = spec.method(text)
    if named.values:
        raise FokkerError(f"{text!r}: write a solver's options by name, such as {named.name}:order=2")
    return solve.get(named.name, **named.options)


def grid(text: str, end: float | None) -> "Callable[[int], Grid]":
    """What makes a grid of a given number of steps."""

    def make(steps: int) -> "Grid":
        from fokker.grids import Grid

        named = spec.method(text)
        options = named.options if end is None else {**named.options, "end": end}
        from fokker import catalogue

        made = catalogue.resolve("grid", named.name, steps, *named.values, **options)
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
) -> "Plan":
    """The plan of a solver on a grid with a number of steps, or with at most a number of evaluations."""
    if (steps is None) == (nfe is None):
        raise FokkerError("give either --steps or --nfe")
    method, make = solver(solver_text), grid(grid_text, end)
    if steps is None:
        assert nfe is not None
        steps = method.steps_for(nfe, on, make)
    return method.plan(on, make(steps))


def stored_plan(path: Path) -> "Plan":
    """The plan in a JSON file."""
    from fokker.plan import Plan

    return Plan.from_json(path.read_text(encoding="utf-8"))
