"""What the tests of the core share: everything registered, as instances, and exact laws with their flow.

The lists come from the catalogue, so a new process, solver, grid, wrapper or operator is tested without an edit here. Only
a constructor argument without a default needs to be known: `KNOWN` says what a parameter of that name may be.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker import catalogue
from fokker.charts import Charts
from fokker.denoiser import Denoiser, Wrapper
from fokker.plan import Plan, Step
from fokker.process import Process
from fokker.restore import Operator
from fokker.solve import Solver

F64 = torch.float64
SHAPE = (2, 4, 6)  # channels, height, width: nothing square
BETAS = tuple(torch.linspace(1e-3, 0.2, 50, dtype=F64).tolist())


class Twice(Charts):
    """Every state in two pieces, each of them the whole."""

    def gather(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 0)

    def scatter(self, pieces: Tensor, shape: Sequence[int]) -> Tensor:
        return pieces.unflatten(0, (shape[0], 2)).mean(1)


KNOWN: dict[str, Any] = {
    "charts": Twice(),
    "betas": BETAS,
    "keep": 0.5,
    "kernel": 0.8,
    "factor": 2,
    "loss": lambda x: 0.1 * x.flatten(1).square().mean(1),
    "shape": SHAPE,
    "classifier": lambda x: x.flatten(1)[:, :3],
    "matrix": torch.linspace(-1, 1, 7 * 48, dtype=F64).reshape(7, 48).sin() / 3,
}


def made(kind: str, name: str, *arguments: Any, **options: Any) -> Any:
    """The registered object of that name, its arguments without default filled in from KNOWN."""
    target, preset = catalogue.find(kind, name)
    parameters = list(inspect.signature(target).parameters.values())[len(arguments) :]
    for p in parameters:
        needed = p.default is p.empty and p.kind is not p.VAR_KEYWORD
        if (needed or p.name == "shape") and p.name not in preset and p.name not in options:
            assert p.name in KNOWN, (
                f"{kind} {name} needs {p.name}=, which tests/laws_for_tests.py cannot make: add it to KNOWN"
            )
            options[p.name] = KNOWN[p.name]
    return catalogue.resolve(kind, name, *arguments, **options)


PROCESSES: dict[str, Process] = {name: made("process", name) for name in catalogue.names("process")}
PROCESSES["vp-table-zero-snr"] = made("process", "vp-table", betas=(*BETAS[:-1], 1.0))
SOLVERS: dict[str, Solver] = {name: made("solver", name) for name in catalogue.names("solver")}
GRIDS = catalogue.names("grid")
OPERATORS: dict[str, Operator] = {name: made("operator", name) for name in catalogue.names("operator")}


def guidance(name: str, denoiser: Denoiser, **options: Any) -> Wrapper:
    wrapper: Wrapper = made("guidance", name, denoiser, **options)
    return wrapper


def restorer(name: str, denoiser: Denoiser, operator: Operator, y: Tensor, **options: Any) -> Wrapper:
    wrapper: Wrapper = made("restorer", name, denoiser, operator, y, **options)
    return wrapper


def adaptive(plan: Plan) -> bool:
    return any(isinstance(row, Step) for row in plan.rows)


# Smooth, of about unit variance, with two clearly different modes and a skew.
LAW = fk.laws.GaussianMixture([0.5, 0.3, 0.2], [[-0.9, 0.4], [0.9, 0.6], [0.2, -1.1]], 0.2, labels=[0, 1, 1])
SHAPED = fk.laws.lowrank(dim=48, components=3, rank=4, seed=1, std=0.3)
SHAPED = fk.laws.GaussianMixture(
    SHAPED.weights, SHAPED.means, (*SHAPED.form[:2], SHAPED.variance.sqrt()), [0, 1, 2], SHAPE
)


def anchor(process: Process, x: Tensor) -> Tensor | None:
    """An anchor of the shape of x for processes that have one: different for every sample, and not small."""
    if not process.anchored:
        return None
    return 1.5 + fk.noise(tuple(x.shape), seed=99, dtype=F64).to(x)


def cond(process: Process, x: Tensor) -> dict[str, Tensor]:
    y = anchor(process, x)
    return {} if y is None else {"y": y}


def start(
    process: Process, n: int = 4, shape: tuple[int, ...] = (2,), dtype: torch.dtype = F64, t: float = 1.0
) -> Tensor:
    eps = fk.noise((n, *shape), seed=5, dtype=F64)
    return process.start(eps, anchor(process, eps), t).to(dtype)


@functools.cache
def _curve(high: float, low: float, n: int) -> tuple[Tensor, Tensor]:
    """A point w = x / sqrt(alpha^2 + sigma^2) at log-SNR `high`, and where the exact flow takes it at log-SNR `low`."""
    process = fk.VP(beta_max=40.0)
    t, s = process.time(high).item(), process.time(low).item()
    x = LAW.sample(n, seed=3)
    x = process.add_noise(x, fk.noise((n, 2), seed=4, dtype=F64), t)
    return x, LAW.flow(process, x, t, s, tol=1e-11)


@functools.cache
def exact(
    process: Process, high: float, low: float, n: int = 24
) -> tuple[float, float, Tensor, Tensor, dict[str, Tensor]]:
    """(t, s, x_t, x_s, conditions): the exact flow of LAW on `process` between two log-SNRs (clipped to what it has).

    All processes share one curve up to scale and anchor, so it is integrated once. (The heavy tails of PFGM++ are a matter of
    the law, which solvers do not see; its tables are met here with normal noise.)
    """
    high = max(high, process.logsnr(1.0).item() + 1e-9)
    low = min(low, process.logsnr(process.end).item())
    t, s = process.time(high).item(), process.time(low).item()
    ends = []
    for w, time in zip(_curve(round(high, 9), round(low, 9), n), (t, s), strict=True):
        alpha, beta, sigma = process.at(time)
        y = anchor(process, w)
        ends.append(w * (alpha**2 + sigma**2) ** 0.5 + (0.0 if y is None else beta * y))
    return t, s, ends[0], ends[1], cond(process, ends[0])


def quick(process: Process) -> Denoiser:
    """LAW's denoiser under normal noise in ten operations, for tests of many runs."""
    means, v = LAW.means, float(LAW.variance[0])
    square = means.square().sum(1)

    def x0(x_t: Tensor, t: float, y: Tensor | None = None) -> Tensor:
        alpha, beta, sigma = process.at(t)
        plain = x_t if y is None else x_t - beta * y
        s2 = alpha**2 * v + sigma**2
        mean = (
            torch.softmax(plain @ (alpha / s2 * means.T) + (LAW.log_weights - alpha**2 / (2 * s2) * square), -1) @ means
        )
        return (1 - alpha**2 * v / s2) * mean + (alpha * v / s2) * plain

    return fk.as_denoiser(x0, process)
