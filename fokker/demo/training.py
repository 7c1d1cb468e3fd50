"""Training, watched: the loss on both sides of the split, and the same noise drawn again and again as the model grows."""

import json
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from shutil import rmtree

import torch
from torch import Tensor

from fokker.data.source import Source
from fokker.demo.budget import Budget
from fokker.demo.sampling import draw
from fokker.model import Model
from fokker.train.config import Recipe, load_recipe
from fokker.train.objective import Key
from fokker.train.recipe import train
from fokker.train.trainer import Every, Trainer

FOLDER = "training"


@dataclass(frozen=True)
class Training:
    """What training left: the model, the loss on training and on held-out digits, and samples of the same noise over time."""

    model: Model
    recipe: Recipe
    loss: list[tuple[int, float]]
    held_out: list[tuple[int, float]]
    strips: list[tuple[int, Tensor]]


def recipe_of(out: Path, budget: Budget, seed: int) -> Recipe:
    """The zoo's recipe for digits, in this folder and with this seed."""
    with as_file(files("fokker") / "zoo" / "digits.yaml") as path:
        recipe = load_recipe(path)
    samples = budget.samples or recipe.samples
    # a fifth of the run is the longest warm-up that leaves something to warm up for
    rate = replace(recipe.rate, warmup=min(recipe.rate.warmup, samples // 5))
    return replace(recipe, out=str(out / FOLDER), samples=samples, seed=seed, rate=rate)


def run(out: Path, budget: Budget, seed: int, held_out: Source) -> Training:
    """Train by the zoo's recipe; an interrupted run goes on where it was, a finished one begins anew."""
    recipe = recipe_of(out, budget, seed)
    rows = torch.arange(len(held_out))
    batch = held_out.batch(rows)
    losses: dict[int, float] = {}
    strips: dict[int, Tensor] = {}

    marks = moments(recipe.samples, recipe.batch, budget.snapshots)

    def look(trainer: Trainer) -> None:
        seen = trainer.state.samples
        if seen not in marks:
            return
        with trainer.ema.swapped(), torch.no_grad():
            losses[seen] = held_out_loss(trainer, batch, rows)
            strips[seen] = draw(trainer.denoiser, torch.arange(10), seed=1, nfe=budget.evaluations)

    model = train(recipe, [Every(recipe.batch, look)])
    lines = (Path(recipe.out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    loss = [(line["samples"], line["loss"]) for line in map(json.loads, lines)]
    return Training(model, recipe, loss, sorted(losses.items()), sorted(strips.items()))


def moments(samples: int, batch: int, n: int) -> set[int]:
    """n numbers of samples seen, the last one `samples`, each about the same multiple of the one before."""
    wanted = (samples * 150 ** (i / max(1, n - 1) - 1) for i in range(n))
    return {-(-round(seen) // batch) * batch for seen in wanted}


def held_out_loss(trainer: Trainer, batch: dict[str, Tensor], rows: Tensor) -> float:
    """The training objective on digits that the model never sees, on the same noise at every look."""
    drawn = trainer.objective.draw(trainer.denoiser, batch, Key(1, 0, len(rows), rows))
    return float(trainer.objective.loss(trainer.denoiser, drawn).mean())


def finish(training: Training) -> None:
    """Remove the checkpoints of a finished run: the next one begins anew."""
    rmtree(Path(training.recipe.out) / "checkpoints", ignore_errors=True)
    (Path(training.recipe.out) / "model.safetensors").unlink(missing_ok=True)
