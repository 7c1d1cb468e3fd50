"""The main job on real digits: train, sample, restore, classify, and a report of all of it."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fokker import store
from fokker.cli.terminal import Progress
from fokker.data import toy
from fokker.demo import classifying, figures, numbers, report, restoring, sampling, threads, training
from fokker.demo.budget import FULL, Budget
from fokker.demo.sampling import Show
from fokker.errors import FokkerError
from fokker.measure import logistic_regression

FILES = (
    "report.html",
    "samples.png",
    "solvers.png",
    "restoration.png",
    "training.png",
    "metrics.json",
    "model.safetensors",
)


class Stages:
    """The stages one after another: a line when each begins, a bar while it goes on, its seconds when it ended."""

    def __init__(self, quiet: bool) -> None:
        self.seconds: dict[str, float] = {}
        self.quiet = quiet

    @contextmanager
    def __call__(self, name: str, about: str) -> Iterator[Show]:
        self.say(f"{name}: {about}")
        begun = time.perf_counter()
        with Progress(name) as bar:
            yield lambda done, total: bar.update(done, total)
        self.seconds[name] = time.perf_counter() - begun

    def say(self, sentence: str) -> None:
        """One line to the person at the terminal."""
        if not self.quiet:
            print(sentence, file=sys.stderr, flush=True)


def main(
    out: str | Path = "out/demo", budget: Budget = FULL, seed: int = 0, workers: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Run every stage into the folder `out` (the files of `FILES`) and return what is in metrics.json.

    `workers` is the number of threads, 0 for the fastest. An interrupted run goes on with its training where it was. Raises
    FokkerError where `out` is not a folder.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FokkerError(f"{out} is a file; give a folder to write to")
    out.mkdir(parents=True, exist_ok=True)
    with threads.used(workers):
        return _run(out, budget, seed, quiet)


def _run(out: Path, budget: Budget, seed: int, quiet: bool) -> dict[str, Any]:
    begun = time.perf_counter()
    stage = Stages(quiet)
    train, held_out, everything = (toy("digits", split=split) for split in ("train", "test", "all"))
    judge = logistic_regression(train.x, train.label, "logreg-train")

    with stage("train", f"a class-conditional denoiser on {len(train)} digits; {len(held_out)} are held out"):
        trained = training.run(out, budget, seed, held_out)
    denoiser = trained.model.denoiser
    with stage("sample", f"{10 * budget.each} with guidance, {budget.unguided} without") as show:
        sampled = sampling.sample(denoiser, train, held_out, everything, judge, budget, seed, show)
    with stage("solvers", f"{', '.join(sampling.SOLVERS)} from the same noise at equal cost") as show:
        solved = sampling.solvers(denoiser, judge, budget, seed, show)
    restored = []
    for task in restoring.tasks():
        with stage(f"restore {task.name}", f"{budget.restored} held-out digits, {task.about}") as show:
            restored.append(restoring.restore(denoiser, task, train, held_out, budget, seed, show))
    with stage("classify", f"{budget.classified} held-out digits, by the denoiser's errors") as show:
        classified = classifying.classify(denoiser, held_out, judge, budget.classified, budget.noises, show)
    with stage("report", f"pictures and numbers into {out}"):
        figures.training(trained, out / "training.png")
        figures.samples(sampled, train, out / "samples.png")
        figures.solvers(solved, budget, out / "solvers.png")
        figures.restoration(restored, out / "restoration.png")
    stage.seconds["total"] = time.perf_counter() - begun
    found = numbers.metrics(trained, sampled, solved, restored, classified, stage.seconds, budget, seed)
    trained.model.card = {**trained.model.card, "measured": numbers.card(found)}
    trained.model.save(out / "model.safetensors")
    store.write_text(out / "metrics.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    store.write_text(out / "report.html", report.page(found, classified.confusion, out))
    training.finish(trained)
    for one in found["expectations"]:
        stage.say(
            f"  {'ok    ' if one['met'] else 'MISSED'}  {one['name']}: {one['value']:.3g} ({one['relation']} {one['bar']:.3g})"
        )
    stage.say(f"{out / 'report.html'}: {stage.seconds['total']:.0f} s")
    return found
