"""Training: a pure function of samples seen.

THE CONTRACT. A `Trainer` takes a denoiser, a source of data and an objective. One counter, the samples seen so far by all
processes together, drives learning rate, average, data order, noise, logging and checkpoints, so that

- 100 updates are 60 + 40 updates to the last bit, on any day, after any crash (`State` is everything that evolves);
- one process and several train alike up to rounding (`batch` counts over all of them);
- nothing needs to be stepped, seeded or remembered by the caller.

An objective (`fokker.train.objective.Objective`) states what is random and what is differentiable; a new one is one class.
`main` is the command: a YAML file in, `model.safetensors` and a folder of evidence out.
"""

from fokker.train.config import Recipe, load_recipe
from fokker.train.ema import EMA, Average
from fokker.train.objective import Denoising, Key, Objective, weight
from fokker.train.optimiser import Optimiser
from fokker.train.rate import Rate
from fokker.train.recipe import main, train
from fokker.train.state import Checkpoints, State
from fokker.train.trainer import Every, Trainer

__all__ = [
    "EMA",
    "Average",
    "Checkpoints",
    "Denoising",
    "Every",
    "Key",
    "Objective",
    "Optimiser",
    "Rate",
    "Recipe",
    "State",
    "Trainer",
    "load_recipe",
    "main",
    "train",
    "weight",
]
