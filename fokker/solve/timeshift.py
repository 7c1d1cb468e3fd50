"""Time shift: after each step the state is given the time that fits its variance, for each sample."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fokker.errors import FokkerError
from fokker.plan import Draft, Node, Term, pairs
from fokker.process import Process
from fokker.solve import Solver
from fokker.solve.pndm import BASHFORTH


def matched_time(
    process: Process, x: Tensor, t: float, window: float, data_variance: float = 0.0, count: int = 201
) -> Tensor:
    """The times (batch,), float64, in [t - window / 2, t + window / 2] whose variance is nearest to that of each sample of x.

    The variance over all coordinates of a sample is compared with alpha^2 data_variance + sigma^2 at `count` times. In d
    coordinates it is known to a relative sqrt(2 / d), so a few hundred are needed; where sigma hardly changes with t, as
    above t = 0.6 on VP, or where data of unit variance leave it at 1 throughout, nothing can be told.
    """
    around = torch.linspace(-0.5, 0.5, count, dtype=torch.float64, device=x.device)
    times = (t + window * around).clamp(1e-6, 1.0)
    expected = process.alpha(times) ** 2 * data_variance + process.sigma(times) ** 2
    found = x.flatten(1).to(torch.float64).var(1, correction=0)
    # the last term decides among times that cannot be told apart
    return times[((found[:, None] - expected).abs() + 1e-9 * around.abs()).argmin(1)]


@dataclass(frozen=True)
class TimeShift(Solver):
    """DDIM (`history` 1) or pseudo multistep (2 to 4) whose every state is relabelled with the time that fits its variance.

    A step goes from the state's own time tau, at which the denoiser is asked, to the next time s of the grid; then tau is the
    time within `window` of s at which alpha^2 v + sigma^2 is nearest to the variance of the new state, sample by sample. What
    earlier steps got wrong then no longer reaches the denoiser as a wrong noise level.

    window         width around s; too wide a window destroys samples
    cutoff         below this time, and in the last step, nothing is shifted: the match is ill-posed near the data
    data_variance  v, the variance of the data's coordinates; 0 is the published rule

    The label and the start of the transition shift together, and the history holds noise found at shifted times. One evaluation
    a step. For data of some hundred coordinates and more (see `matched_time`).

    Reference: Li et al. 2024, arXiv 2305.15583.
    """

    history: int = 1
    window: float = 0.1
    cutoff: float = 0.1
    data_variance: float = 0.0

    def __post_init__(self) -> None:
        if self.history not in BASHFORTH:
            raise FokkerError(f"history={self.history} is not accepted; use 1 (DDIM) to 4")
        if not self.window >= 0 or not 0 <= self.cutoff <= 1 or not self.data_variance >= 0:
            raise FokkerError(
                f"window={self.window}, cutoff={self.cutoff}, data_variance={self.data_variance} are not accepted; give a "
                "window and a variance of at least 0 and a cutoff in [0, 1]"
            )

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        for k, (t, s) in enumerate(pairs(nodes)):
            move = partial(self.step, draft.process, final=k == len(nodes) - 2, data=s.data)
            x = draft.adaptive(x, move, t, s)
        return x

    def step(
        self,
        process: Process,
        x: Tensor,
        t: float,
        s: float,
        predict: Callable[..., Tensor],
        state: tuple[Tensor, tuple[Tensor, ...]] | None,
        final: bool,
        data: bool,
    ) -> tuple[Tensor, Any]:
        """The state at s and (its label, past noises) from the state at its label."""
        label, past = state if state is not None else (t, ())
        D = predict(x, label)
        if data:
            return D, None
        alpha, _, sigma = process.coefficients(label, x)
        next_alpha, _, next_sigma = process.at(s)
        eps = (x - alpha * D) / sigma
        past = (eps, *past)[: self.history]
        combined = sum((w * e for w, e in zip(BASHFORTH[len(past)], past, strict=True)), torch.zeros_like(eps))
        # the x_0 that belongs to this noise; of one noise alone it is the belief, also where there is no signal yet
        clean = D if len(past) == 1 else (x - sigma * combined) / alpha
        x = next_alpha * clean + next_sigma * combined
        if final or s <= self.cutoff:
            return x, (s, past)
        return x, (self.label(process, x, s), past)

    def label(self, process: Process, x: Tensor, s: float) -> Tensor:
        """The times (batch,) of states at the grid's time s."""
        return matched_time(process, x, s, self.window, self.data_variance)
