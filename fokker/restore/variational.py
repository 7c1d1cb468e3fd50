"""RED-Diff: posterior sampling as the optimisation of one image, with the denoiser's residual as regulariser."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.keyed import uniform
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.posterior import Restorer

_FRESH = 1 << 55  # apart from the draws of the plan
WEIGHTS = ("snr", "constant", "sqrt", "log", "clip")


@dataclass
class Descent:
    """The image that is optimised, with Adam's two averages."""

    image: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0


class REDDiff(Restorer):
    """The image mu that minimises v / 2 mean (y - A mu)^2 + E_t w_t mean (sg[eps_hat - eps] mu), by Adam, one level a step.

    The variational posterior N(mu, 0). At each row of the plan x_t = alpha mu + sigma eps with eps drawn afresh, and mu takes
    one step; the plan gives the times (the paper: descending, 100 or 1,000 of them) and its own states are not looked at, so a
    run that ends at x_0 (`end=0`) returns mu. Since w_t (eps_hat - eps) = lam f(rho) / rho (mu - D(x_t)) with
    rho = sigma / alpha, nothing blows up without signal, and nothing is differentiated through the network.

    lam      the weight of the prior; data and prior are means over what was measured and over x, so it depends on both dims
             (where y keeps the unknown pixels of a mask as zeros the public code counts them too, which is a smaller v)
    weight   w_t = lam f(rho): "snr" (the paper's) f = rho, "constant" 1, "sqrt" sqrt(rho), "log" log(1 + rho), "clip"
             min(rho, 1)
    lr, betas  Adam's
    v        the weight of the data
    times    "plan", or "random": uniform in t, whatever the plan says
    start    where mu begins, instead of A^+ y

    A may be nonlinear (then `start` is needed). A mode-like point and not a sample. Raises FokkerError for unknown options.

    Reference: Mardani, Song, Kautz, Vahdat 2024, arXiv 2305.04391.
    """

    solver = ("ddim", {})

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        lam: float = 0.25,
        lr: float = 0.1,
        v: float = 1.0,
        weight: str = "snr",
        betas: tuple[float, float] = (0.9, 0.99),
        times: str = "plan",
        start: Tensor | None = None,
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if weight not in WEIGHTS:
            raise unknown("weight", weight, WEIGHTS)
        if times not in ("plan", "random"):
            raise unknown("times", times, ("plan", "random"))
        if not lr > 0 or lam < 0 or v < 0:
            raise FokkerError(f"lr={lr}, lam={lam}, v={v} are not accepted; use lr above 0 and weights of at least 0")
        self.lam, self.lr, self.v, self.weight = lam, lr, v, weight
        self.betas, self.times, self.start = tuple(betas), times, start
        self.descent: Descent | None = None

    def reset(self, run: Run) -> None:
        self.descent = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        at = self.descent or self._begin(x_t)
        if self.run is not None:
            self.descent = at
        mu = at.image
        t = self._time(t, len(mu), at.steps)
        pull = self.gradient(mu, self.fresh(mu, _FRESH + at.steps), t, **cond)
        at.steps += 1
        one, two = self.betas
        at.first = one * at.first + (1 - one) * pull
        at.second = two * at.second + (1 - two) * pull.square()
        scale = (at.second / (1 - two**at.steps)).sqrt() + 1e-8
        at.image = mu - self.lr * (at.first / (1 - one**at.steps)) / scale
        return at.image.to(x_t.dtype)

    def gradient(self, mu: Tensor, eps: Tensor, t: Time, **cond: Cond) -> Tensor:
        """The gradient in mu of the loss at one level: v A^T (A mu - y) / dim y + w_t (eps_hat - eps) / dim x."""
        misfit = self.operator(mu) - self.measured.to(mu)
        measured = self.operator.seen(torch.ones_like(misfit)).flatten(1).sum(1).clamp(min=1)
        data = self.operator.pull(mu, misfit) * (self.v / measured).reshape(-1, *[1] * (mu.ndim - 1))
        if self.lam == 0:
            return data  # least squares asks no prior
        alpha, sigma = self.levels(t, mu)
        with torch.no_grad():
            belief: Tensor = self.inner(alpha * mu + sigma * eps, t, **cond)
        return data + self._strength(alpha, sigma) * (mu - belief) * (self.lam / mu[0].numel())

    def _strength(self, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """f(rho) / rho, which is finite where rho = sigma / alpha is not."""
        a, s = torch.as_tensor(alpha), torch.as_tensor(sigma)
        inverse = a / s
        if self.weight == "snr":
            return torch.ones_like(a)
        if self.weight == "constant":
            return inverse
        if self.weight == "sqrt":
            return inverse.sqrt()
        if self.weight == "clip":
            return inverse.clamp(max=1.0)
        return torch.where(a > 0, torch.log1p(s / torch.where(a > 0, a, torch.ones_like(a))), torch.zeros_like(a)) * inverse

    def _begin(self, x_t: Tensor) -> Descent:
        # half precision would lose Adam's small steps
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        if self.start is None and not self.operator.linear:
            raise FokkerError("this operator has no pseudo-inverse to begin at; give start=, an image of the state's shape")
        begin = self.operator.pinv(self.measured.to(x_t.device, dtype)) if self.start is None else self.start
        begin = begin.detach().to(x_t.device, dtype).expand(x_t.shape)
        return Descent(begin, torch.zeros_like(begin), torch.zeros_like(begin))

    def _time(self, t: Time, batch: int, step: int) -> Time:
        if self.times == "plan" or self.run is None:
            return t
        u = uniform((batch, 1), self.run.seed, self.run.ids, "step", _FRESH + step + (1 << 40))[:, 0]
        return self.process.end + (1 - self.process.end) * u
