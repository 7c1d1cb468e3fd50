"""Speech enhancement: from a noisy recording back to speech, along a process that is anchored on the recording.

The prior is a law of short frames. Given the recording, whose noise is white, the denoiser that knows both the recording and
the state of the run is exact, since two noisy looks at the same x_0 are one look of less noise. A network trained on pairs
takes its place where there is one: it sees x_t and y as well.
"""

import math

import torch
from torch import Tensor

from fokker.anchored import OUVE
from fokker.denoiser import Cond, Denoiser
from fokker.errors import FokkerError
from fokker.grids import Times
from fokker.keyed import noise
from fokker.laws import GaussianMixture
from fokker.loop import sample
from fokker.process import EDM, Process, Time, as_time
from fokker.solve import Solver
from fokker.solve.corrector import PredictorCorrector

FRAME = 64
CHUNK = 4096  # frames asked about at once


class Noted(Denoiser):
    """E[x_0 | x_t, y] of a law on an anchored process, where y = x_0 + noise_std n is the anchor itself.

    Two looks, (x_t - beta y) / alpha with deviation sigma / alpha and y with `noise_std`, are one: their mean weighted by
    precision p = alpha^2 / sigma^2 + 1 / noise_std^2, with deviation p^(-1/2). States are (batch, dim).
    Raises FokkerError for a deviation that is not positive.
    """

    stackable = False

    def __init__(self, law: GaussianMixture, process: Process, noise_std: float) -> None:
        super().__init__(process)
        if not noise_std > 0:
            raise FokkerError(f"noise_std={noise_std} is not accepted; give the noise's standard deviation, above 0")
        self.noise_std, self._plain = float(noise_std), EDM()
        self.law = law.denoiser(self._plain)

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("y",)

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        t, y = as_time(t), self.process.anchor(cond.get("y"))
        alpha, beta, sigma = (f(t) for f in (self.process.alpha, self.process.beta, self.process.sigma))
        look, anchor = alpha / sigma**2, 1 / self.noise_std**2
        precision = alpha * look + anchor
        given: Tensor = (look * (x_t - beta * y) + anchor * y) / precision
        found: Tensor = self.law(given, precision**-0.5 / self._plain.sigma(1.0))
        return found


def frames_law(recordings: Tensor, components: int = 24, rank: int = 16, most: int = 8192, seed: int = 0) -> GaussianMixture:
    """A law of frames of `FRAME` samples, fitted to clean recordings (n, 1, samples): `components` of rank `rank`.

    At most `most` frames, evenly spaced, are used. Silence is part of speech and stays.
    """
    frames = recordings[:, 0].to(torch.float64).unfold(1, FRAME, FRAME // 2).reshape(-1, FRAME)
    if len(frames) < 2 * components:
        raise FokkerError(f"{len(frames)} frames for {components} components; give longer recordings of clean speech")
    return GaussianMixture.fit(frames[:: max(1, math.ceil(len(frames) / most))], components, rank, seed=seed)


def noise_floor(noisy: Tensor) -> float:
    """The deviation of white noise under a recording (..., samples): a low quantile of what short frames hold."""
    frames = noisy.to(torch.float64).reshape(-1, noisy.shape[-1]).unfold(1, FRAME, FRAME // 2)
    # differences of the second kind leave white noise (times 6) and little of speech
    rough = (frames[..., 2:] - 2 * frames[..., 1:-1] + frames[..., :-2]).square().mean(-1) / 6
    return float(rough.sqrt().flatten().quantile(0.2))


def enhance(
    noisy: Tensor,
    prior: GaussianMixture,
    noise_std: float | None = None,
    steps: int = 30,
    solver: Solver | None = None,
    process: Process | None = None,
    seed: int = 0,
) -> Tensor:
    """Clean speech for noisy recordings (batch, 1, samples): frames of the posterior, overlapped and added.

    `solver` on `steps` uniform times from t = 1 to the process's end and one last belief; by default the paper's, a reverse
    diffusion predictor with one annealed Langevin correction (r = 0.5), on `OUVE`. It starts at y + sigma(1) z, which misses
    the true marginal by alpha(1) (x_0 - y). Recordings are scaled by their largest magnitude, the prior with them.

    Reference: Richter et al. 2023, arXiv 2208.05830 (SGMSE+).
    """
    if noisy.ndim != 3 or noisy.shape[1] != 1 or noisy.shape[2] < FRAME:
        raise FokkerError(f"a recording of shape {tuple(noisy.shape)}; give (batch, 1, samples) of at least {FRAME} samples")
    process = process or OUVE()
    solver = solver or PredictorCorrector(predictor="reverse-diffusion", snr=0.5)
    times = torch.linspace(1, process.end, steps, dtype=torch.float64).tolist()
    plan = solver.plan(process, Times([*times, 0.0]))
    out = []
    for k, wave in enumerate(noisy[:, 0].to(torch.float64)):
        size = float(wave.abs().max().clamp_min(1e-12))
        y = _cut(wave / size)
        scaled = prior.affine(1 / size)
        denoiser = Noted(scaled, process, (noise_std or noise_floor(wave)) / size)
        ids = torch.arange(len(y)) + k * 1_000_000
        x1 = y + process.sigma(1.0) * noise((len(y), FRAME), seed, ids, dtype=torch.float64)
        parts = [slice(i, i + CHUNK) for i in range(0, len(y), CHUNK)]
        frames = [sample(denoiser, x1[p], plan, y=y[p], seed=seed, ids=ids[p]) for p in parts]
        out.append(size * _add(torch.cat(frames), len(wave)))
    return torch.stack(out)[:, None].to(noisy.dtype)


def _cut(wave: Tensor) -> Tensor:
    """Half-overlapping frames (n, FRAME) of a recording, silence around it."""
    hop = FRAME // 2
    return torch.nn.functional.pad(wave, (hop, hop + -len(wave) % hop)).unfold(0, FRAME, hop)


def _add(frames: Tensor, samples: int) -> Tensor:
    """The recording whose frames these are, each faded in and out by a partition of unity."""
    hop = FRAME // 2
    window = torch.sin(math.pi * (torch.arange(FRAME, dtype=torch.float64) + 0.5) / FRAME) ** 2
    halves = (frames * window).unflatten(1, (2, hop))
    whole = torch.zeros((len(frames) + 1), hop, dtype=torch.float64)
    whole[:-1] += halves[:, 0]
    whole[1:] += halves[:, 1]
    return whole.flatten()[hop : hop + samples]
