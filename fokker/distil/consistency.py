"""Latent consistency distillation: a student that says where the teacher's trajectory ends, trained whole or as a LoRA."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.denoiser import Cond, Denoiser, NetworkDenoiser, Wrapper
from fokker.distil.guided import Scaled, guided
from fokker.distil.lesson import Distiller, Lesson, pupil, taught
from fokker.distil.steps import Steps, nodes
from fokker.errors import FokkerError
from fokker.net import lora
from fokker.process import Process, Time, as_time, expand
from fokker.solve import Solver


class Consistent(Wrapper):
    """f(x_t, t) = c_skip x_t + c_out D(x_t, t): exactly x_t at the process's end.

        c_skip = sd^2 / (tau^2 + sd^2),   c_out = tau / sqrt(tau^2 + sd^2),   tau = scaling (t - end)

    Reference: Song et al. 2023, arXiv 2303.01469; Luo et al. 2023, arXiv 2310.04378 (scaling 10 on 1000 steps, sd 1/2).
    """

    def __init__(self, inner: Denoiser, scaling: float = 1e4, sigma_data: float = 0.5) -> None:
        super().__init__(inner)
        self.scaling, self.sigma_data = scaling, sigma_data

    def x0(self, x_t: Tensor, t: Time, **cond: Cond) -> Tensor:
        tau = self.scaling * (as_time(t) - float(self.process.end)).clamp_min(0)
        skip = self.sigma_data**2 / (tau**2 + self.sigma_data**2)
        out = tau / (tau**2 + self.sigma_data**2) ** 0.5
        skip, out = (expand(c, x_t).to(x_t) for c in (skip, out))
        f: Tensor = skip * x_t + out * self.inner(x_t, t, **cond)
        return f


class Pupil(Consistent):
    """A consistent student with the slow copy of it that its targets come from; the copy is part of what is saved."""

    def __init__(self, inner: Denoiser, scaling: float = 1e4, sigma_data: float = 0.5) -> None:
        super().__init__(inner, scaling, sigma_data)
        self.slow = Consistent(copy.deepcopy(inner), scaling, sigma_data)
        self._pairs = [
            (b, a)
            for (a, b) in zip(inner.parameters(), self.slow.inner.parameters(), strict=True)
            if a.requires_grad
        ]
        self.slow.requires_grad_(False)

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """slow <- keep slow + (1 - keep) student."""
        slow, fast = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(list(slow), list(fast), 1 - keep)


@dataclass(frozen=True, eq=False)
class Consistency(Scaled):
    """d(f(x_t, t), f_slow(x_s, s)) with x_s one step of the guided teacher from x_t, over `steps` steps of `grid`.

    d = sqrt(|u - v|^2 + c^2) - c (pseudo-Huber, `huber` c). A step skips over as many of the teacher's own times as there are
    in one of `steps` parts. With `told` the student is given the guidance scale. Reference: Luo et al. 2023, arXiv 2310.04378.
    """

    steps: int = 50
    grid: str = "uniform"
    solver: str | Solver = "ddim"
    huber: float = 1e-3
    keep: float = 0.95
    told: bool = True
    _laid: dict[Process, Steps] = field(default_factory=dict, init=False, repr=False)

    def table(self, process: Process) -> Steps:
        """The teacher's steps."""
        if process not in self._laid:
            t = nodes(self.grid, process, self.steps)
            self._laid[process] = Steps.of(self.solver, process, t[:-1], t[1:])
        return self._laid[process]

    def time(self, process: Process, u: Tensor) -> Tensor:
        """One of the times at which a step starts."""
        t = self.table(process).t
        return t[(u * len(t)).long().clamp_max(len(t) - 1)]

    def loss(self, denoiser: Denoiser, drawn: Mapping[str, Tensor]) -> Tensor:
        """The distance of the two answers of each sample, (B,)."""
        assert isinstance(denoiser, Pupil)
        denoiser.follow(self.keep)
        table, process = self.table(denoiser.process), denoiser.process
        cond: dict[str, Any] = {k: v for k, v in drawn.items() if k not in ("x", "eps", "t", "weight")}
        mine = cond if self.told else {k: v for k, v in cond.items() if k != "guidance"}
        x_t = process.add_noise(drawn["x"], drawn["eps"], drawn["t"])
        i = table.index(drawn["t"])
        with torch.no_grad():
            x_s = table.take(i, x_t, guided(self.teacher, x_t, drawn["t"], cond))
            goal = denoiser.slow(x_s, table.s.to(x_t.device)[i], **mine)
        squares = (denoiser(x_t, drawn["t"], **mine) - goal).square().flatten(1).sum(1)
        out: Tensor = (squares + self.huber**2).sqrt() - self.huber
        return out


@dataclass(frozen=True)
class ConsistencyDistiller(Distiller):
    """A student whose every answer is the end of the guided teacher's trajectory; sampled by the solver "consistency".

    steps   of the teacher between noise and data; one of them is between the two answers that are compared
    scales  the range of guidance scales drawn; `told` gives the student an input for them, else one student stands for all
    rank    of low-rank deltas that are trained in place of the weights (0: the weights); `layers` are patterns of names
    keep    the weight of the past in the slow copy, an update

    `distil` gives the student; `distil_lora` its deltas alone, which add to other deltas of the same network, and to its
    fine-tunes, by `fokker.net.lora.add`. They add well in a network that predicts eps; in one that answers x_0 at the highest
    noise, as with prediction "edm", the acceleration rewrites that answer and much of the other deltas with it.

    Reference: Luo et al. 2023, arXiv 2310.04378 (latent consistency models); Luo et al. 2023, arXiv 2311.05556 (LCM-LoRA).
    """

    steps: int = 50
    grid: str = "uniform"
    solver: str | Solver = "ddim"
    scales: tuple[float, float] | None = None
    told: bool = True
    rank: int = 0
    layers: tuple[str, ...] = ("*",)
    huber: float = 1e-3
    keep: float = 0.95
    scaling: float = 1e4

    def __post_init__(self) -> None:
        if self.steps < 2 or self.rank < 0 or not 0 <= self.keep < 1 or self.huber <= 0:
            raise FokkerError(
                f"steps={self.steps}, rank={self.rank}, keep={self.keep}, huber={self.huber}: steps of at least 2, rank not "
                "negative, keep in [0, 1), huber positive"
            )
        if self.rank and self.scales is not None and self.told:
            raise FokkerError("low-rank deltas add no input for the scale; use told=False with rank")

    def distil(self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson) -> NetworkDenoiser:
        """The student; deltas, where only they are trained, are merged into its weights."""
        if self.rank:
            student = pupil(student)
            lora.add(student.net, (self.distil_lora(teacher, student, source, lesson), 1.0))
            return student.eval()
        student = pupil(student, guidance=self.scales is not None and self.told)
        self._taught(teacher, student, source, lesson)
        return student

    def distil_lora(
        self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson
    ) -> dict[str, Tensor]:
        """The acceleration by itself: low-rank deltas of the student's network, by layer (`fokker.net.lora.save`)."""
        if not self.rank:
            raise FokkerError("rank=0 trains the weights; give the rank of the deltas")
        student = pupil(student)
        deltas = lora.attach(student.net, self.rank, layers=self.layers, seed=lesson.seed)
        self._taught(teacher, student, source, lesson)
        return deltas.state()

    def _taught(self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson) -> None:
        objective = Consistency(
            teacher=teacher, scales=self.scales, steps=self.steps, grid=self.grid, solver=self.solver, huber=self.huber,
            keep=self.keep, told=self.told,
        )  # fmt: skip
        taught(Pupil(student, self.scaling), objective, source, lesson.stage("consistency"))
