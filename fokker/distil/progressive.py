"""Progressive distillation: a student whose one step lands where several of the teacher's do, again and again."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.distil.guided import Scaled, guided
from fokker.distil.lesson import Distiller, Lesson, pupil, taught
from fokker.distil.steps import Steps, halves
from fokker.errors import FokkerError
from fokker.process import Process
from fokker.solve import Solver


@dataclass(frozen=True, eq=False)
class FewerSteps(Scaled):
    """w |D(x_t, t) - D~|^2, where one step with D~ leads from x_t to where `factor` steps of the teacher lead.

        x'' = teacher's steps from x_t,   x'' = a x_t + b D~   =>   D~ = (x'' - a x_t) / b

    on the `steps` steps of `grid`. With `overlapping` the student's step starts at every one of the teacher's times, for the
    stochastic sampler, which goes back by half of it. Reference: Salimans & Ho 2022, arXiv 2202.00512.
    """

    steps: int = 4
    factor: int = 2
    grid: str = "uniform"
    solver: str | Solver = "ddim"
    overlapping: bool = False
    weight: str = "truncated-snr"
    _laid: dict[Process, tuple[Steps, Steps]] = field(default_factory=dict, init=False, repr=False)

    def tables(self, process: Process) -> tuple[Steps, Steps]:
        """(the student's steps, the teacher's)."""
        if process not in self._laid:
            _, fine = halves(self.grid, process, self.steps, self.factor)
            t, s = fine[: -self.factor], fine[self.factor :]
            if not self.overlapping:
                t, s = t[:: self.factor], s[:: self.factor]
            own = Steps.of(self.solver, process, t, s)
            self._laid[process] = own, Steps.of(self.solver, process, fine[:-1], fine[1:])
        return self._laid[process]

    def time(self, process: Process, u: Tensor) -> Tensor:
        """One of the times at which the student's steps start, all equally often."""
        own, _ = self.tables(process)
        return own.t[(u * len(own.t)).long().clamp_max(len(own.t) - 1)]

    def target(self, x_t: Tensor, drawn: Mapping[str, Tensor], cond: dict[str, Any]) -> Tensor:
        """D~, the belief that leads as far as the teacher gets."""
        own, fine = self.tables(self.teacher.process)
        i, k, x = own.index(drawn["t"]), fine.index(drawn["t"]), x_t
        with torch.no_grad():
            for j in range(self.factor):
                x = fine.take(k + j, x, guided(self.teacher, x, fine.t.to(x.device)[k + j], cond))
        return own.belief(i, x_t, x)


@dataclass(frozen=True)
class ProgressiveDistiller(Distiller):
    """From `start` steps of the teacher to `steps` of the student, by a factor of `factor` each round.

    After each round the student is the next teacher. The student is then sampled with `solver` on `grid` at `steps` steps; at
    another number it is worse. `scales` is the range of guidance scales of a teacher that takes the condition `guidance` (see
    `GuidedDistiller`); `overlapping` trains the last round for the solver "distilled-stochastic". Rounds to 2 steps and to 1
    see `longer` times the lesson's samples, as in the paper: there the student changes most.

    Raises FokkerError where start / steps is not a power of factor, or the grid's coarse times are not among its fine ones.
    Reference: Salimans & Ho 2022, arXiv 2202.00512; Meng et al. 2023, arXiv 2210.03142 (guided).
    """

    start: int = 64
    steps: int = 4
    factor: int = 2
    grid: str = "uniform"
    solver: str | Solver = "ddim"
    weight: str = "truncated-snr"
    scales: tuple[float, float] | None = None
    overlapping: bool = False
    longer: float = 2.0

    def __post_init__(self) -> None:
        if self.factor < 2 or self.steps < 1 or self.start <= self.steps or list(self.rounds())[-1] != self.steps:
            raise FokkerError(
                f"start={self.start}, steps={self.steps}, factor={self.factor}: start must be steps times a power of factor"
            )
        if not self.longer > 0:
            raise FokkerError(f"longer={self.longer} is not accepted; give the share of samples of the last rounds, above 0")

    def rounds(self) -> Iterator[int]:
        """The number of the student's steps in each round."""
        steps = self.start
        while steps > self.steps and steps % self.factor == 0:
            steps //= self.factor
            yield steps
        if steps == self.start:
            yield steps

    def objective(self, teacher: Denoiser, steps: int) -> FewerSteps:
        """The loss of the round that ends with so many steps."""
        last = self.overlapping and steps == self.steps
        return FewerSteps(
            teacher=teacher, scales=self.scales, steps=steps, factor=self.factor, grid=self.grid, solver=self.solver,
            overlapping=last, weight=self.weight,
        )  # fmt: skip

    def each(
        self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson
    ) -> Iterator[tuple[int, NetworkDenoiser]]:
        """(steps, the student of that many steps) after each round."""
        for number, steps in enumerate(self.rounds(), 1):
            student = pupil(student, guidance=self.scales is not None)
            here = lesson.stage(f"steps-{steps}", number)
            if steps <= 2:
                here = replace(here, samples=round(self.longer * here.samples))
            taught(student, self.objective(teacher, steps), source, here)
            yield steps, student
            teacher = student

    def distil(self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson) -> NetworkDenoiser:
        """The student of `steps` steps."""
        return functools.reduce(lambda _, found: found[1], self.each(teacher, student, source, lesson), student)
