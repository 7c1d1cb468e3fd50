"""Training losses of tokens: bounds on -log p(x_0), and a check of them on held-out text."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.discrete.denoiser import TokenDenoiser
from fokker.discrete.solve import tokens
from fokker.errors import FokkerError
from fokker.keyed import uniform
from fokker.train.objective import Key, Objective, Tensors


@dataclass(frozen=True)
class TimeFree(Objective):
    """E_n [ (1 / n) sum over the n masked of -log p(x_0^i | x_n) ], n uniform on 1 .. L: the bound a token, in nats.

    The continuous-time bound of every masked process, whatever its schedule, since it depends on the number of masks alone.
    n is stratified over the batch; the masked positions are any n with equal chance. `drop` is the share of samples trained
    without their conditions. Reference: Zheng et al. 2024, arXiv 2409.02908; Ou et al. 2024, arXiv 2406.03736.
    """

    drop: float = 0.0

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x, x_t with n masks, and the conditions."""
        x, process = batch["x"], tokens(denoiser.process)
        own, shared = key.uniforms()
        u = (shared + key.rows.to(torch.float64) / key.batch) % 1.0
        n = (u * x.shape[1]).long().clamp(max=x.shape[1] - 1) + 1
        ids, index = key.names()
        rank = uniform(tuple(x.shape), key.seed, ids, "train", index).argsort(1).argsort(1)
        drawn = {"x": x, "x_t": torch.where(rank < n[:, None], process.mask, x)}
        for name, value in batch.items():
            if name != "x":
                lost = (own[:, 1] < self.drop).reshape(-1, *[1] * (value.ndim - 1))
                drawn[name] = torch.where(lost, denoiser.null(**{name: value})[name], value) if self.drop else value
        return {k: v.to(device, non_blocking=True) for k, v in drawn.items()}

    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        if not isinstance(denoiser, TokenDenoiser) or denoiser.corruption.replace:
            raise FokkerError("TimeFree trains a TokenDenoiser of a process that only masks; use TokenBound for others")
        cond = {k: v for k, v in drawn.items() if k not in ("x", "x_t")}
        x, x_t = drawn["x"], drawn["x_t"]
        masked = x_t == denoiser.corruption.mask
        each = _cross_entropy(denoiser.logits(x_t, 1.0, **cond), x)
        return (each * masked).sum(1) / masked.sum(1)


@dataclass(frozen=True)
class TokenBound(Objective):
    """steps KL(q(x_s | x_t, x_0) || p(x_s | x_t)) + aux (-log belief(x_0)), in nats a token, for any process of tokens.

    t is one of `steps` equal parts of the time, s the part before; the last step to t = 0 counts -log belief(x_0). Summed
    over the steps it is the bound on -log p(x_0) up to the KL of the start, which is 0. `aux` keeps the belief itself close,
    weighted by 1 - t / 2 as in the released code of the reference.

    Raises FokkerError for fewer than two steps. Reference: Gu et al. 2022, arXiv 2111.14822.
    """

    steps: int = 100
    aux: float = 5e-4

    def __post_init__(self) -> None:
        if self.steps < 2 or self.aux < 0:
            raise FokkerError(
                f"steps={self.steps}, aux={self.aux}; give at least two steps and a weight that is not negative"
            )

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x, x_t, the times t and s, and the conditions."""
        x, process = batch["x"], tokens(denoiser.process)
        _, shared = key.uniforms()
        u = (shared + key.rows.to(torch.float64) / key.batch) % 1.0
        k = (u * self.steps).long().clamp(max=self.steps - 1)
        t, s = (k + 1).to(torch.float64) / self.steps, k.to(torch.float64) / self.steps
        ids, index = key.names()
        eps = process.sample_noise(tuple(x.shape), key.seed, ids, stream="train", index=index)
        return {k: v.to(device) for k, v in ({**batch, "x_t": process.add_noise(x, eps, t), "t": t, "s": s}).items()}

    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        process = tokens(denoiser.process)
        cond = {k: v for k, v in drawn.items() if k not in ("x", "x_t", "t", "s")}
        x, x_t, t, s = drawn["x"], drawn["x_t"], drawn["t"], drawn["s"]
        belief = denoiser(x_t, t, **cond)
        known = torch.nn.functional.one_hot(x, process.size).to(belief.dtype)
        true, ours = (process.reverse(x_t, b, t, s) for b in (known, belief))
        true, ours = (p / p.sum(-1, keepdim=True) for p in (true, ours))
        divergence = (torch.xlogy(true, true) - torch.xlogy(true, ours.clamp_min(1e-30))).sum(-1)
        surprise = -torch.log(belief.gather(-1, x[..., None])[..., 0].clamp_min(1e-30))
        part = torch.where((s == 0)[:, None], surprise, divergence).mean(1)
        return (self.steps * part + self.aux * (1 - t / 2) * surprise.mean(1)).to(torch.float32)


@torch.no_grad()
def bits_per_token(denoiser: TokenDenoiser, x: Tensor, draws: int = 8, seed: int = 0) -> tuple[float, float]:
    """The bound on -log2 p(x_0) a token over sequences x (n, L), and its standard error over sequences."""
    objective, each = TimeFree(), []
    for k in range(draws):
        key = Key((seed + k) % 2**63, 0, len(x), torch.arange(len(x)))
        each.append(objective.loss(denoiser, objective.draw(denoiser, {"x": x}, key, x.device)))
    mean = torch.stack(each).mean(0) / math.log(2)
    return float(mean.mean()), float(mean.std()) / math.sqrt(len(x))


def _cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), x.flatten(), reduction="none").reshape(
        x.shape
    )
