"""Null-text optimisation: the null condition of each step is fitted so that guided sampling retraces an inversion."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.edit.inversion import Trajectory
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.loop import run
from fokker.net.taps import taps
from fokker.process import Time
from fokker.solve.onestep import DDIM


@dataclass(frozen=True)
class Place:
    """Where the null condition of a denoiser lives as numbers that can be optimised.

    A condition that is a tensor of real numbers is given as it is (`name` empty). Else it is what a module of the network
    makes of the null condition (`kind` "module"), or a parameter that stands for it ("parameter").
    """

    kind: str = "condition"
    name: str = ""
    owner: nn.Module | None = None


def place(denoiser: Denoiser, cond: dict[str, Cond]) -> Place:
    """Where the null condition lives; raises FokkerError where it is no numbers."""
    for m in denoiser.modules():
        if isinstance(getattr(m, "null_token", None), nn.Parameter):
            return Place("parameter", "null_token", m)
    free = [v for k, v in cond.items() if k != "y"]
    if free and all(isinstance(v, Tensor) and v.is_floating_point() for v in free):
        return Place()
    for m in denoiser.modules():
        table = getattr(getattr(m, "embedding", None), "label", None)
        if isinstance(table, nn.Embedding):
            return Place("module", "embedding.label", m)
    raise FokkerError(
        "the null condition of this denoiser is no tensor of real numbers and no embedding of a network of ours; "
        "null-text optimisation needs one"
    )


def start_of(denoiser: Denoiser, where: Place, cond: dict[str, Cond]) -> dict[str, Tensor]:
    """The null condition as it is, one a sample."""
    free = {k: v for k, v in cond.items() if k != "y"}
    if where.kind == "condition":
        return {k: v.clone() for k, v in denoiser.null(**free).items()}
    n = len(next(iter(free.values())))
    if where.kind == "parameter":
        token: Tensor = getattr(where.owner, where.name)
        return {where.name: token.detach().expand(n, 1, -1).clone()}
    assert where.owner is not None
    table = where.owner.get_submodule(where.name)
    assert isinstance(table, nn.Embedding)
    return {where.name: table.weight[-1].detach().expand(n, -1).clone()}


@contextmanager
def substituted(where: Place, values: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block the null condition is `values`."""
    if where.kind == "condition":
        yield
    elif where.kind == "module":
        assert where.owner is not None
        with taps(where.owner, replace=values):
            yield
    else:
        assert where.owner is not None
        own = where.owner._parameters.pop(where.name)
        object.__setattr__(where.owner, where.name, values[where.name])
        try:
            yield
        finally:
            object.__delattr__(where.owner, where.name)
            where.owner._parameters[where.name] = own


def ask(
    inner: Denoiser, where: Place, values: dict[str, Tensor], x_t: Tensor, t: Time, cond: dict[str, Cond]
) -> Tensor:
    """The belief under the null condition `values`."""
    free = {k: v for k, v in cond.items() if k != "y"}
    null = cond | (values if where.kind == "condition" else inner.null(**free))
    with substituted(where, values):
        belief: Tensor = inner(x_t, t, **null)
    return belief


@dataclass(frozen=True)
class NullText:
    """The null condition of every step, from noise to data, for the guidance `scale` that it was fitted to.

    `error` is the mean squared distance from the trajectory after each step, of all samples; `nfe` what fitting took.
    """

    nulls: tuple[dict[str, Tensor], ...]
    where: Place
    scale: float
    error: tuple[float, ...]
    nfe: float

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        trajectory: Trajectory,
        *,
        scale: float = 7.5,
        inner_steps: int = 10,
        rate: float = 1e-2,
        decay: float = 0.01,
        tolerance: float = 1e-5,
        relax: float = 2e-5,
        **cond: Cond,
    ) -> "NullText":
        """Fit null conditions so that guided DDIM sampling under `cond` retraces the trajectory.

        At step k the state z is the one that the steps before led to. Adam with rate `rate` (1 - decay k) moves the null
        condition for at most `inner_steps` updates to bring the guided DDIM step of z to the trajectory's next state; a sample
        whose mean squared distance is below `tolerance` + `relax` k is left alone. Each step begins with the null condition of
        the one before. Weights, and the belief under the condition, stay fixed. Rates and tolerances are in units of the
        embedding and of the state.

        Reference: Mokady, Hertz, Aberman, Pritch, Cohen-Or 2022, arXiv 2211.09794.
        """
        where = place(denoiser, cond)
        values = start_of(denoiser, where, cond)
        times = trajectory.grid.times(trajectory.process)
        z, spent = trajectory.noise, 0.0
        nulls, errors = [], []
        frozen = [p for p in denoiser.parameters() if p.requires_grad]
        for p in frozen:
            p.requires_grad_(False)
        try:
            for k in range(len(times) - 1):
                plan = DDIM().plan(trajectory.process, Times(times[k : k + 2]))
                goal, limit = trajectory.states[k + 1], tolerance + relax * k
                half = _Half(denoiser, where, scale)
                with torch.no_grad():
                    half.fixed = denoiser(z, float(times[k]), **cond)
                leaves = {name: v.detach().clone().requires_grad_(True) for name, v in values.items()}
                adam = torch.optim.Adam(leaves.values(), lr=rate * max(0.0, 1 - decay * k))
                spent += 1
                for _ in range(inner_steps):
                    half.values = leaves
                    out = run(half, z, plan, gradient=True, **cond).x0
                    spent += 1
                    loss = (out - goal).square().flatten(1).mean(1)
                    active = (loss > limit).detach()
                    if not bool(active.any()):
                        break
                    adam.zero_grad()
                    # a sum over samples, so that none feels how many there are
                    torch.where(active, loss, 0.0).sum().backward()
                    before = {name: v.detach().clone() for name, v in leaves.items()}
                    adam.step()
                    with torch.no_grad():
                        for name, v in leaves.items():
                            v.copy_(torch.where(active.reshape(-1, *[1] * (v.ndim - 1)), v, before[name]))
                values = {name: v.detach() for name, v in leaves.items()}
                half.values = values
                z = run(half, z, plan, **cond).x0
                spent += 1
                nulls.append(values)
                errors.append(float((z - goal).square().mean()))
        finally:
            for p in frozen:
                p.requires_grad_(True)
        return cls(tuple(nulls), where, scale, tuple(errors), spent)


class _Half(Wrapper):
    """Guidance whose conditional belief is known: one step's, while its null condition is sought."""

    def __init__(self, inner: Denoiser, where: Place, scale: float) -> None:
        super().__init__(inner)
        self.where, self.scale = where, scale
        self.fixed: Tensor | None = None
        self.values: dict[str, Tensor] = {}

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        without = ask(self.inner, self.where, self.values, x_t, t, cond)
        assert self.fixed is not None
        return without + self.scale * (self.fixed - without)


class PerStepNull(Wrapper):
    """Classifier-free guidance whose null condition is another one at every step, as `NullText` fitted it.

    A batch that is a multiple of the fitted one (paired branches) repeats the null conditions. Raises FokkerError where the run
    has more steps than were fitted.
    """

    stackable = False

    def __init__(self, inner: Denoiser, text: NullText) -> None:
        super().__init__(inner)
        self.text = text

    def reset(self, run: Run) -> None:
        self.step, self.row = -1, -1

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.run is None:
            raise FokkerError("PerStepNull counts the steps of a run; call it through fokker.run")
        if self.run.row != self.row:
            self.row, self.step = self.run.row, self.step + 1
        if self.step >= len(self.text.nulls):
            raise FokkerError(
                f"null conditions were fitted for {len(self.text.nulls)} steps; run the plan of their trajectory"
            )
        values: dict[str, Any] = {}
        for name, v in self.text.nulls[self.step].items():
            values[name] = torch.cat([v] * (len(x_t) // len(v)))
        with_cond = self.inner(x_t, t, **cond)
        without = ask(self.inner, self.text.where, values, x_t, t, cond)
        guided: Tensor = without + self.text.scale * (with_cond - without)
        return guided
