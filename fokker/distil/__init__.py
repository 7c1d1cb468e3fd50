"""THE CONTRACT of a distiller: a teacher, a student and an objective.

A distiller is a frozen dataclass whose fields are its options, with one method

    distil(teacher, student, source, lesson) -> NetworkDenoiser

teacher   any `Denoiser` (an exact law, a network, a wrapped one); it is only asked, never changed
student   a `NetworkDenoiser`, which is not changed either: what comes back is trained from a copy; `pupil` makes one of a
          network and gives it an input for the guidance scale
source    data, as for training
lesson    how long and how fast to train (`Lesson`)

What is learned is an `Objective` of `fokker.train` and what learns is its `Trainer`, so a distiller adds no loop. A student
is a denoiser: it goes with every solver, wrapper and model file. To add one: a class in a file of its own and a record of
kind "distiller".
"""

from typing import Any

from fokker.distil.lesson import Distiller, Lesson, pupil, taught
from fokker.distil.steps import Steps, halves


def __getattr__(name: str) -> Any:
    from fokker.catalogue import public

    return public(name, {"distiller"})


__all__ = ["Distiller", "Lesson", "Steps", "halves", "pupil", "taught"]
