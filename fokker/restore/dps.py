"""Diffusion posterior sampling: after each step the state goes down the gradient of the misfit, through the denoiser."""

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.process import Time
from fokker.restore import Operator
from fokker.restore.move import next_move
from fokker.restore.posterior import Restorer, pull_back


class DPS(Restorer):
    """x_s = (the plan's step) - step * grad_{x_t} ||y - A(D(x_t))||, with any differentiable A.

    The gradient of the norm and not of its square is the paper's zeta / ||y - A D||: the length of a correction does not
    depend on how far the measurement is. `step` is a length per step of the plan (the paper's 1,000 ancestral ones, `solver`),
    in the units of the state, or a tensor that broadcasts to it, such as one a source; fewer steps want larger ones. The
    noise level does not enter. The shift of the state becomes one of the belief by the weight that the plan gives the belief,
    so that any plan of one evaluation a step moves exactly so. One evaluation and one backward pass. Raises FokkerError for a
    negative step.

    Reference: Chung, Kim, McCann, Klasky, Ye 2023, arXiv 2209.14687.
    """

    solver = ("ddpm", {})

    def __init__(
        self, inner: Denoiser, operator: Operator, y: Tensor, noise_std: float = 0.0, step: float | Tensor = 1.0
    ) -> None:
        super().__init__(inner, operator, y, noise_std)
        if bool((torch.as_tensor(step) < 0).any()):
            raise FokkerError(f"step={step} is not accepted; give a length of at least 0, 1 in the paper")
        self.step = step

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        belief, pulled = pull_back(self.inner, x_t, t, self._towards, cond)
        step = self.step.to(pulled) if isinstance(self.step, Tensor) else self.step
        return next_move(self.run, self.process).shifted(belief, step * pulled)

    def _towards(self, belief: Tensor) -> Tensor:
        """-grad ||y - A(D)|| in D; 0 where the misfit is."""
        misfit = self.measured.to(belief) - self.operator(belief)
        norm = misfit.flatten(1).norm(dim=1).reshape(-1, *[1] * (misfit.ndim - 1))
        return self.operator.pull(belief, misfit / torch.where(norm > 0, norm, torch.ones_like(norm)))
