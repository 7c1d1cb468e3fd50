"""Streams of frames: successive frames at successive noise levels in one batch, and frames that need no call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.denoiser import Cond, Denoiser, Run, Wrapper
from fokker.errors import FokkerError, unknown
from fokker.grids import Times, check
from fokker.keyed import noise, uniform
from fokker.loop import run
from fokker.process import Time
from fokker.solve.onestep import DDIM


class StreamBatch:
    """Image-to-image on a stream: n noise levels, one call a frame, each answer n - 1 frames late.

        stream = StreamBatch(denoiser, times=(0.5, 0.3, 0.1), shape=(3, 64, 64))
        for frame in video:
            out = stream.push(frame)          # None while the pipeline fills

    The batch holds the newest frame noised to the first time, the frame before it at the second, and so on; a plan of one
    step, with a time of its own for every slot, asks the denoiser about all of them at once, and each belief is noised to the
    next slot's time with that slot's fixed noise. The last slot's belief leaves the stream. `seed` names the noises,
    `reference` gives each slot's own frame to the denoiser as the condition `reference=` (see ResidualGuidance).

    A belief must not depend on its batch (batch statistics), or the stream differs from denoising frame by frame. The first
    n - 1 outputs after the start, and after `reset`, belong to no frame and are withheld.

    Reference: Kodaira et al. 2023, arXiv 2312.12491.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: Sequence[float],
        shape: Sequence[int],
        seed: int = 0,
        reference: bool = False,
        **cond: Cond,
    ) -> None:
        if denoiser.process.anchored:
            raise FokkerError(
                "StreamBatch needs a plain process; an anchored one has its own way to start from a frame"
            )
        self.times = check(torch.as_tensor(times, dtype=torch.float64).reshape(-1))
        if not len(self.times) or not bool(((self.times > 0) & (self.times <= 1)).all()):
            raise FokkerError(f"times={times} are not accepted; give decreasing times in (0, 1]")
        self.denoiser, self.shape, self.seed, self.reference = denoiser, tuple(shape), seed, reference
        self.noises = noise((len(self.times), *self.shape), seed, dtype=torch.float64)
        self.plan = DDIM().plan(
            denoiser.process, Times(torch.stack([self.times, torch.zeros_like(self.times)]), to_x0=True)
        )
        self.cond, self.nfe = cond, 0.0
        self.reset()

    def reset(self, **cond: Cond) -> None:
        """Empty the pipeline; conditions given here, one per slot, replace those of before."""
        self.cond = cond or self.cond
        self.beliefs = torch.zeros_like(self.noises)
        self.inputs = torch.zeros_like(self.noises)
        self.frames = 0

    def push(self, frame: Tensor) -> Tensor | None:
        """Take a frame of `shape`, give the one that is finished, or None while the pipeline fills."""
        if tuple(frame.shape) != self.shape:
            raise FokkerError(f"a frame of shape {tuple(frame.shape)} for a stream of shape {self.shape}")
        clean = torch.cat([frame[None], self.beliefs.to(frame)[:-1]])
        self.inputs = torch.cat([frame[None], self.inputs.to(frame)[:-1]])
        x = self.denoiser.process.add_noise(clean, self.noises.to(frame), self.times)
        cond = self.cond | ({"reference": self.inputs} if self.reference else {})
        trace = run(self.denoiser, x, self.plan, seed=self.seed, **cond)
        self.nfe += trace.nfe
        self.beliefs = trace.x0
        self.frames += 1
        return self.beliefs[-1] if self.frames >= len(self.times) else None


class ResidualGuidance(Wrapper):
    """Guidance whose negative branch is worked out, not asked: the noise that would explain x_t by a reference image.

        eps = delta eps_ref + scale (eps_c - delta eps_ref),   eps_ref = (x_t - alpha x_ref) / sigma,

    which for the belief is scale D_c + (1 - scale) (delta x_ref + (1 - delta) x_t / alpha).

    scale  1 is off; about 1.2 to 1.5. From 2 on it leaves the data quickly
    delta  weight of the reference, at most 1
    mode   "self": x_ref is the condition `reference=` (batch, ...), no further call; "onetime": x_ref is the unconditional
           belief at the run's first evaluation, one further call a run

    Reference: Kodaira et al. 2023, arXiv 2312.12491 (the equation; the released code differs from it).
    """

    stackable = False

    def __init__(self, inner: Denoiser, scale: float = 1.4, delta: float = 1.0, mode: str = "self") -> None:
        super().__init__(inner)
        if mode not in ("self", "onetime"):
            raise unknown("mode of residual guidance", mode, ["self", "onetime"])
        if not 0 <= delta <= 1:
            raise FokkerError(f"delta={delta} is not accepted; the weight of the reference lies in [0, 1]")
        self.scale, self.delta, self.mode = scale, delta, mode
        self.first: Tensor | None = None

    @property
    def conditions(self) -> tuple[str, ...] | None:
        own = self.inner.conditions
        return own if own is None or self.mode != "self" else (*own, "reference")

    def reset(self, run: Run) -> None:
        self.first = None

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        reference: Tensor | None = cond.pop("reference", None)
        belief: Tensor = self.inner(x_t, t, **cond)
        if self.scale == 1:
            return belief
        if self.mode == "onetime":
            if self.first is None:
                self.first = self.inner(x_t, t, **self.inner.null(**cond))
            reference = self.first
        if reference is None:
            raise FokkerError(
                "residual guidance of mode 'self' needs the input image; give it as reference= (batch, ...)"
            )
        away = self.delta * reference.to(x_t)
        if self.delta != 1:
            away = away + (1 - self.delta) * x_t / self.process.coefficients(t, x_t)[0]
        return self.scale * belief + (1 - self.scale) * away


class SimilarityFilter:
    """Which frames of a stream need no call: those so like the last processed one that its output can be shown again.

    With c the cosine between a frame and the last processed one, a frame is skipped with probability
    max(0, (c - threshold) / (1 - threshold)), but never more than `longest` in a row. Draws are keyed by `seed` and the
    number of the frame. Reference: Kodaira et al. 2023, arXiv 2312.12491.
    """

    def __init__(self, threshold: float = 0.98, longest: int = 10, seed: int = 0) -> None:
        if not threshold < 1:
            raise FokkerError(f"threshold={threshold} is not accepted; give a cosine below 1")
        self.threshold, self.longest, self.seed = threshold, longest, seed
        self.last: Tensor | None = None
        self.frames, self.row = 0, 0

    def skip(self, frame: Tensor) -> bool:
        """Whether this frame may be skipped; a frame that may not becomes the one that later ones are compared with."""
        self.frames += 1
        if self.last is not None and self.row < self.longest:
            cosine = torch.nn.functional.cosine_similarity(frame.flatten(), self.last.flatten(), dim=0)
            chance = (float(cosine) - self.threshold) / (1 - self.threshold)
            if float(uniform((1, 1), self.seed, [self.frames], "step")) < chance:
                self.row += 1
                return True
        self.last, self.row = frame, 0
        return False
