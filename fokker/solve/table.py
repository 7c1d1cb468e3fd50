"""A deterministic plan in its dense form: times, and weights of every state on the start and on every belief before it.

Every explicit solver with n evaluations is such a table, so one space holds all grids, orders, predictors and correctors,
momentum, prediction spaces, time shifts and starts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Number, Plan, Row
from fokker.process import Process


@dataclass(frozen=True)
class Table:
    """Times (n,) and weights (n + 1, 1 + n), both float64.

    State k < n is weights[k, 0] x_1 + sum_{j < k} weights[k, 1 + j] D_j, and D_k is the belief about it at times[k]; state n
    is the output, at time `end` (None: x_0 itself). `name` tells where the table came from.
    """

    process: Process
    times: Tensor
    weights: Tensor
    end: Number | None
    name: str = ""

    @classmethod
    def of(cls, plan: Plan, name: str = "") -> "Table":
        """The dense form of a deterministic plan with one input and output.

        A plan that begins below t = 1 gets the start x_1 scaled to its noise level, sigma(start) / sigma(1): where the signal
        is faint this costs little accuracy, and it saves the evaluation that would only return the mean of the data.
        Raises FokkerError for a plan that is stochastic, adaptive or has several states.
        """
        if plan.stochastic or plan.inputs != 1 or len(plan.outputs) != 1 or not isinstance(plan.start, float):
            raise FokkerError("only a deterministic plan with one state and one time for all samples has a dense table")
        n = plan.nfe
        made: list[Tensor] = []
        belief: dict[int, int] = {}
        times: list[float] = []
        for k, row in enumerate(plan.rows):
            if not isinstance(row, Row):
                raise FokkerError("an adaptive plan has no table")
            state = torch.zeros(1 + n, dtype=torch.float64)
            if not row.terms:
                state[0] = plan.process.sigma(plan.start) / plan.process.sigma(1.0) if plan.start < 1 else 1.0
            for (kind, i), c in row.terms:
                if kind == "x":
                    state = state + c * made[i]
                else:
                    state[1 + belief[i]] += c
            made.append(state)
            if row.t is not None:
                belief[k] = len(times)
                times.append(float(row.t))
        weights = torch.stack([*(made[k] for k in belief), made[plan.outputs[0]]])
        return cls(plan.process, torch.tensor(times, dtype=torch.float64), weights, plan.end, name)

    def __len__(self) -> int:
        return len(self.times)

    def plan(self) -> Plan:
        """The plan that runs this table from t = 1."""
        kept = self.__dict__.get("_plan")
        if kept is None:
            rows = [Row(()), *(Row(self._terms(k, 0), self._time(k)) for k in range(len(self) + 1))]
            outputs = (len(rows) - 1,)
            kept = self.__dict__["_plan"] = Plan(tuple(rows), self.process, outputs, 1, (), 1.0, self.end, {"solver": "table"})
        return kept

    def tail(self, k: int, t: float | None = None) -> Plan:
        """What is left from state k on: a plan with inputs x_1, D_0, ..., D_{k-1}, x_k, asking about x_k at time `t`."""
        rows = [Row(()) for _ in range(k + 1)]
        rows.append(Row((), self._time(k) if t is None else t))
        rows += [Row(self._terms(m, k), self._time(m)) for m in range(k + 1, len(self) + 1)]
        return Plan(tuple(rows), self.process, (len(rows) - 1,), k + 2, (), 1.0, self.end, {"solver": "table"})

    def _terms(self, m: int, given: int) -> tuple[tuple[tuple[str, int], float], ...]:
        """State m where the first `given` beliefs are inputs 1, 2, ... and belief j >= given is that of row j + 1."""
        c = self.weights[m].tolist()
        beliefs = [((("x", 1 + j) if j < given else ("D", 1 + j)), c[1 + j]) for j in range(m)]
        return ((("x", 0), c[0]), *beliefs)

    def _time(self, k: int) -> float | None:
        return self.times[k].item() if k < len(self) else None


@dataclass(frozen=True)
class Moves:
    """The ways in which a table can change, in units that move a state by about its own size.

    The first len(places) are weights (state, source), source 0 being the start and 1 + j belief j; the other n are the
    log-SNRs of the times, in units of 2.
    """

    places: tuple[tuple[int, int], ...]
    units: Tensor

    @classmethod
    def of(cls, table: Table) -> "Moves":
        n, process = len(table), table.process
        end = torch.zeros(1, dtype=torch.float64) if table.end is None else torch.as_tensor(table.end).reshape(1)
        t = torch.cat([table.times, end.to(torch.float64)])
        size = torch.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
        if table.end is None:
            size[-1] = 1.0
        begin = float(process.start(torch.ones(())))
        places = tuple((k, j) for k in range(n + 1) for j in range(k + 1))
        units = [float(size[k]) / (begin if j == 0 else 1.0) for k, j in places] + [2.0] * n
        return cls(places, torch.tensor(units, dtype=torch.float64))

    def apply(self, table: Table, move: Tensor) -> Table:
        """The table after a move (in units); times stay within the noise levels that the process has."""
        step = move * self.units
        weights, many = table.weights.clone(), len(self.places)
        for (k, j), c in zip(self.places, step[:many].tolist(), strict=True):
            weights[k, j] += c
        place = logsnr(table)
        new = (place + step[many:]).clamp(FAINT, finest(table.process))
        times = torch.where(new == place, table.times, table.process.time(new))
        return Table(table.process, times, weights, table.end, table.name)


FAINT = -14.0  # the log-SNR that stands for no signal at all


def finest(process: Process) -> float:
    """The log-SNR of the process's own end, beyond which a network was never asked."""
    return min(float(process.logsnr(process.end)), 30.0)


def logsnr(table: Table) -> Tensor:
    """The log-SNRs of the times, (n,), at least `FAINT`."""
    return table.process.logsnr(table.times).clamp(FAINT, finest(table.process))
