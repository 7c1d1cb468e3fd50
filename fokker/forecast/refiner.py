"""A one-step surrogate whose answer is noised and denoised at ever smaller levels, so that faint waves are learned too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Uniform
from fokker.keyed import sample_ids
from fokker.loop import run
from fokker.plan import Draft, Node, Plan, Term, pairs
from fokker.process import VE, Time, as_time, expand
from fokker.solve import Solver
from fokker.train.objective import Key, Objective, Tensors


class RefinerDenoiser(Denoiser):
    """E[d | w = d + sigma e, previous] for the scaled change d = (u_t - u_{t-1}) / scale, on sigma(t) = sigma_min^(1 - t).

    One network, net(w, c, image=previous): at t = 1, where w is 0, its output is d itself (ordinary regression); elsewhere
    it is the noise e, or v of the variance-preserving form w / sqrt(1 + sigma^2). c runs from -5 to 5 with 1 - t.
    `previous` (batch, channels, *space) is given in units of `std`.

    Reference: Lippe et al. 2023, arXiv 2308.05732.
    """

    def __init__(self, net: nn.Module, sigma_min: float = 1e-3, prediction: str = "eps") -> None:
        super().__init__(VE(sigma_min, 1.0))
        if prediction not in ("eps", "v"):
            raise FokkerError(f"prediction={prediction!r} is not accepted; a refiner predicts 'eps' or 'v'")
        self.net, self.prediction = net, prediction

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        time = as_time(t)
        sigma = self.process.sigma(time)
        first = (time == 1).expand(sigma.shape)
        # at sigma_min = 1e-3 the change of scale is in the sixth digit; v keeps the input of unit size at sigma near 1
        shrink = torch.rsqrt(1 + sigma.square()) if self.prediction == "v" else torch.ones_like(sigma)
        s, c, one = (expand(v, x_t).to(x_t) for v in (sigma, shrink, first))
        level = (5 - 10 * time).to(x_t.device, torch.float32)
        out: Tensor = self.net(c * x_t, level.expand(len(x_t)) if level.ndim == 0 else level, image=cond["previous"])
        if self.prediction == "eps":
            return torch.where(one > 0, out, x_t - s * out)
        return torch.where(one > 0, out, c * (c * x_t - s * out))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("previous",)


@dataclass(frozen=True)
class Refinement(Solver):
    """D_0 at the first node, then x_k = D_{k-1} + sigma_k z and D_k = D(x_k) at every further one; the answer is the last D."""

    stochastic: ClassVar[bool] = True

    def lay(self, draft: Draft, x: Term, nodes: list[Node]) -> Term:
        D = draft.ask(x, nodes[0])
        for before, now in pairs(nodes):
            # a step up in noise draws afresh, and belief D has none
            D = draft.ask(D + now.sigma * draft.noise(now, before), now)
        return D


@dataclass(frozen=True)
class PDERefiner:
    """u_t from u_{t-1}: one regression pass and `passes` denoising passes at sigma_k = sigma_min^(k / passes).

        d^0 = NN(0, u_{t-1}, 0),   d^k = w - sigma_k NN(w, u_{t-1}, k) with w = d^{k-1} + sigma_k e,   u_t = u_{t-1} + scale d^K

    denoiser  a trained `RefinerDenoiser`
    passes    0 is the plain one-step surrogate of the same network
    std       of the field, in whose units the network sees u_{t-1}; scale: of the change u_t - u_{t-1}

    Noise is keyed by the trajectory's id, the step and the pass. Raises FokkerError for a negative number of passes.
    Reference: Lippe et al. 2023, arXiv 2308.05732.
    """

    denoiser: RefinerDenoiser
    passes: int = 3
    std: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.passes < 0 or not (self.std > 0 and self.scale > 0):
            raise FokkerError(
                f"passes={self.passes}, std={self.std}, scale={self.scale}; passes are not negative, scales above 0"
            )

    @property
    def plan(self) -> Plan:
        """The table of one time step: a row for the first guess and one for each pass."""
        process = self.denoiser.process
        if self.passes:
            return Refinement().plan(process, Uniform(self.passes))
        draft = Draft(process)
        node = Node.at(process, torch.tensor(1.0, dtype=torch.float64))
        return draft.finish([draft.ask(draft.given(), node)], 1.0, 1.0, {"solver": "Refinement"})

    def step(
        self, u: Tensor, seed: int = 0, ids: Sequence[int] | Tensor | None = None, plan: Plan | None = None
    ) -> Tensor:
        """The field one step later; u (batch, channels, *space)."""
        change = run(
            self.denoiser,
            torch.zeros_like(u),
            plan or self.plan,
            seed=seed,
            ids=ids,
            check=False,
            previous=u / self.std,
        ).x0
        return u + self.scale * change

    def rollout(self, u: Tensor, steps: int, seed: int = 0, ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """The field at 0 .. steps, (batch, steps + 1, channels, *space), each from the one before."""
        which, plan, out = sample_ids(len(u), ids), self.plan, [u]
        for k in range(steps):
            # every time step has noise of its own
            out.append(self.step(out[-1], (seed + 0x9E3779B97F4A7C15 * (k + 1)) % 2**63, which, plan))
        return torch.stack(out, 1)

    def horizon(self, u: Tensor, steps: int, members: int = 8, threshold: float = 0.8, seed: int = 0) -> Tensor:
        """The step at which `members` rollouts of each start no longer agree, (batch,): their mean correlation < threshold.

        The spread of the refiner's own noise, made larger by the chaos of the equation, predicts how far a rollout is to be
        trusted without a truth to compare with.
        """
        from fokker.forecast.rollout import correlation

        many = u.repeat_interleave(members, 0)
        paths = self.rollout(many, steps, seed).unflatten(0, (len(u), members))
        total = torch.zeros(len(u), steps + 1, dtype=torch.float64)
        couples = [(i, j) for i in range(members) for j in range(i)]
        for i, j in couples:
            total += correlation(paths[:, i], paths[:, j])
        lost = total / max(1, len(couples)) < threshold
        return torch.where(lost.any(1), lost.double().argmax(1), steps)


@dataclass(frozen=True)
class RefinerLoss(Objective):
    """|NN - target|^2 with k uniform on 0 .. passes: the change d at k = 0 (input 0), the noise of d + sigma_k e otherwise.

    The batch has `x`, the field, and `previous`, the one before it, both (batch, channels, *space); `std` and `scale` are those
    of the `PDERefiner`. passes = 0 trains the plain surrogate. Reference: Lippe et al. 2023, arXiv 2308.05732.
    """

    passes: int = 3
    std: float = 1.0
    scale: float = 1.0

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """previous, the scaled change, e and t = 1 - k / passes."""
        _, shared = key.uniforms()
        u = (shared + key.rows.to(torch.float64) / key.batch) % 1.0
        k = (u * (self.passes + 1)).long().clamp(max=self.passes)
        ids, index = key.names()
        x = batch["x"]
        eps = denoiser.process.sample_noise(tuple(x.shape), key.seed, ids, stream="train", index=index, dtype=x.dtype)
        drawn = {
            "previous": batch["previous"] / self.std,
            "change": (x - batch["previous"]) / self.scale,
            "eps": eps,
            "t": 1 - k.to(torch.float64) / max(1, self.passes),
        }
        return {name: v.to(device) for name, v in drawn.items()}

    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        t, d, eps = drawn["t"], drawn["change"], drawn["eps"]
        first = expand(t == 1, d)
        sigma = expand(denoiser.process.sigma(t), d).to(d)
        w = torch.where(first, 0.0, d + sigma * eps)
        error = denoiser(w, t, previous=drawn["previous"]) - d
        # the error of the noise is that of the belief over sigma; v's is larger by sqrt(1 + sigma^2)
        weight = 1 / sigma if getattr(denoiser, "prediction", "eps") == "eps" else torch.sqrt(1 + sigma**2) / sigma
        each: Tensor = (torch.where(first, 1.0, weight) * error).square().flatten(1).mean(1)
        return each


def scales(u: Tensor, previous: Tensor) -> tuple[float, float]:
    """(std, scale) of fields and of their changes, to four digits."""
    return float(f"{float(u.std()):.4g}"), float(f"{math.sqrt(float((u - previous).square().mean())):.4g}")
