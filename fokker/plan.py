"""A plan is a solver laid out on a grid: a table of float64 numbers that one loop runs.

Row k makes a state x_k as a linear combination of earlier states x_j, beliefs D_j and noises z_j, and, unless its time is
None, asks the denoiser for D_k = E[x_0 | x_k] at that time. Every linear multistep, Runge-Kutta, predictor-corrector,
ancestral, momentum or two-state scheme is such a table, so a plan can be printed, stored, inverted, differentiated with
respect to its times and handed to another library.

`Draft` writes one: a solver reads like a sampling loop over symbols (`Term`s) whose coefficients are recorded.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.keyed import RANGE
from fokker.process import Process

Number = float | Tensor
Key = tuple[str, int]  # ("x", row), ("D", row), ("z", draw), or ("1", 0) for a constant


class Term:
    """A linear combination of states, beliefs and noises: what a solver computes with instead of tensors."""

    __slots__ = ("parts",)

    def __init__(self, parts: Mapping[Key, Number]) -> None:
        self.parts = dict(parts)

    def __add__(self, other: "Term") -> "Term":
        parts = dict(self.parts)
        for key, c in other.parts.items():
            parts[key] = parts[key] + c if key in parts else c
        return Term(parts)

    def __rmul__(self, scale: Number) -> "Term":
        return Term({k: scale * c for k, c in self.parts.items()})

    def __mul__(self, scale: Number) -> "Term":
        return self.__rmul__(scale)

    def __truediv__(self, scale: Number) -> "Term":
        return Term({k: c / scale for k, c in self.parts.items()})

    def __neg__(self) -> "Term":
        return -1.0 * self

    def __sub__(self, other: "Term") -> "Term":
        return self + -other


@dataclass(frozen=True)
class Node:
    """A time on the way with its coefficients, float64 tensors of one shape; `data` marks x_0 itself (alpha 1, sigma 0)."""

    process: Process
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    data: bool = False

    @classmethod
    def at(cls, process: Process, t: Tensor, data: bool = False) -> "Node":
        if data:
            return cls(process, torch.zeros_like(t), torch.ones_like(t), torch.zeros_like(t), True)
        return cls(process, t, process.alpha(t), process.sigma(t))

    @property
    def lam(self) -> Tensor:
        """Half the log-SNR, log(alpha / sigma)."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    @property
    def rho(self) -> Tensor:
        """The noise-to-signal ratio sigma / alpha."""
        return self.sigma / self.alpha

    def rates(self) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt)."""
        from fokker.process import derivative

        return derivative(self.process.alpha, self.t), derivative(self.process.sigma, self.t)

    def toward(self, other: "Node", share: float = 0.5) -> "Node":
        """The node that lies at `share` of the way to `other` in log-SNR."""
        lam = self.lam + share * (other.lam - self.lam)
        return Node.at(self.process, self.process.time(2 * lam))


@dataclass(frozen=True)
class Row:
    """x_k = sum of coefficient * source over `terms`; then D_k at time `t`, unless `t` is None."""

    terms: tuple[tuple[Key, Number], ...]
    t: Number | None = None


@dataclass(frozen=True)
class Step:
    """A row that is truly not linear: a pure function (x, t, s, predict, state) -> (x, state), for adaptive solvers.

    One that `draws` gets a sixth argument, noise(shape, index): uniform float64 numbers in (0, 1), keyed by sample, row and
    index (0 .. 255).
    """

    function: Callable[..., tuple[Tensor, Any]]
    source: Key
    t: float
    s: float
    draws: bool = False


@dataclass(frozen=True)
class Plan:
    """The table. `inputs` states are given (rows 0 .. inputs - 1 have no terms); `outputs` are the rows that are returned.

    `noises` lists the log-SNR intervals (from, to) of the draws; `start` and `end` are the times of inputs and outputs (None:
    x_0 itself); `config` says what was laid out and how to do it again.
    """

    rows: tuple[Row | Step, ...]
    process: Process
    outputs: tuple[int, ...]
    inputs: int = 1
    noises: tuple[tuple[Number, Number], ...] = ()
    start: Number | None = 1.0
    end: Number | None = None
    config: dict[str, Any] = field(default_factory=dict)
    affine: bool = field(init=False, repr=False, compare=False)  # whether a row adds a constant

    def __post_init__(self) -> None:
        kinds = (kind for row in self.rows if isinstance(row, Row) for (kind, _), _ in row.terms)
        object.__setattr__(self, "affine", "1" in kinds)
        if self.process.tokens and any(isinstance(row, Row) and row.terms for row in self.rows):
            name = self.config.get("solver", "this plan")
            raise FokkerError(f"{name} adds up states, which tokens cannot be; use fokker.discrete's Ancestral or FirstHitting")

    @property
    def nfe(self) -> int:
        """Calls of the denoiser; adaptive steps count while they run."""
        return sum(isinstance(r, Row) and r.t is not None for r in self.rows)

    @property
    def times(self) -> list[Number]:
        """The times at which the denoiser is asked, in order."""
        return [r.t for r in self.rows if isinstance(r, Row) and r.t is not None]

    @property
    def stochastic(self) -> bool:
        return bool(self.noises) or any(isinstance(r, Step) and r.draws for r in self.rows)

    def table(self) -> str:
        """The plan as text, one row a line."""
        lines = [f"{'row':>4}  {'t':>12}  {'log-SNR':>9}  state"]
        for k, row in enumerate(self.rows):
            if isinstance(row, Step):
                lines.append(f"{k:>4}  {row.t:>12.6g}  {'':>9}  adaptive step to t = {row.s:.6g}")
                continue
            combination = " ".join(f"{_show(c)} {kind}{i}" for (kind, i), c in row.terms) or "given"
            if row.t is None:
                lines.append(f"{k:>4}  {'-':>12}  {'-':>9}  {combination}")
            else:
                t = torch.as_tensor(row.t, dtype=torch.float64).mean()
                lines.append(f"{k:>4}  {t.item():>12.6g}  {self.process.logsnr(t).item():>9.4f}  {combination}")
        return "\n".join(lines)

    def json(self) -> str:
        """The plan as JSON: rows, noises, outputs, and where it came from."""
        rows = []
        for row in self.rows:
            if isinstance(row, Step):
                raise FokkerError("an adaptive plan decides its steps while it runs and cannot be stored as a table")
            rows.append({"t": _plain(row.t), "terms": [[kind, i, _plain(c)] for (kind, i), c in row.terms]})
        return json.dumps(
            {
                "fokker_plan": 1,
                "process": _config(self.process),
                "rows": rows,
                "outputs": self.outputs,
                "inputs": self.inputs,
                "noises": [[_plain(a), _plain(b)] for a, b in self.noises],
                "start": _plain(self.start),
                "end": _plain(self.end),
                "config": self.config,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `json` wrote; raises FokkerError for anything else."""
        import fokker.anchored
        import fokker.electric
        import fokker.process

        try:
            d = json.loads(text)
            if d["fokker_plan"] != 1:
                raise KeyError("fokker_plan", d["fokker_plan"])
            options = dict(d["process"])
            name = options.pop("process")
            places = (fokker.process, fokker.anchored, fokker.electric)
            kind: type[Process] = next(getattr(place, name) for place in places if hasattr(place, name))
            rows = tuple(
                Row(tuple(((k, i), _tensor(c)) for k, i, c in r["terms"]), _tensor(r["t"]) if r["t"] is not None else None)
                for r in d["rows"]
            )
            noises = tuple((_tensor(a), _tensor(b)) for a, b in d["noises"])
            start, end = (None if t is None else _tensor(t) for t in (d["start"], d["end"]))
            process, outputs, inputs = kind(**options), tuple(d["outputs"]), d["inputs"]
            _check(rows, outputs, inputs, len(noises))
            return cls(rows, process, outputs, inputs, noises, start, end, d["config"])
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as e:
            raise FokkerError(f"this is not a plan that fokker wrote ({type(e).__name__}: {e})") from e

    def inverse(self) -> "Plan":
        """The plan that leads from the outputs back to the inputs, exactly, by solving every row for its oldest state.

        Works where each row, taken from the last to the first, has one state that is not known yet and asks the denoiser
        only about states that are (two-state schemes such as EDICT and BDIA). Raises FokkerError naming the first row that
        does not.
        """
        draft_rows: list[Row] = [Row((), None) for _ in self.outputs]
        known: dict[Key, int] = {("x", k): i for i, k in enumerate(self.outputs)}
        times: dict[int, Number] = {k: r.t for k, r in enumerate(self.rows) if isinstance(r, Row) and r.t is not None}

        def asked(k: int) -> Key | None:
            """The belief of old row k in the new plan, asking for it now if its state is known."""
            if ("x", k) not in known:
                return None
            new = known["x", k]
            draft_rows[new] = Row(draft_rows[new].terms, times[k])
            return ("D", new)

        for k in range(len(self.rows) - 1, self.inputs - 1, -1):
            row = self.rows[k]
            if isinstance(row, Step) or ("x", k) not in known:
                raise FokkerError(f"this plan has no exact inverse: row {k} cannot be recovered from the rows after it")
            unknown_states = [key for key, _ in row.terms if key[0] == "x" and key not in known]
            beliefs = {key: asked(key[1]) for key, _ in row.terms if key[0] == "D"}
            if any(kind == "z" for (kind, _), _ in row.terms) or None in beliefs.values() or len(unknown_states) > 1:
                raise FokkerError(
                    f"this plan has no exact inverse: row {k} needs what only the forward run knows; "
                    "use an invertible solver (edict, bdia), or the same solver on reversed times for an approximation"
                )
            if not unknown_states:
                continue
            target = unknown_states[0]
            scale = dict(row.terms)[target]
            terms: list[tuple[Key, Number]] = [(("x", known["x", k]), 1.0 / scale)]
            for key, c in row.terms:
                if key != target:
                    new_key = beliefs[key] if key[0] == "D" else key if key[0] == "1" else ("x", known[key])
                    assert new_key is not None
                    terms.append((new_key, -c / scale))
            known[target] = len(draft_rows)
            draft_rows.append(Row(tuple(terms), None))
        missing = [k for k in range(self.inputs) if ("x", k) not in known]
        if missing:
            raise FokkerError(f"this plan has no exact inverse: input {missing[0]} does not follow from the outputs")
        outputs = tuple(known["x", k] for k in range(self.inputs))
        config = {"inverse_of": self.config}
        return Plan(tuple(draft_rows), self.process, outputs, len(self.outputs), (), self.end, self.start, config)


class Draft:
    """What a solver writes a plan with.

    `ask(x, node)` stores x as a state, shows it to the denoiser and returns its belief; `keep(x)` stores a combination that
    later rows reuse; `noise(a, b)` is the unit noise of the step from node a to node b. All return `Term`s.
    """

    def __init__(self, process: Process, inputs: int = 1) -> None:
        self.process = process
        self.inputs = inputs
        self.rows: list[Row | Step] = [Row(()) for _ in range(inputs)]
        self.noises: list[tuple[Number, Number]] = []

    def given(self, i: int = 0) -> Term:
        """The i-th state that the run starts from."""
        return Term({("x", i): 1.0})

    def keep(self, x: Term) -> Term:
        """x as a state of its own, computed once."""
        return Term({("x", self._state(x)): 1.0})

    def ask(self, x: Term, node: Node) -> Term:
        """The belief E[x_0 | x] at the node's time."""
        if node.data:
            raise FokkerError("the denoiser cannot be asked at x_0 itself; a solver's last step must not use it")
        k = self._state(x)
        row = self.rows[k]
        if not isinstance(row, Row) or row.t is not None:
            k = self._append(x)
            row = self.rows[k]
        assert isinstance(row, Row)
        self.rows[k] = Row(row.terms, _simple(node.t))
        return Term({("D", k): 1.0})

    def noise(self, a: Node, b: Node) -> Term:
        """The normalised Brownian increment between two nodes."""
        if a.data or b.data:
            raise FokkerError("there is no noise in a step to x_0 itself; a solver's last step must not draw any")
        start, stop = (_simple(n.process.logsnr(n.t).detach().clamp(-RANGE, RANGE)) for n in (a, b))
        self.noises.append((start, stop))
        return Term({("z", len(self.noises) - 1): 1.0})

    def constant(self, value: Number) -> Term:
        """A state that does not depend on the run: `value`, a number or a tensor (1, ...) of the state's rank."""
        return Term({("1", 0): value})

    def adaptive(
        self, x: Term, function: Callable[..., tuple[Tensor, Any]], t: Node, s: Node, draws: bool = False
    ) -> Term:
        """A row that is not linear (see `Step`); raises FokkerError where samples have times of their own."""
        if t.t.ndim or s.t.ndim:
            raise FokkerError("an adaptive solver takes one time for all samples; use a fixed-step one for a time for each")
        self.rows.append(Step(function, ("x", self._state(x)), float(t.t), float(s.t), draws))
        return Term({("x", len(self.rows) - 1): 1.0})

    def finish(self, outputs: Sequence[Term], start: Number | None, end: Number | None, config: dict[str, Any]) -> Plan:
        """The plan that returns these states."""
        rows = tuple(self._state(x) for x in outputs)
        start, end = (t if t is None else _simple(t) for t in (start, end))
        return Plan(tuple(self.rows), self.process, rows, self.inputs, tuple(self.noises), start, end, config)

    def _state(self, x: Term) -> int:
        """The row that holds x, added if it is not a single state already."""
        if len(x.parts) == 1:
            ((kind, k), c), *_ = x.parts.items()
            if kind == "x" and isinstance(c, float) and c == 1.0:
                return k
        k = self._append(x)
        # from here on the term stands for the stored state, or every later row would repeat the whole combination
        x.parts = {("x", k): 1.0}
        return k

    def _append(self, x: Term) -> int:
        terms = tuple((key, _simple(c)) for key, c in x.parts.items())
        for key, c in terms:
            if not bool(torch.isfinite(torch.as_tensor(c)).all()):
                raise FokkerError(
                    f"row {len(self.rows)} of this plan would multiply {key[0]}{key[1]} by {_show(c)}; "
                    "this solver cannot take that step on this process and grid"
                )
        kept = tuple((key, c) for key, c in terms if not (isinstance(c, float) and c == 0.0))
        self.rows.append(Row(kept or terms[:1]))
        return len(self.rows) - 1


def _check(rows: Sequence[Row], outputs: Sequence[int], inputs: int, noises: int) -> None:
    """ValueError unless every row uses only what exists before it."""
    for k, row in enumerate(rows):
        for (kind, i), _ in row.terms:
            exists = 0 <= i < {"z": noises, "1": 1}.get(kind, k)
            if kind not in ("x", "D", "z", "1") or not exists or (kind == "D" and rows[i].t is None):
                raise ValueError(f"row {k} uses {kind}{i}, which does not exist")
        if not row.terms and k >= inputs:
            raise ValueError(f"row {k} is made of nothing")
    if not outputs or not all(0 <= k < len(rows) for k in outputs):
        raise ValueError(f"outputs {outputs} of {len(rows)} rows")


def _simple(c: Number) -> Number:
    """A float where one number says it all; the tensor where it carries a gradient, a sample or a pixel."""
    if isinstance(c, Tensor) and c.ndim == 0 and not c.requires_grad:
        return c.item()
    return c


def _plain(c: Number | None) -> Any:
    return c.tolist() if isinstance(c, Tensor) else c


def _tensor(c: Any) -> Number:
    return torch.tensor(c, dtype=torch.float64) if isinstance(c, list) else float(c)


def _show(c: Number) -> str:
    return f"{c:+.6g}" if isinstance(c, float) else f"+[{tuple(c.shape)}]"


def _config(process: Process) -> dict[str, Any]:
    config = process.config
    if any(callable(v) for v in config.values()):
        raise FokkerError(f"a plan on {process.name} made of functions cannot be stored; use a named process")
    return config


def pairs(nodes: list[Node]) -> Iterator[tuple[Node, Node]]:
    """The intervals (t, s) of a list of nodes."""
    return pairwise(nodes)
