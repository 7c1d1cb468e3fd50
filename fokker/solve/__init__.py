"""THE CONTRACT of a solver, and how to add one.

A solver is a frozen dataclass whose fields are its options. It states

    order        the order of its global error on the probability-flow ODE (SDE solvers: of their mean, as eta -> 0)
    evaluations  denoiser calls a step, counted in the long run
    stochastic   whether it draws noise

and defines `lay(draft, x, nodes)`: walk over the `nodes` (time, alpha, sigma, lam) from noise to data with the symbolic
state `x`, ask for beliefs with `draft.ask(x, node)`, and return the final state (or several). It reads like the sampling
loop of the paper, and what it leaves behind is a table:

    @dataclass(frozen=True)
    class MyDDIM(Solver):
        order = 1

        def lay(self, draft, x, nodes):
            for t, s in pairs(nodes):
                D = draft.ask(x, t)
                x = (s.sigma / t.sigma) * x + (s.alpha - t.alpha * s.sigma / t.sigma) * D
            return x

One class in one file and a record in `fokker/catalogue` make it importable, listed, cited, runnable by name and tested; a
class in a file of your own runs as `solver="mymodule:MyDDIM"` without either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from fokker.errors import FokkerError
from fokker.grids import Grid
from fokker.plan import Draft, Node, Plan, Term, pairs
from fokker.process import Process


@dataclass(frozen=True)
class Solver:
    """A numerical method for the reverse process; see the contract in this module's docstring."""

    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    inputs: ClassVar[int] = 1

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term | Sequence[Term]:
        """Write the rows that lead from x at nodes[0] to nodes[-1] and return the final state or states."""
        raise FokkerError(f"{type(self).__name__} does not define lay(draft, x, nodes); a solver must")

    def plan(self, process: Process, grid: Grid) -> Plan:
        """The table of this solver on `grid` for `process`; raises FokkerError where a coefficient would not be finite."""
        times = grid.times(process)
        alpha, sigma = process.alpha(times), process.sigma(times)
        nodes = [Node(process, t, a, s) for t, a, s in zip(times, alpha, sigma, strict=True)]
        # where there is no noise left and the signal is whole, the state is x_0
        if grid.to_data or bool(((nodes[-1].sigma == 0) & (nodes[-1].alpha == 1)).all()):
            nodes[-1] = Node.at(process, times[-1], data=True)
        draft = Draft(process, self.inputs)
        x = draft.given()
        if bool((nodes[0].sigma == 0).any()):
            x, nodes = self._leave_point(draft, x, nodes)
        out = self.lay(draft, x, nodes) if len(nodes) > 1 else x
        end = None if nodes[-1].data else nodes[-1].t
        return draft.finish(out if isinstance(out, Sequence) else [out], times[0], end, self.config | grid.config)

    def _leave_point(self, draft: Draft, x: Term, nodes: list[Node]) -> tuple[Term, list[Node]]:
        # A bridge starts at the point y, where sigma is 0 and the state holds unit noise for this first row: the exact
        # transition from a point mass is alpha D + sigma z, whatever the solver.
        t, s = nodes[:2]
        if not bool(((t.sigma == 0) & (t.alpha == 0)).all()):
            raise FokkerError(
                f"the grid starts at t={t.t.tolist()}, where {t.process.name} has no noise: a flow cannot leave clean data; "
                "start a little above t=0 (a bridge: all samples at t=1, or all below)"
            )
        D = draft.ask(x, t)
        return s.alpha * D + s.sigma * x, nodes[1:]

    def steps_for(self, nfe: int, process: Process, make_grid: Callable[[int], Grid]) -> int:
        """The largest number of steps whose plan asks at most `nfe` times; raises FokkerError if one step asks more."""
        for steps in range(nfe, 0, -1):
            if steps * self.evaluations > nfe + self.evaluations:
                continue
            if self.plan(process, make_grid(steps)).nfe <= nfe:
                return steps
        raise FokkerError(f"{type(self).__name__} needs more than nfe={nfe} evaluations for one step; raise nfe")

    def budget(self, nfe: int, process: Process, make_grid: Callable[[int], Grid]) -> Plan:
        """The plan that makes the best of at most `nfe` evaluations; `make_grid` gives the grid for a number of steps."""
        return self.plan(process, make_grid(self.steps_for(nfe, process, make_grid)))

    @property
    def config(self) -> dict[str, Any]:
        return {"solver": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields(self)}


def get(name: str, **options: Any) -> Solver:
    """The solver of that name ("dpmpp-2m", or "mymodule:MySolver"); unknown names and options raise FokkerError."""
    from fokker import catalogue

    solver = catalogue.resolve("solver", name, **options)
    if not isinstance(solver, Solver):
        raise FokkerError(f"{name!r} is a {type(solver).__name__}, not a Solver; subclass fokker.solve.Solver")
    return solver


def names() -> list[str]:
    """The names of all solvers."""
    from fokker import catalogue

    return catalogue.names("solver")


def __getattr__(name: str) -> Any:
    from fokker.catalogue import public

    return public(name, {"solver", "tuner", "driver"})


__all__ = ["Draft", "Node", "Plan", "Solver", "Term", "get", "names", "pairs"]
