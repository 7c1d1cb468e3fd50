"""Training of a diffusion autoencoder by the ordinary trainer, and linear directions in its codes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.latent.autoencoder import DiffusionAutoencoder
from fokker.latent.encoded import Encoded
from fokker.process import Time
from fokker.train import Average, Denoising, Objective, Rate, Trainer


class Learning(Denoiser):
    """The diffusion autoencoder as a denoiser whose condition `data` is the item itself: D(x_t, t, encoder(data)).

    `data` of zeros is no item, and no code. What is frozen, the inner codec and a model behind a gradient estimator, has no
    part in the gradients.
    """

    def __init__(self, auto: DiffusionAutoencoder) -> None:
        super().__init__(auto.denoiser.process)
        self.auto = auto
        self.sigma_data = auto.denoiser.sigma_data

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        data: Tensor = cond.pop("data")
        real = (data != 0).flatten(1).any(1)
        x_0: Tensor = self.auto.denoiser(x_t, t, code=self.auto.encoder(data) * real[:, None], **cond)
        return x_0

    def null(self, **cond: Cond) -> dict[str, Cond]:
        rest = {k: v for k, v in cond.items() if k != "data"}
        return {**self.auto.denoiser.null(**rest), **{k: torch.zeros_like(v) for k, v in cond.items() if k == "data"}}


def learn(
    auto: DiffusionAutoencoder,
    source: Source,
    samples: int,
    batch: int = 64,
    objective: Objective | None = None,
    rate: Rate | None = None,
    average: Average | None = None,
    out: str | Path | None = None,
    in_memory: bool = True,
    seed: int = 0,
    cpu: bool = False,
    quiet: bool = False,
) -> DiffusionAutoencoder:
    """Train encoder and denoiser (of a gradient estimator: its branch) on a source, keep the average, measure the codes.

    The objective is Denoising(weight="snr-gamma", times="uniform") unless given: the paper's weight SNR^0.1 / (1 + SNR) on the
    error of what the branch itself puts out, there a score, here the preconditioned shift of a belief. With `in_memory` items
    are encoded by the inner codec once; with `out` the run has checkpoints and resumes. The encoder begins with codes of unit
    variance over the data, whatever it knew before. Returns `auto`.
    """
    pairs = Encoded(source, auto.inner, beside="data")
    denoiser = Learning(auto)
    n = len(source)
    few = source.batch(torch.arange(min(n, 256)) * n // min(n, 256))["x"]
    auto.encoder.spread(few.to(auto.mean.device))
    trainer = Trainer(
        denoiser,
        pairs.in_memory() if in_memory else pairs,
        objective or Denoising(weight="snr-gamma", times="uniform"),
        samples,
        batch,
        rate or Rate(peak=1e-3, warmup=min(10_000, samples // 10)),
        average=average,
        seed=seed,
        conditions=("data",),
        out=out,
        cpu=cpu,
        quiet=quiet,
    )
    trainer.run()
    denoiser.load_state_dict(trainer.averaged())
    auto.eval()
    auto.measure(source)
    return auto


@dataclass(frozen=True)
class Direction:
    """A linear probe of codes, target = <weight, x> + bias, and the direction in which the target grows.

    Fit on standardised codes (`DiffusionAutoencoder.encode`), by least squares with penalty `ridge` |weight|^2 a row; for an
    attribute that is there or not give 1 and -1 (its normal is that of Fisher's discriminant).
    """

    weight: Tensor
    bias: float

    @classmethod
    def fit(cls, codes: Tensor, target: Tensor, ridge: float = 1e-3) -> "Direction":
        """From codes (n, code) and a number a row; raises FokkerError where these do not fit or the target does not vary."""
        x, y = codes.detach().double(), target.detach().double()
        if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2 or not float(y.std()) > 0:
            raise FokkerError(
                f"codes {tuple(codes.shape)} and target {tuple(target.shape)}; give (n, code), and n numbers that vary"
            )
        centre, mean = x.mean(0), y.mean()
        gram = (x - centre).T @ (x - centre) / len(x)
        weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), (x - centre).T @ (y - mean) / len(x))
        return cls(weight, float(mean - centre @ weight))

    @property
    def unit(self) -> Tensor:
        """The direction (code,) of length 1, float32."""
        unit: Tensor = self.weight / self.weight.norm()
        return unit.float()

    def __call__(self, codes: Tensor) -> Tensor:
        """The probe's answer, float64 (n,)."""
        return codes.detach().double() @ self.weight + self.bias

    def r2(self, codes: Tensor, target: Tensor) -> float:
        """The share of the target's variance that the probe explains on these rows: 1 - sum (y - f)^2 / sum (y - mean)^2."""
        y = target.detach().double()
        return 1 - float((y - self(codes)).square().sum() / (y - y.mean()).square().sum())

    def step(self, change: float) -> float:
        """How far along `unit` the probe's answer changes by `change`."""
        return change / float(self.weight.norm())
