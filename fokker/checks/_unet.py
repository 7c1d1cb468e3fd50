"""What the checks of caches and quantisation share: a U-Net of digits, trained once a process, and runs of it.

A plain noise-prediction network on VP as the methods' papers have it (the zoo's digits are preconditioned): 0.5 M parameters,
class conditional, about 40 s of one core. Its recipe was fixed before anything was measured on it. 300 samples are made in
parts of 60, which is faster than all at once; a check that needs fewer takes the first parts, and gets the same samples.
"""

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.cache import DeepCache
from fokker.cache.calls import Call
from fokker.data.toys import digits
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.guide.threshold import DynamicThreshold
from fokker.keyed import noise, uniform
from fokker.measure import Frechet
from fokker.net import build
from fokker.net.cost import macs
from fokker.process import VP

STEPS, BATCH, RATE = 500, 128, 2e-3
PROCESS = VP()
PART, PARTS = 60, 5


@cache
def trained() -> NetworkDenoiser:
    """500 steps of Adam at batch 128, the rate decaying as a cosine, labels dropped for one sample in ten."""
    data = digits.build().tensors
    net = build("digits", dropout=0.0)
    denoiser = NetworkDenoiser(net, PROCESS, "eps")
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        u = uniform((BATCH, 3), step, stream="train", index=1)
        rows = (u[:, 0] * len(data["x"])).long()
        t = PROCESS.end + (1 - PROCESS.end) * (u[:, 1] + torch.arange(BATCH)) / BATCH
        label = torch.where(u[:, 2] < 0.1, -1, data["label"][rows])
        x, eps = data["x"][rows], noise((BATCH, 1, 8, 8), step, stream="train")
        loss = (denoiser.call(PROCESS.add_noise(x, eps, t), t, label=label) - eps).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return denoiser.eval().requires_grad_(False)


def clipped(denoiser: Denoiser) -> Denoiser:
    """Beliefs within the range of pixels, as the samplers of pixel models keep them.

    A noise prediction is no belief near t = 1, where alpha is 0.0066: an error of it enters x_0 150 times as large.
    """
    return DynamicThreshold(denoiser, quantile=1e-6)


@cache
def real() -> Tensor:
    """The training digits (n, 64)."""
    x: Tensor = digits.build().tensors["x"]
    return x.flatten(1)


def plan_of(steps: int, solver: str = "ddpm") -> fk.Plan:
    """A plan from noise to x_0 at equal steps of time."""
    return fk.loop.lay(PROCESS, solver, steps=steps, grid="uniform", end=0)


class Bench:
    """Runs from one set of noises."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.x = PROCESS.start(noise((PART * PARTS, 1, 8, 8), seed, stream="check"))
        self.label = torch.arange(len(self.x)) % 10

    def samples(self, denoiser: Denoiser, plan: fk.Plan, parts: int = PARTS) -> Tensor:
        """The samples of the first `parts` of five parts."""
        found = []
        for k in range(0, PART * parts, PART):
            here = slice(k, k + PART)
            x = fk.sample(
                denoiser, self.x[here], plan, seed=self.seed, ids=list(range(k, k + PART)), label=self.label[here]
            )
            found.append(x)
        return torch.cat(found)


def distance(x: Tensor) -> float:
    """The Frechet distance of pixels to the training digits."""
    return Frechet()(x.flatten(1), real()).value


def rmse(a: Tensor, b: Tensor) -> float:
    """The root mean square of the difference on the samples that both have."""
    n = min(len(a), len(b))
    return float((a[:n] - b[:n]).square().mean().sqrt())


def counted(denoiser: Denoiser, plan: fk.Plan) -> int:
    """The multiply-adds of a run of two samples, which do not depend on what they are."""
    bench = Bench(0)
    return macs(partial(fk.sample, denoiser, bench.x[:2], plan, label=bench.label[:2]))


class OutputCache(DeepCache):
    """What a feature cache must not be: the network's output itself is kept."""

    def answer(self, number: int, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.due or number not in self.kept:
            self.kept[number] = call(*args, **kwargs)
        return self.kept[number]
