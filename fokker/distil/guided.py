"""Guidance distilled into one evaluation: a student that is told the scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.distil.lesson import Distiller, Lesson, pupil, taught
from fokker.errors import FokkerError
from fokker.guide.cfg import CFG
from fokker.train.objective import Denoising, Key, Tensors


@dataclass(frozen=True, eq=False)
class Scaled(Denoising):
    """A denoising loss with a teacher, for which a guidance scale uniform in `scales` is drawn with each sample."""

    times: str = "uniform"
    teacher: Denoiser = None  # type: ignore[assignment]
    scales: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.teacher, Denoiser):
            raise FokkerError(f"teacher={self.teacher!r} is not accepted; give a Denoiser")
        if self.scales is not None and not 0 <= self.scales[0] < self.scales[1]:
            raise FokkerError(f"scales={self.scales} is not accepted; give (low, high) with 0 <= low < high, 1 is none")

    def draw(self, denoiser: Denoiser, batch: Tensors, key: Key, device: torch.device | str = "cpu") -> Tensors:
        """What the denoising loss draws, and `guidance`."""
        drawn = super().draw(denoiser, batch, key, device)
        if self.scales is not None:
            low, high = self.scales
            scale = low + (high - low) * key.each(8)[:, 7]
            drawn["guidance"] = scale.to(device, torch.float32)
        return drawn


@dataclass(frozen=True, eq=False)
class Guided(Scaled):
    """w |D(x_t, t, c, scale) - D_scale|^2 with D_scale = D_null + scale (D_c - D_null) of the teacher."""

    weight: str = "truncated-snr"
    scales: tuple[float, float] | None = (1.0, 5.0)

    def target(self, x_t: Tensor, drawn: Mapping[str, Tensor], cond: dict[str, Any]) -> Tensor:
        """The guided belief of the teacher."""
        return guided(self.teacher, x_t, drawn["t"], cond)


def guided(teacher: Denoiser, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    """The teacher's belief at the scale `guidance` of cond: by itself if it takes that condition, else by two evaluations."""
    given = {k: v for k, v in cond.items() if k != "guidance"}
    with torch.no_grad():
        if "guidance" not in cond or "guidance" in (teacher.conditions or ()):
            belief: Tensor = teacher(x_t, t, **cond)
            return belief
        both: Tensor = CFG(teacher, cond["guidance"])(x_t, t, **given)
        return both


@dataclass(frozen=True)
class GuidedDistiller(Distiller):
    """One network in place of two evaluations, for a whole range of guidance scales; `ProgressiveDistiller` goes on from it.

    The student takes the condition `guidance` (batch,), a scale in `scales` as `CFG` counts it (1 is none; the paper's w is
    scale - 1), and answers what CFG would. Its scale must stay in the range. Reference: Meng et al. 2023, arXiv 2210.03142.
    """

    scales: tuple[float, float] = (1.0, 5.0)
    weight: str = "truncated-snr"
    times: str = "uniform"

    def distil(self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson) -> NetworkDenoiser:
        """A student that is told the scale; it starts from `student`, which may be the teacher itself."""
        student = pupil(student, guidance=True)
        objective = Guided(teacher=teacher, scales=self.scales, weight=self.weight, times=self.times)
        taught(student, objective, source, lesson.stage("guided"))
        return student
