"""Denoisers answer one question: what is E[x_0 | x_t]?

Networks of any parametrisation, exact laws and other people's models are all `Denoiser`s; what changes the belief (guidance,
a measurement, a cache) is a `Wrapper`, which is a denoiser around a denoiser. Everything else a method may need (eps, v,
score, velocity) is derived from the answer by the process.

A denoiser is bound to a `Run` for each trajectory: `bind` returns a fresh copy, so what a wrapper remembers between steps
never leaks into another run.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fokker.errors import FokkerError, unknown
from fokker.process import PREDICTIONS, Process, Time, as_time, expand

if TYPE_CHECKING:
    from fokker.plan import Plan

Cond = Any  # a tensor with a leading batch dimension, or something that only the network understands


@dataclass
class Run:
    """The trajectory that is being computed, as its bound denoisers see it.

    `ids` (batch,) names the samples, `row` of `rows` is where the `plan` stands and `t` its time, `evaluations` counts denoised
    samples through every wrapper, so that `evaluations / batch` is the NFE. What a denoiser tells beside its answer goes into
    `notes`, which come back with the trace; `table` is what `fokker.ahead` reads.
    """

    batch: int
    seed: int = 0
    ids: Sequence[int] | Tensor | None = None
    rows: int = 0
    row: int = 0
    t: Time = 1.0
    evaluations: int = 0
    plan: "Plan | None" = None
    notes: dict[str, Any] = field(default_factory=dict)
    table: tuple[list[Any], Any] | None = None

    @property
    def nfe(self) -> float:
        """Evaluations per sample so far."""
        return self.evaluations / self.batch


def _keywords(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """The keyword arguments of f(x_t, t, ...), or None if it takes any."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters[2:])


class Denoiser(nn.Module):
    """`denoiser(x_t, t, **cond)` is E[x_0 | x_t], with the shape and dtype of x_t.

    x_t (batch, ...), `t` one time (float or 0-d tensor) or one per leading index (batch,), conditions as keyword tensors
    with a leading batch dimension. Subclasses implement `x0` with that signature. Leaves count one evaluation a sample.
    One that holds tensors of the batch's own size (a measurement, a scale a sample) says `stackable = False`, so that nobody
    asks it about several copies of the batch at once.
    """

    evaluations = 1
    stackable: bool = True
    run: Run | None = None

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.run is not None:
            self.run.evaluations += self.evaluations * x_t.shape[0]
        return self.x0(x_t, t, **cond)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        """E[x_0 | x_t]; what subclasses implement."""
        raise FokkerError(f"{type(self).__name__} does not define x0(x_t, t, **cond); a denoiser must")

    def predict(self, prediction: str, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        """eps, v, score or flow (velocity) at x_t, derived from the belief; no score where the noise is not normal."""
        if prediction == "score" and self.process.dof is not None:
            raise FokkerError(
                f"the score under {self.process.name}'s heavy tails is no function of the belief; ask for x0 or flow"
            )
        plain = x_t
        if self.process.anchored:
            plain = x_t - self.process.coefficients(t, x_t)[1] * self.process.anchor(cond.get("y"))
        return self.process.from_x0(prediction, self(x_t, t, **cond), plain, t)

    @property
    def conditions(self) -> tuple[str, ...] | None:
        """The names of the conditions it takes; None if it cannot tell."""
        return _keywords(self.x0)

    @property
    def data_std(self) -> float | None:
        """The standard deviation of the data that it was made for, where it knows it."""
        return None

    def null(self, **cond: Cond) -> dict[str, Cond]:
        """The same conditions, meaning "none": -1 for integer tensors, zeros for others; raises FokkerError for no tensor."""
        return {k: _none(k, v) for k, v in cond.items()}

    def bind(self, run: Run) -> Self:
        """A copy for one trajectory, and of the denoisers it holds; parameters are shared, what is remembered starts anew."""
        bound = copy.copy(self)
        # into the dictionary at once: neither is a parameter, which is what a module looks into first
        bound.__dict__["_modules"] = {k: None if m is None else _bound(m, run) for k, m in self._modules.items()}
        bound.__dict__["run"] = run
        return bound


def _none(name: str, value: Cond) -> Cond:
    if not isinstance(value, Tensor):
        raise FokkerError(
            f"the condition {name!r} is a {type(value).__name__}, which has no known null; give tensors, or a network with "
            "null_conditions(**cond)"
        )
    integers = not value.is_floating_point() and value.dtype != torch.bool
    return value.new_full(value.shape, -1) if integers else torch.zeros_like(value)


def _bound(module: nn.Module, run: Run) -> nn.Module:
    """A denoiser, or a list or dict of them, bound to the run; any other module as it is."""
    if isinstance(module, Denoiser):
        return module.bind(run)
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList([_bound(m, run) for m in module])
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({k: _bound(m, run) for k, m in module.items()})
    return module


@contextmanager
def graded(again: bool = False) -> Iterator[None]:
    """Gradients are kept within the block; `again` says that those gradients will be differentiated themselves."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # the fast kernels of attention have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if again else nullcontext():
        yield


def followed(belief: Tensor) -> Tensor:
    """The belief itself, about to be differentiated; raises FokkerError where what answered left no way back to x_t."""
    if not belief.requires_grad:
        raise FokkerError(
            "this method differentiates the denoiser, but what is inside it has no gradient (it optimises by itself, or "
            "remembers an answer); put that outside, or take a method without gradients"
        )
    return belief


class Wrapper(Denoiser):
    """A denoiser around another one. Subclasses implement `x0` by calling `self.inner`, and may override `reset`.

    Further denoisers that it calls are attributes (or an `nn.ModuleList`), so that they are bound and counted too. `tokens`
    says that it has a meaning for beliefs that are probabilities of tokens; the others refuse such a denoiser.
    """

    evaluations = 0
    tokens = False

    def __init__(self, inner: Denoiser) -> None:
        if inner.process.tokens and not self.tokens:
            raise FokkerError(f"{type(self).__name__} works on numbers and {inner.process!r} on tokens; leave it out")
        super().__init__(inner.process)
        self.inner = inner
        self.stackable = self.stackable and inner.stackable

    @property
    def conditions(self) -> tuple[str, ...] | None:
        return self.inner.conditions

    @property
    def data_std(self) -> float | None:
        return self.inner.data_std

    def null(self, **cond: Cond) -> dict[str, Cond]:
        return self.inner.null(**cond)

    def bind(self, run: Run) -> Self:
        bound = super().bind(run)
        bound.reset(run)
        return bound

    def reset(self, run: Run) -> None:
        """Called on the fresh copy: the place to create what is remembered during the run."""


class Function(Denoiser):
    """A function (x_t, t, **cond) -> x_0 as a denoiser."""

    def __init__(self, function: Callable[..., Tensor], process: Process) -> None:
        super().__init__(process)
        self.function = function

    @property
    def conditions(self) -> tuple[str, ...] | None:
        return _keywords(self.function)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        x_0: Tensor = self.function(x_t, t, **cond)
        return x_0


def as_denoiser(function: Callable[..., Tensor], process: Process, prediction: str = "x0") -> Denoiser:
    """A denoiser from a function of (x_t, t, **cond) that returns x_0, or another `prediction` of the process's relation.

    The function gets `t` as it was given to the denoiser. Raises FokkerError for an unknown prediction, or for a denoiser of
    another process.
    """
    if isinstance(function, Denoiser):
        if prediction != "x0" or (function.process is not process and repr(function.process) != repr(process)):
            raise FokkerError(f"this is a denoiser on {function.process!r} already; use OnProcess for another process")
        return function
    if prediction == "x0":
        return Function(function, process)
    if prediction not in PREDICTIONS or prediction == "edm":
        raise unknown("prediction", prediction, [p for p in PREDICTIONS if p != "edm"])

    def x0(x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        plain = x_t
        if process.anchored:
            plain = x_t - process.coefficients(t, x_t)[1] * process.anchor(cond.get("y"))
        return process.to_x0(prediction, function(x_t, t, **cond), plain, t)

    return Function(x0, process)


class NetworkDenoiser(Denoiser):
    """A network of any parametrisation as a denoiser.

    With prediction "edm" (Karras et al. 2022, arXiv 2206.00364, for any alpha and sigma):

        D = c_skip x + c_out F(c_in x, c_noise),  c_skip = alpha sd^2 / s^2,  c_out = sigma sd / s,  c_in = 1 / s,
        s^2 = alpha^2 sd^2 + sigma^2,  c_noise = ln(sigma / alpha) / 4 clamped to [-5, 5],

    which depends on the process only through the log-SNR: one trained network serves every plain process. For "x0", "eps",
    "v", "score" and "flow" the network sees x_t itself and `clock(t)` (default: c_noise as above) and its output is converted.

    `net(x, c, **cond)`: x (batch, channels, ...) in the network's dtype, c (batch,) float32; `sigma_data` is the standard
    deviation of the data. Conditions pass through to the network.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        prediction: str = "edm",
        sigma_data: float = 1.0,
        clock: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(process)
        if prediction not in PREDICTIONS:
            raise unknown("prediction", prediction, PREDICTIONS)
        if not sigma_data > 0:
            raise FokkerError(f"sigma_data={sigma_data} is not accepted; give the data's standard deviation, above 0")
        self.net, self.prediction, self.sigma_data, self.clock = net, prediction, float(sigma_data), clock

    def c_noise(self, t: Time, x: Tensor) -> Tensor:
        """What the network is told about the noise level, one number per sample (or per leading index), float32."""
        if self.clock is None and isinstance(t, float):
            # filled in on the device: a copy from the CPU would stall it, and cannot be part of a CUDA graph
            alpha, _, sigma = self.process.at(t)
            level = math.log(sigma / alpha) / 4 if alpha > 0 < sigma else math.copysign(5.0, sigma - alpha)
            return torch.full((x.shape[0],), min(5.0, max(-5.0, level)), dtype=torch.float32, device=x.device)
        t = as_time(t)
        c = self.clock(t) if self.clock else (-self.process.logsnr(t) / 8).clamp(-5, 5)
        # half precision would blur the noise level by per cents
        c = c.to(x.device, torch.float32)
        return c.expand(x.shape[0]) if c.numel() == 1 and c.ndim < 2 else c

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        plain = x_t
        alpha, beta, sigma = self.process.coefficients(t, x_t)
        if self.process.anchored:
            plain = x_t - beta * self.process.anchor(cond.get("y"))
        if self.prediction != "edm":
            return self.process.to_x0(self.prediction, self.call(x_t, t, **cond), plain, t)
        sd = self.sigma_data
        s = (alpha**2 * sd**2 + sigma**2) ** 0.5
        x_0: Tensor = (alpha * sd**2 / s**2) * plain + (sigma * sd / s) * self.call(plain / s, t, **cond)
        return x_0

    def call(self, x: Tensor, t: Time, **cond: Cond) -> Tensor:
        """The network in its own dtype; the answer in x's."""
        parameter = next(self.net.parameters(), x)
        out: Tensor = self.net(x.to(parameter.dtype), self.c_noise(t, x), **cond)
        return out.to(x.dtype)

    @property
    def conditions(self) -> tuple[str, ...] | None:
        names = getattr(self.net, "conditions", None)
        return tuple(names) if names is not None else _keywords(self.net.forward)

    @property
    def data_std(self) -> float | None:
        # only the preconditioned network was told
        return self.sigma_data if self.prediction == "edm" else None

    def null(self, **cond: Cond) -> dict[str, Cond]:
        own: Callable[..., dict[str, Cond]] | None = getattr(self.net, "null_conditions", None)
        return own(**cond) if own else super().null(**cond)


class OnProcess(Wrapper):
    """A denoiser of one process used on another: the belief at equal log-SNR, with the state rescaled.

    D'(x, t') = D(x r / r', t) where t has the log-SNR of t' and r = sqrt(alpha^2 + sigma^2) of either process. Exact for any
    plain Gaussian pair; raises FokkerError for anchored ones. Beyond the inner process's own range the nearest time is used.
    """

    def __init__(self, inner: Denoiser, process: Process) -> None:
        super().__init__(inner)
        if inner.process.anchored or process.anchored:
            raise FokkerError("OnProcess needs two plain processes; an anchored denoiser knows only its own anchor")
        self.process = process

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        inner_t = self.inner.process.time(self.process.logsnr(as_time(t)))
        alpha, _, sigma = self.process.coefficients(t, x_t)
        a, _, s = self.inner.process.coefficients(inner_t, x_t)
        scale = ((a**2 + s**2) / (alpha**2 + sigma**2)) ** 0.5
        x_0: Tensor = self.inner(scale * x_t, inner_t, **cond)
        return x_0


class Deanchored(Wrapper):
    """The plain view of an anchored denoiser: D(x + beta y) for solvers that know nothing of the anchor."""

    stackable = False

    def __init__(self, inner: Denoiser, y: Tensor) -> None:
        super().__init__(inner)
        self.y = y

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        beta = self.process.coefficients(t, x_t)[1]
        x_0: Tensor = self.inner(x_t + beta * self.y, t, y=self.y, **cond)
        return x_0


__all__ = [
    "Deanchored",
    "Denoiser",
    "NetworkDenoiser",
    "OnProcess",
    "Run",
    "Wrapper",
    "as_denoiser",
    "expand",
]
