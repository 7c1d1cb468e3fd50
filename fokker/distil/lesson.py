"""What all distillers share: a copy of the student, and one stage of its training."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fokker.conditioner import Conditioned
from fokker.data.source import Source
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.errors import FokkerError
from fokker.train.ema import Average
from fokker.train.objective import Objective
from fokker.train.optimiser import Optimiser
from fokker.train.rate import Rate
from fokker.train.trainer import Trainer


@dataclass(frozen=True)
class Lesson:
    """How a stage is trained: `samples` seen in updates of `batch`; the rest as for `Trainer`.

    conditions  of the data that teacher and student are given; `out` gets a folder of checkpoints for each stage
    """

    samples: int = 200_000
    batch: int = 128
    rate: Rate = field(default_factory=lambda: Rate(peak=1e-3, kind="linear", warmup=2_000))
    optimiser: Optimiser = field(default_factory=Optimiser)
    average: Average = field(default_factory=lambda: Average(width=0.05))
    seed: int = 0
    conditions: tuple[str, ...] = ()
    out: Path | None = None
    precision: str = "no"
    cpu: bool = False
    quiet: bool = True

    def stage(self, name: str, number: int = 0) -> "Lesson":
        """The same lesson for a stage: a folder and a seed of its own."""
        return replace(self, out=self.out / name if self.out else None, seed=self.seed + 1_000 * number)


class Distiller(ABC):
    """A teacher and a student under an objective; see the contract in `fokker.distil`."""

    @abstractmethod
    def distil(self, teacher: Denoiser, student: NetworkDenoiser, source: Source, lesson: Lesson) -> NetworkDenoiser:
        """The student, trained; in evaluation mode, with its averaged weights."""


def pupil(denoiser: NetworkDenoiser, guidance: bool = False) -> NetworkDenoiser:
    """A copy to be taught, without dropout; with `guidance` its network is told the scale by a condition `guidance`.

    The new input starts without effect. Raises FokkerError for a network that has no such input.
    """
    if not isinstance(denoiser, NetworkDenoiser):
        raise FokkerError(f"a student is a NetworkDenoiser, not {type(denoiser).__name__}; give one with a network")
    student = copy.deepcopy(denoiser)
    shell = student.net if isinstance(student.net, Conditioned) else None
    net = shell.net if shell is not None else student.net
    new = _rebuilt(net, guidance)
    if shell is not None:
        shell.net = new
    else:
        student.net = new
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return student


def _rebuilt(net: nn.Module, guidance: bool) -> nn.Module:
    from fokker.net import build

    config: Any = getattr(net, "config", None)
    options: Any = getattr(net, "options", None)
    told = "guidance" in (getattr(net, "conditions", None) or ())
    if not isinstance(config, Mapping) and not isinstance(options, Mapping):
        if guidance and not told:
            raise FokkerError(f"{type(net).__name__} has no input for a guidance scale; use a network of fokker.net")
        return net
    if isinstance(config, Mapping):
        still = {"dropout": 0.0} if "dropout" in config else {}
        new: nn.Module = build({**config, **still, **({"guidance": True} if guidance else {})})
    else:
        new = type(net)(**{**options, "guidance": guidance or told})
    new.to(next(net.parameters()).device)
    missing, surplus = new.load_state_dict(net.state_dict(), strict=False)
    if surplus or any(not name.startswith("guidance.") for name in missing):
        raise FokkerError(f"the weights of {type(net).__name__} do not fit its configuration; detach what was added to it")
    return new


def taught(learner: Denoiser, objective: Objective, source: Source, lesson: Lesson) -> None:
    """Train the trainable parameters of `learner` in place; afterwards they are their average, in evaluation mode."""
    # every field of a lesson is an option of Trainer by the same name
    trainer = Trainer(learner, source, objective, **vars(lesson))
    teacher = getattr(objective, "teacher", None)
    if isinstance(teacher, Denoiser):
        teacher.to(trainer.accelerator.device)
    trainer.run()
    learner.load_state_dict(trainer.averaged())
    learner.eval()
