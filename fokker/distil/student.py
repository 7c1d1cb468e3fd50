"""From a model to its student: a model again, in one file, that says how it was taught and how to sample it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fokker.codec import Identity
from fokker.data.source import Condition, Source
from fokker.denoiser import Denoiser
from fokker.distil.consistency import ConsistencyDistiller
from fokker.distil.guided import GuidedDistiller
from fokker.distil.lesson import Distiller, Lesson
from fokker.distil.progressive import ProgressiveDistiller
from fokker.errors import FokkerError, unknown
from fokker.latent.encoded import Encoded
from fokker.model import Model

Chain = Sequence[ProgressiveDistiller | GuidedDistiller | ConsistencyDistiller]


def student_of(model: Model, chain: Chain, source: Source, lesson: Lesson) -> Model:
    """The model after one distiller, or several of which each teaches from what the one before it made.

    Data are encoded by the model's codec. A student that is told the guidance scale has a condition `guidance`. The card says
    under `distilled` what was done and how to sample. Raises FokkerError where the data lack a condition of the model.
    """
    if not chain:
        raise FokkerError("chain is empty; give at least one distiller")
    for name in model.conditions:
        if name not in source.conditions:
            raise unknown("condition of the data", name, source.conditions)
    if tuple(source.shape) != tuple(model.shape):
        raise FokkerError(f"the data are of shape {tuple(source.shape)} and the model's of {tuple(model.shape)}; give its own")
    lesson = replace(lesson, conditions=tuple(model.conditions))
    source = source if isinstance(model.codec, Identity) else Encoded(source, model.codec).in_memory()
    teacher: Denoiser = model.denoiser
    student = model.denoiser
    for distiller in chain:
        student = distiller.distil(teacher, student, source, lesson)
        teacher = student
    conditions = dict(model.conditions)
    if "guidance" in (student.conditions or ()):
        conditions["guidance"] = Condition((), False)
    card = {**model.card, "distilled": [_said(distiller) for distiller in chain]}
    return Model(student, model.shape, model.bounds, conditions, model.codec, card)


def _said(distiller: Distiller) -> dict[str, Any]:
    options = {k: v if isinstance(v, int | float | str | tuple | None) else str(v) for k, v in vars(distiller).items()}
    return {"distiller": type(distiller).__name__, **options}
