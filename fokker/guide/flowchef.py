"""Control of a flow by a loss on its straight-line end point, whose gradient acts on the state and skips the network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError, unknown
from fokker.plan import Row
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.move import next_move
from fokker.restore.posterior import pull_back

JACOBIANS = ("identity", "full")
OPTIMISERS = ("plain", "adam")
Loss = Callable[[Tensor], Tensor]  # estimates of x_0 (n, ...) -> (n,), one a sample


class FlowChef(Wrapper):
    """x_t <- x_t - step grad L(D), and D with it, since on straight lines with the velocity held dD / dx_t is the identity.

    With the same velocity the plan's step then leads to x_s - step grad L. One evaluation and no backward pass through the
    network, no inversion. On a path that is not straight it is the same method on x_t / (alpha + sigma), the straight form of
    any process, so that `step` keeps its meaning: there D moves by step and x_t by (alpha + sigma) step. For solvers of one
    evaluation a step; what a call between two states corrects, those with more leave behind.

    loss       a function of x_0 estimates (n, ...) to (n,), or 'module:Class' of the user's own; `Misfit`, `WantedClass` and
               `Reference` below. A mean over pixels in place of a sum wants a step as many times larger
    repeats    steps of a call, with the velocity held; too many fit y at high noise
    optimiser  "plain", or "adam" (begun anew at each call), whose steps are of length `step` a number
    max_steps  calls that are corrected, from the first on; None is all. The last call of a run never is
    jacobian   "identity", or "full": the gradient through the network, as in posterior sampling, with one backward pass

    Raises FokkerError for options out of range. Reference: Patel, Wen, Metaxas, Yang 2024, arXiv 2412.00100.
    """

    stackable = False  # a loss may hold a measurement of each sample

    def __init__(
        self,
        inner: Denoiser,
        loss: Loss | str,
        step: float = 1.0,
        repeats: int = 1,
        optimiser: str = "plain",
        max_steps: int | None = None,
        jacobian: str = "identity",
    ) -> None:
        super().__init__(inner)
        for name, value, known in (("optimiser", optimiser, OPTIMISERS), ("jacobian", jacobian, JACOBIANS)):
            if value not in known:
                raise unknown(name, value, known)
        if repeats < 1 or step < 0 or (max_steps is not None and max_steps < 0):
            raise FokkerError(
                f"step={step}, repeats={repeats}, max_steps={max_steps} are not accepted; use step and max_steps of at least "
                "0, repeats of at least 1"
            )
        if jacobian == "full" and (repeats > 1 or optimiser != "plain"):
            raise FokkerError("jacobian='full' would ask the network again for every repeat; use one plain step")
        if isinstance(loss, str):
            from fokker.catalogue.entry import build, load_user_object

            loss = build(load_user_object(loss), loss, (), {})
        assert callable(loss)
        self.loss: Loss = loss
        self.step, self.repeats, self.optimiser = float(step), int(repeats), optimiser
        self.max_steps, self.jacobian, self.calls = max_steps, jacobian, 0

    def reset(self, run: Run) -> None:
        self.calls = 0

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        self.calls += 1
        if self.step == 0 or _last(self.run) or (self.max_steps is not None and self.calls > self.max_steps):
            plain: Tensor = self.inner(x_t, t, **cond)
            return plain
        alpha, _, sigma = self.process.coefficients(t, x_t)
        if self.jacobian == "full":
            belief, pulled = pull_back(self.inner, x_t, t, self._gradient, cond)
            shift = -self.step * (alpha + sigma) * pulled
        else:
            belief = self.inner(x_t, t, **cond)
            shift = self._descent(belief)
        return next_move(self.run, self.process).from_state(belief + shift, (alpha + sigma) * shift)

    def _descent(self, belief: Tensor) -> Tensor:
        """How far the estimate moves in `repeats` steps."""
        shift = torch.zeros_like(belief)
        first, second = torch.zeros_like(belief), torch.zeros_like(belief)
        for k in range(1, self.repeats + 1):
            g = self._gradient(belief + shift)
            if self.optimiser == "adam":
                first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                g = first / (1 - 0.9**k) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
            shift = shift - self.step * g
        return shift

    def _gradient(self, belief: Tensor) -> Tensor:
        with torch.enable_grad():
            x = belief.detach().requires_grad_()
            value = self.loss(x)
            if value.shape != (len(x),):
                raise FokkerError(f"the loss returned {tuple(value.shape)} for {len(x)} samples; it must return one each, (n,)")
            (g,) = torch.autograd.grad(value.sum(), x)
        out: Tensor = g.to(belief)
        return out


def _last(run: Run | None) -> bool:
    """Whether the run stands at its last call."""
    if run is None or run.plan is None or not isinstance(run.plan.rows[run.row], Row):
        return False
    return not any(isinstance(row, Row) and row.t is not None for row in run.plan.rows[run.row + 1 :])


class Regional(Wrapper):
    """M D_inside + (1 - M) D_outside: an edit's target inside a mask, with its guidance, the source or nothing outside.

    `inner` answers inside, under the run's conditions; `outside` (the same denoiser, or the one without guidance) under
    `source`, conditions of the batch, or under none. With `FlowChef` and a `Reference` outside the mask it is the paper's edit;
    `max_steps` of that switches the correction off. Both are evaluated. Raises FokkerError where the two are on different
    processes.
    """

    stackable = False  # mask and source may belong to the samples

    def __init__(
        self, inner: Denoiser, mask: Tensor, outside: Denoiser | None = None, source: dict[str, Cond] | None = None
    ) -> None:
        super().__init__(inner)
        self.outside = inner if outside is None else outside
        if repr(self.outside.process) != repr(inner.process):
            raise FokkerError(f"inside is on {inner.process!r} and outside on {self.outside.process!r}; use one process")
        self.mask, self.source = mask, source

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        inside: Tensor = self.inner(x_t, t, **cond)
        outside: Tensor = self.outside(x_t, t, **(self.outside.null(**cond) if self.source is None else self.source))
        mask = self.mask.to(inside)
        return mask * inside + (1 - mask) * outside


@dataclass(frozen=True, eq=False)
class Misfit:
    """|A x - y|^2 / 2 for any operator, of latents with `decode`: the function that leads to the data's space."""

    operator: Operator
    y: Tensor
    decode: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        data = x if self.decode is None else self.decode(x)
        return 0.5 * (self.operator(data) - self.y.to(data)).flatten(1).square().sum(1)


@dataclass(frozen=True, eq=False)
class WantedClass:
    """-log p(label | x) by a classifier of clean data, x (n, ...) to logits (n, classes); `label` one, or (n,)."""

    classifier: Callable[[Tensor], Tensor]
    label: int | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        logits: Any = self.classifier(x)
        wanted = torch.as_tensor(self.label, device=x.device).expand(len(x))
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")


@dataclass(frozen=True, eq=False)
class Reference:
    """|M (x - reference)|^2 / 2: what an edit keeps, where the mask M (broadcast to x) is 1."""

    reference: Tensor
    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (self.mask.to(x) * (x - self.reference.to(x))).flatten(1).square().sum(1)
