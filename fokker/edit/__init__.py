"""Editing: a change of a given sample by its conditions, or by directions inside the network.

    edited = fk.edit.edit(model.denoiser, x_0, source, target, rectify="direct")      # two branches, inverted by DDIM
    edited = fk.edit.exact(model.denoiser, x_0, source, target)                       # EDICT or BDIA, exact inversion
    x = fk.edit.infedit(model.denoiser, x_0, source, target)                          # no inversion at all
    shifted = fk.edit.BottleneckShift(model.denoiser, direction, 2.0)                 # h-space

`source` and `target` are conditions by name with a row a sample, as `model.condition(n, ...)` makes them.
"""

from fokker.edit.control import AttentionControl
from fokker.edit.fixedpoint import FixedPoint
from fokker.edit.hspace import BottleneckShift, Directions, HSpace, project_out
from fokker.edit.infedit import infedit
from fokker.edit.inversion import Trajectory, invert
from fokker.edit.nulltext import NullText, PerStepNull
from fokker.edit.paired import Edited, edit, exact, rectified

__all__ = [
    "AttentionControl",
    "BottleneckShift",
    "Directions",
    "Edited",
    "FixedPoint",
    "HSpace",
    "NullText",
    "PerStepNull",
    "Trajectory",
    "edit",
    "exact",
    "infedit",
    "invert",
    "project_out",
    "rectified",
]
