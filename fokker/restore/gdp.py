"""GDP: the predicted clean image goes down a distance to the measurement whose parameters are fitted along the same run."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run
from fokker.errors import FokkerError, unknown
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.blind import BlindOperator, Parameters
from fokker.restore.move import next_move
from fokker.restore.posterior import Restorer, pull_back

PLACES = ("x0", "x_t")
Quality = Callable[[Tensor, Parameters], Tensor]  # x_0 (n, ...) and the parameters -> (n,)


class GDP(Restorer):
    """x_s = (the plan's step) - scale n grad_{x_0} L,  L = mean (y - Deg_phi(x_0))^2 + Q,  at x_0 = D(x_t), n numbers in y.

    At every call phi <- phi - lr grad_phi L comes first, on the same x_0. The posterior mean of an ancestral step moves by
    exactly -scale n grad L (the paper's GDP-x_0 in units in which half a step undoes a misfit of gain 1: scale 0.5), without
    the covariance of classifier guidance and without a gradient through the network; so it does in any plan of one evaluation
    a step.

    operator    any, or a `BlindOperator` whose parameters are fitted, one set a sample, and come back in the trace's notes as
                "parameters"
    scale       the gradient is proportional to the operator's own gain: a measurement of gain f wants 1 / f^2 as much
    lr, repeats of phi; 0 keeps what it begins with
    parameters  where phi begins, such as those found on a small copy of a large picture
    quality     Q: `Exposure`, `ColourConstancy`, `Smoothness`, or functions of (x_0, phi), added up
    at          "x0", or "x_t": the gradient in x_t through the network (GDP-x_t)
    clip        largest number in the shift of the state; large scales diverge in the first steps without

    Large pictures: put a `Charts` wrapper inside, whose pieces share phi because phi belongs to the sample. Raises FokkerError
    for options out of range. Reference: Fei et al. 2023, arXiv 2304.01247.
    """

    solver = ("ddpm", {})

    def __init__(
        self,
        inner: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        scale: float = 0.5,
        lr: float = 0.1,
        repeats: int = 1,
        parameters: Mapping[str, Tensor] | None = None,
        quality: Quality | Sequence[Quality] = (),
        at: str = "x0",
        clip: float | None = None,
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if at not in PLACES:
            raise unknown("place of the gradient", at, PLACES)
        if scale < 0 or lr < 0 or repeats < 1 or (clip is not None and not clip > 0):
            raise FokkerError(
                f"scale={scale}, lr={lr}, repeats={repeats}, clip={clip} are not accepted; use scale and lr of at least 0, "
                "repeats of at least 1, clip above 0"
            )
        if parameters is not None and not isinstance(operator, BlindOperator):
            raise FokkerError(f"{type(operator).__name__} has no parameters to fit; use a BlindOperator such as Light")
        self.scale, self.lr, self.repeats, self.at, self.clip = float(scale), float(lr), int(repeats), at, clip
        self.begin = None if parameters is None else dict(parameters)
        self.quality = (quality,) if callable(quality) else tuple(quality)
        self.phi: Parameters | None = None

    def reset(self, run: Run) -> None:
        self.phi = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        if self.at == "x_t":
            belief, slope = pull_back(self.inner, x_t, t, self._slope, cond)
        else:
            belief = self.inner(x_t, t, **cond)
            slope = self._slope(belief.detach())
        if self.run is not None and self.phi:
            self.run.notes["parameters"] = dict(self.phi)
        shift = -self.scale * slope
        if self.clip is not None:
            shift = shift.clamp(-self.clip, self.clip)
        return next_move(self.run, self.process).shifted(belief, shift)

    def _slope(self, belief: Tensor) -> Tensor:
        """n grad_{x_0} L, after phi was fitted to this belief."""
        wide = belief.detach().to(torch.promote_types(belief.dtype, torch.float32))
        phi = self._fitted(wide)
        with torch.enable_grad():
            x = wide.requires_grad_()
            loss = self._loss(x, phi)
            (slope,) = torch.autograd.grad(loss.sum(), x)
        many = self.operator.seen(torch.ones_like(self.measured)).flatten(1).sum(1).real.clamp(min=1)
        return (slope * many.to(slope).reshape(-1, *[1] * (x.ndim - 1))).to(belief)

    def _fitted(self, x: Tensor) -> Parameters:
        if not isinstance(self.operator, BlindOperator):
            return {}
        phi = self.phi
        if phi is None:
            begun = self.operator.parameters(x) if self.begin is None else self.begin
            phi = {name: value.detach().to(x).clone() for name, value in begun.items()}
        for _ in range(self.repeats if self.lr else 0):
            with torch.enable_grad():
                asked = {name: value.detach().requires_grad_() for name, value in phi.items()}
                slopes = torch.autograd.grad(self._loss(x, asked).sum(), list(asked.values()))
            phi = {name: phi[name] - self.lr * g for name, g in zip(asked, slopes, strict=True)}
        if self.run is not None:
            self.phi = phi  # outside a run nothing is remembered
        return phi

    def _loss(self, x: Tensor, phi: Parameters) -> Tensor:
        """L of every sample, (batch,)."""
        made = self.operator.degrade(x, phi) if isinstance(self.operator, BlindOperator) else self.operator(x)
        y = self.measured.to(made)
        misfit = (made - y).abs().square().flatten(1).sum(1)
        many = self.operator.seen(torch.ones_like(y)).abs().flatten(1).sum(1).clamp(min=1)
        return sum((q(x, phi) for q in self.quality), misfit / many)
