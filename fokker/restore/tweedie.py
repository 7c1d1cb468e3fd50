"""The second-order Tweedie sampler: the misfit's gradient and the trace of the score's Jacobian, several times a level."""

from collections.abc import Callable

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, followed, graded
from fokker.errors import FokkerError, unknown
from fokker.grids import Grid
from fokker.keyed import noise
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.move import next_move
from fokker.restore.posterior import Restorer

_PROBE = 1 << 54  # apart from the draws of the plan


class STSL(Restorer):
    """Before each step of the plan, `inner_steps` times x <- x - grad_x [lam ||y - A(D(x))||^2 + eta w / d Trace(grad s(x))].

    By Jensen log E[exp(-lam ||y - A x_0||^2) | x_t] >= -lam ||y - A D||^2 - lam tr(A Cov A^T), and by Tweedie's second moment
    tr Cov = (sigma / alpha)^2 (d + sigma^2 Trace(grad s)): the trace is minimised. It is estimated by one normal probe e,
    e . (s(x + h e) - s(x)) / h, which costs one more evaluation; h = `probe`. The paper has h = 1, a finite difference and not
    a derivative, and w = 1 (`weight="one"`), with which the term explodes at small noise for a true score; "sigma2" is
    w = sigma^2. `eta` = 0 is the first-order sampler, to the bit. `lam` is of the order of 1 / noise^2 in the paper. In a level
    of length dt it weighs the misfit as the likelihood does where lam = beta(t) dt / (4 inner_steps (s^2 + noise^2)), with s^2
    the variance of a measured number given x_t; above that the measurement is trusted more than it deserves.

    A may be nonlinear, such as one behind a decoder (`Decoded`). The paper starts at the noised measurement: `forward_start`.
    inner_steps (1, or 2 with eta) + 1 evaluations. Raises FokkerError for unknown or negative options.

    Reference: Rout, Chen, Kumar, Caramanis, Shakkottai, Chu 2024, arXiv 2312.00852.
    """

    solver = ("ddim", {})

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        lam: float = 0.1,
        eta: float = 0.02,
        inner_steps: int = 5,
        probe: float = 0.1,
        weight: str = "sigma2",
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if weight not in ("sigma2", "one"):
            raise unknown("weight", weight, ("sigma2", "one"))
        if inner_steps < 1 or lam < 0 or eta < 0 or not probe > 0:
            raise FokkerError(
                f"lam={lam}, eta={eta}, inner_steps={inner_steps}, probe={probe} are not accepted; give at least one "
                "inner step, a probe above 0 and weights of at least 0"
            )
        self.lam, self.eta, self.inner_steps, self.probe, self.weight = lam, eta, inner_steps, probe, weight

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        x = x_t
        for k in range(self.inner_steps):
            x = x - self._slope(x, t, k, cond)
        belief: Tensor = self.inner(x, t, **cond)
        return next_move(self.run, self.process).from_state(belief, x - x_t)

    def _slope(self, x_t: Tensor, t: Time, k: int, cond: dict[str, Cond]) -> Tensor:
        """The gradient of the objective at x_t."""
        alpha, sigma = self.levels(t, x_t)
        outer = torch.is_grad_enabled() and x_t.requires_grad
        with graded(outer):
            x = x_t if outer else x_t.detach().requires_grad_()
            belief = followed(self.inner(x, t, **cond))
            loss = self.lam * (self.measured.to(belief) - self.operator(belief)).square().sum()
            if self.eta:
                e = self._probe(x_t, k)
                other: Tensor = self.inner(x + self.probe * e, t, **cond)
                # s = (alpha D - x) / sigma^2, times w = sigma^2 or 1
                scale = 1.0 if self.weight == "sigma2" else 1.0 / sigma**2
                change = scale * (alpha * (other - belief) - self.probe * e)
                loss = loss + self.eta / (x[0].numel() * self.probe) * (e * change).sum()
            (slope,) = torch.autograd.grad(loss, x, create_graph=outer)
        return slope

    def _probe(self, x: Tensor, k: int) -> Tensor:
        row = self.run.row if self.run is not None else 0
        return self.fresh(x, _PROBE + row * self.inner_steps + k)


def hutchinson_trace(score: Callable[[Tensor], Tensor], x: Tensor, n: int = 1, h: float = 0.1, seed: int = 0) -> Tensor:
    """(batch, n) estimates of Trace(grad score) at x (batch, ...), e . (score(x + h e) - score(x)) / h with normal probes e.

    Unbiased as h -> 0; at a scale at which the score bends it is a finite difference.
    Reference: Hutchinson 1989, "A stochastic estimator of the trace of the influence matrix".
    """
    here = score(x)
    found = []
    for k in range(n):
        e = noise(tuple(x.shape), seed, None, "measure", k, x.dtype, x.device)
        found.append((e * (score(x + h * e) - here)).flatten(1).sum(1) / h)
    return torch.stack(found, 1)


def forward_start(denoiser: Denoiser, x_0: Tensor, grid: Grid, **cond: Cond) -> Tensor:
    """x at the grid's first time, by DDIM run upwards from `x_0`, an encoded A^T y or A^+ y."""
    from fokker.grids import reversed_times
    from fokker.loop import sample
    from fokker.solve.onestep import DDIM

    process = denoiser.process
    upwards = reversed_times(grid, process)
    # no noise belongs to the lowest level of an inversion
    x = process.alpha(upwards.times(process)[0]).item() * x_0
    return sample(denoiser, x, DDIM().plan(process, upwards), **cond)
