"""Training losses. The denoising loss is a weight on the x_0 error, a function of the log-SNR, defined here and only here.

THE CONTRACT of an objective: `draw` does everything random, on the CPU, as a pure function of the batch and its `Key`;
`loss` does everything differentiable, on the device, and returns one number a sample. A sample's draws depend on the seed
and on its position in the training stream, never on the batch's split over processes or on what was drawn before.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.denoiser import Denoiser
from fokker.errors import FokkerError, unknown
from fokker.keyed import uniform
from fokker.process import Process, expand

Tensors = dict[str, Tensor]
_NOISE, _UNIFORM, _EACH = range(3)


@dataclass(frozen=True)
class Key:
    """Which samples these are: `rows` (B,) of the batch of `batch` samples that begins at position `first` of the stream.

    Position p is the p-th sample that the run sees, counted over all processes.
    """

    seed: int
    first: int
    batch: int
    rows: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))

    def uniforms(self) -> tuple[Tensor, Tensor]:
        """(own, shared): three uniform numbers a sample, float64 (B, 3), and one for the batch, equal on every process."""
        # one call of the generator for all: the batch's number is the fourth of its first position
        rows = torch.cat([self.rows, torch.zeros(1, dtype=torch.int64)])
        ids, index = self._names(self.first + rows, _UNIFORM)
        u = uniform((len(ids), 4), self.seed, ids, "train", index)
        return u[:-1, :3], u[-1, 3]

    def names(self) -> tuple[Tensor, Tensor]:
        """(ids, index) under which `fokker.keyed` draws the noise of these samples."""
        return self._names(self.first + self.rows, _NOISE)

    def each(self, n: int) -> Tensor:
        """n more uniform numbers a sample, float64 (B, n)."""
        ids, index = self._names(self.first + self.rows, _EACH)
        return uniform((len(ids), n), self.seed, ids, "train", index)

    def _names(self, position: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        # ids have 32 bits; streams longer than that go on in the index
        return position & 0xFFFFFFFF, draw | (position >> 32) << 4


class Objective(ABC):
    """A training loss, split into what is random and what is differentiable."""

    @abstractmethod
    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """Everything that the loss needs, from a batch {"x": (B, ...), conditions...}: tensors with a leading B."""

    @abstractmethod
    def loss(self, denoiser: Denoiser, drawn: Tensors) -> Tensor:
        """The loss of each sample, float32 (B,)."""


# --- weights: w(logsnr) on the squared x_0 error -----------------------------------------------------------------------


def _edm(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return torch.exp(logsnr) + sd**-2


def _eps(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return torch.exp(logsnr)


def _v(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return 1 + torch.exp(logsnr)


def _flow(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return (1 + torch.exp(logsnr / 2)) ** 2


def _min_snr(logsnr: Tensor, sd: float, gamma: float) -> Tensor:
    return torch.exp(logsnr).clamp_max(gamma)


def _snr_gamma(logsnr: Tensor, sd: float, gamma: float) -> Tensor:
    return torch.exp(gamma * logsnr) * torch.sigmoid(-logsnr) * (torch.exp(logsnr) + sd**-2)


def _truncated_snr(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return torch.exp(logsnr).clamp_min(1.0)


def _sigmoid(logsnr: Tensor, sd: float, bias: float) -> Tensor:
    # snr sigmoid(bias - logsnr), in the form that does not overflow
    return math.exp(bias) * torch.sigmoid(logsnr - bias)


def _x0(logsnr: Tensor, sd: float, _: float) -> Tensor:
    return torch.ones_like(logsnr)


WEIGHTS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "edm": _edm,  # 1 / c_out^2: every noise level starts with the same loss
    "eps": _eps,  # uniform on the noise error (Ho et al. 2020)
    "v": _v,  # uniform on the v error of a variance-preserving process
    "flow": _flow,  # uniform on the velocity error of the straight path
    "min-snr": _min_snr,  # min(snr, gamma)
    "snr-gamma": _snr_gamma,  # edm times snr^gamma / (1 + snr): little where there is little noise, and a code adds nothing
    "truncated-snr": _truncated_snr,  # max(snr, 1): the noisiest levels count too (Salimans & Ho 2022)
    "sigmoid": _sigmoid,  # its smooth relative, snr sigmoid(bias - logsnr)
    "x0": _x0,
}

_DEFAULTS = {"min-snr": 5.0, "snr-gamma": 0.1, "sigmoid": 2.0}


def weight(name: str, logsnr: Tensor, sigma_data: float = 1.0, parameter: float | None = None) -> Tensor:
    """w(logsnr), the weight on |x_0 - D|^2; `parameter` is gamma of "min-snr" (5) and "snr-gamma" (0.1), bias of "sigmoid" (2).

    edm snr + 1/sd^2 · eps snr · v 1 + snr · flow (1 + sqrt(snr))^2 · min-snr min(snr, gamma) · truncated-snr max(snr, 1) ·
    snr-gamma (snr + 1/sd^2) snr^gamma / (1 + snr) · sigmoid snr s(bias - logsnr) · x0 1. Raises FokkerError for another name.

    Reference: Hang et al. 2023, arXiv 2303.09556 (min-snr); Salimans & Ho 2022, arXiv 2202.00512 (truncated-snr); Kingma &
    Gao 2023, arXiv 2303.00848 (weights in log-SNR, sigmoid); Karras et al. 2022, arXiv 2206.00364 (edm); Zhang, Zhao, Lin 2022,
    arXiv 2212.12990 (snr-gamma).
    """
    if name not in WEIGHTS:
        raise unknown("weight", name, WEIGHTS)
    default = _DEFAULTS.get(name, 0.0)
    return WEIGHTS[name](logsnr.to(torch.float64), sigma_data, default if parameter is None else parameter)


# --- times: the log-SNR or time at a quantile u ------------------------------------------------------------------------

TIMES = ("lognormal", "uniform", "logsnr", "cosine", "logit-normal")
_LOCATED = ("lognormal", "logit-normal")


def _normal_quantile(u: Tensor) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


@dataclass(frozen=True)
class Denoising(Objective):
    """loss = w(logsnr(t)) mean |x_0 - D(x_t, t)|^2 with x_t = alpha x_0 + beta y + sigma eps: the one denoising loss.

    weight      a name of `WEIGHTS`; `gamma` goes with "min-snr" (5) and "snr-gamma" (0.1), `bias` with "sigmoid" (2)
    times       lognormal     ln(sigma / alpha) normal with `mean` (-1.2) and `std` (1.2), as in EDM
                uniform       t uniform
                logsnr        log-SNR uniform over the process's range
                cosine        log-SNR of a cosine schedule, -2 ln tan(pi u / 2)
                logit-normal  t = sigmoid(normal with `mean` (0) and `std` (1))
                all within [process.end, 1]
    stratified  the batch's quantiles are u + i / batch: one in each part, whatever the number of processes
    drop        the share of samples trained without their conditions (for classifier-free guidance)
    drop_each   the share of samples that lose a condition, each by itself: for conditions that will be given in part
    resolution  divides alpha / sigma in `times` by this factor: the shift that keeps the noise of large images comparable

    Conditions are every tensor of the batch but x; y of an anchored process is never dropped.

    Reference: Karras et al. 2022, arXiv 2206.00364; Kingma et al. 2021, arXiv 2107.00630 (stratified times); Ho & Salimans
    2022, arXiv 2207.12598 (dropping); Esser et al. 2024, arXiv 2403.03206 (logit-normal); Hoogeboom et al. 2023,
    arXiv 2301.11093 (resolution).
    """

    weight: str = "edm"
    times: str = "lognormal"
    mean: float | None = None
    std: float | None = None
    gamma: float | None = None
    bias: float | None = None
    stratified: bool = True
    drop: float = 0.0
    drop_each: float = 0.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise unknown("weight", self.weight, WEIGHTS)
        if self.times not in TIMES:
            raise unknown("distribution of times", self.times, TIMES)
        for option, value, owner, given in (
            ("gamma", self.gamma, "weight=min-snr or snr-gamma", self.weight in ("min-snr", "snr-gamma")),
            ("bias", self.bias, "weight=sigmoid", self.weight == "sigmoid"),
            ("mean", self.mean, "times=lognormal or logit-normal", self.times in _LOCATED),
            ("std", self.std, "times=lognormal or logit-normal", self.times in _LOCATED),
        ):
            if value is not None and not given:
                raise FokkerError(f"{option}={value} has no effect without {owner}; set that or leave {option} out")
        for option, share in (("drop", self.drop), ("drop_each", self.drop_each)):
            if not 0 <= share < 1:
                raise FokkerError(f"{option}={share} is not accepted; give a share of the samples, in [0, 1)")
        if self.resolution <= 0 or (self.std is not None and self.std <= 0):
            raise FokkerError(f"resolution={self.resolution}, std={self.std}; both must be positive")

    def time(self, process: Process, u: Tensor) -> Tensor:
        """The time at quantile u of the chosen distribution, float64, within [process.end, 1]."""
        end = float(process.end)
        located = _LOCATED.index(self.times) if self.times in _LOCATED else 0
        mean = self.mean if self.mean is not None else (-1.2, 0.0)[located]
        std = self.std if self.std is not None else (1.2, 1.0)[located]
        shift = 2 * math.log(self.resolution)
        if self.times in ("uniform", "logit-normal"):
            t = end + (1 - end) * u if self.times == "uniform" else torch.sigmoid(mean + std * _normal_quantile(u))
            return (process.time(process.logsnr(t) - shift) if shift else t).clamp(end, 1)
        if self.times == "lognormal":
            logsnr = -2 * (mean + std * _normal_quantile(u))
        elif self.times == "cosine":
            logsnr = -2 * torch.log(torch.tan(math.pi / 2 * u))
        else:
            bounds = process.logsnr(torch.tensor([1.0, end], dtype=torch.float64)).clamp(-20, 20)
            logsnr = bounds[1] + (bounds[0] - bounds[1]) * u
        return process.time(logsnr - shift).clamp(end, 1)

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """x_0, eps, t, weight and the conditions, some of them dropped; float32, on `device`."""
        process = denoiser.process
        own, shared = key.uniforms()
        u = (shared + key.rows.to(torch.float64) / key.batch) % 1.0 if self.stratified else own[:, 0]
        # a quantile of exactly 0 has no finite normal
        t = self.time(process, u.clamp(1e-12, 1 - 1e-12))
        x_0 = batch["x"]
        ids, index = key.names()
        where = {"stream": "train", "index": index.to(device), "dtype": x_0.dtype, "device": device}
        eps = process.sample_noise(tuple(x_0.shape), key.seed, ids.to(device), **where)
        conditions = {k: v for k, v in batch.items() if k != "x"}
        if self.drop or self.drop_each:
            kept = {k: v for k, v in conditions.items() if k != "y"}
            lost = (own[:, 1:2] < self.drop) | (key.each(len(kept)) < self.drop_each)
            conditions |= {
                k: torch.where(expand(lost[:, list(kept).index(k)], kept[k]), gone, kept[k])
                for k, gone in denoiser.null(**kept).items()
            }
        sd = float(getattr(denoiser, "sigma_data", 1.0))
        parameter = self.bias if self.weight == "sigmoid" else self.gamma
        w = weight(self.weight, process.logsnr(t), sd, parameter)
        drawn = {"x": x_0, "eps": eps, "t": t, "weight": w.to(torch.float32)}
        clash = sorted(drawn.keys() & conditions.keys())
        if clash:
            raise FokkerError(f"a condition may not be called {clash[0]!r}; rename it in the data set")
        return {k: v.to(device, non_blocking=True) for k, v in (drawn | conditions).items()}

    def loss(self, denoiser: Denoiser, drawn: Mapping[str, Tensor]) -> Tensor:
        """w mean |target - D(x_t, t)|^2 of each sample, (B,)."""
        cond: dict[str, Any] = {k: v for k, v in drawn.items() if k not in ("x", "eps", "t", "weight")}
        x_t = denoiser.process.add_noise(drawn["x"], drawn["eps"], drawn["t"], cond.get("y"))
        error = denoiser(x_t, drawn["t"], **cond) - self.target(x_t, drawn, cond)
        loss: Tensor = drawn["weight"] * error.square().flatten(1).mean(1)
        return loss

    def target(self, x_t: Tensor, drawn: Mapping[str, Tensor], cond: dict[str, Any]) -> Tensor:
        """What the belief at x_t is drawn to: x_0; a teacher's answer where a subclass has one."""
        return drawn["x"]
