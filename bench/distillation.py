"""Students of the zoo's digits at 1, 2 and 4 steps against their teacher at 1 to 32 steps.

    python bench/distillation.py [--kinds progressive,guided] [--start 32] [--samples 19200] [--seed 0]
                                 [--out bench/results/distillation.json] [--picture docs/distillation-digits.png]

The progressive student halves 32 steps to 1 and is judged where it passes 4, 2 and 1; the guided one learns the teacher's two
evaluations of classifier-free guidance first, at every scale of a range. Both as `fokker distil` teaches. Judged on as many
samples as there are digits, with the digits' labels, in their grey levels:

frechet         the Frechet distance of pixels, without guidance to all digits, with guidance to the teacher's at 32 steps
                from other noise; its floor is that of two halves of the reference
class_accuracy  the share that a logistic regression on real digits takes for the class asked for
calls           evaluations of the network for a sample
seconds         processor time of training on one thread, all rounds up to this one

A kind that the file holds already is measured anew, another stays.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fokker as fk
from fokker.checks import provenance
from fokker.data import open as open_data
from fokker.demo.figures import ink
from fokker.demo.sampling import to_levels
from fokker.denoiser import Denoiser, NetworkDenoiser
from fokker.distil import Lesson
from fokker.distil.guided import GuidedDistiller
from fokker.distil.progressive import ProgressiveDistiller
from fokker.measure import ClassAccuracy, Frechet
from fokker.train import Average, Rate

STUDENTS = (4, 2, 1)
TEACHERS = {"ddim": (1, 2, 4, 8, 16, 32), "dpmpp-2m": (4, 8)}
SCALES, SCALE = (1.0, 3.0), 2.0
Taught = dict[int, tuple[NetworkDenoiser, float]]


def lesson(samples: int, batch: int, peak: float, seed: int) -> Lesson:
    """What `fokker distil` makes of the same options."""
    rate = Rate(peak=peak, kind="linear", warmup=min(samples // 10, 5_000))
    return Lesson(samples, batch, rate, average=Average(width=0.05), seed=seed, conditions=("label",), cpu=True)


def students(guided: bool, plan: Lesson, start: int) -> Taught:
    """The student after each round that is judged, and the processor time until then."""
    teacher: NetworkDenoiser = fk.load("digits").denoiser
    source, begin = open_data("toy:digits"), time.process_time()
    scales = SCALES if guided else None
    if scales:
        teacher = GuidedDistiller(scales, times="lognormal").distil(teacher, teacher, source, plan)
    rounds = ProgressiveDistiller(start, min(STUDENTS), grid="karras", scales=scales)
    found: Taught = {}
    for steps, student in rounds.each(teacher, teacher, source, plan):
        if steps in STUDENTS:
            found[steps] = student, time.process_time() - begin
    return found


def drawn(denoiser: Denoiser, steps: int, label: Tensor, seed: int, solver: str = "ddim", **cond: Tensor) -> Tensor:
    """One sample a label, in the data's grey levels."""
    start = denoiser.process.start(fk.noise((len(label), 1, 8, 8), seed=seed))
    options: dict[str, Any] = {"end": 0} if solver != "ddim" else {}
    parts = []
    for rows in torch.arange(len(label)).split(512):
        here = {"label": label[rows], **{k: v[rows] for k, v in cond.items()}}
        parts.append(fk.sample(denoiser, start[rows], solver=solver, grid="karras", steps=steps, **options, **here))
    return to_levels(torch.cat(parts))


def rows(guided: bool, taught: Taught, seed: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """What was measured of each teacher and student, and its samples."""
    digits = open_data("toy:digits", split="all").all()
    label = digits["label"]
    plain: Denoiser = fk.load("digits").denoiser
    teacher = fk.guide.CFG(plain, SCALE) if guided else plain
    told = {"guidance": torch.full((len(label),), SCALE)} if guided else {}
    truth = drawn(teacher, 32, label, seed + 2) if guided else digits["x"]
    who: list[tuple[str, str, int, Denoiser, float, dict[str, Tensor]]] = []
    for solver, counts in TEACHERS.items():
        who += [("teacher", solver, steps, teacher, 0.0, {}) for steps in counts]
    who += [("student", "ddim", steps, student, seconds, told) for steps, (student, seconds) in taught.items()]
    for name, solver, steps, denoiser, seconds, cond in who:
        x = drawn(denoiser, steps, label, seed + 1, solver, **cond)
        distance, accuracy = Frechet(splits=16)(x, truth), ClassAccuracy()(x, label)
        row: dict[str, Any] = {
            "who": name,
            "solver": solver,
            "steps": steps,
            "calls": steps * (2 if guided and name == "teacher" else 1),
            "frechet": round(distance.value, 4),
            "frechet_error": round(distance.error or 0.0, 4),
            "frechet_floor": round(distance.floor or 0.0, 4),
            "class_accuracy": round(accuracy.value, 4),
        }
        if name == "student":
            row["seconds"] = round(seconds, 1)
        print(row, flush=True)
        yield row, x


def picture(found: dict[tuple[str, str, int], Tensor], path: Path) -> None:
    """The same noise by the teacher at 32, 4 and 1 steps and by the students, two of each class."""
    from fokker import pictures

    label = open_data("toy:digits", split="all").all()["label"]
    chosen = torch.cat([(label == k).nonzero()[:2, 0] for k in range(10)])
    shown = [*(("teacher", steps) for steps in (32, 4, 1)), *(("student", steps) for steps in STUDENTS)]
    grid = pictures.image_grid(
        torch.cat([ink(found[name, "ddim", steps][chosen]) for name, steps in shown]),
        ncol=len(chosen),
        rows=[f"{name}, {k} step{'s' * (k > 1)}" for name, k in shown],
        heading="The same noise by the teacher and by its students",
        scale=4,
    )
    pictures.save(grid, path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=19_200)
    parser.add_argument("--start", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="progressive,guided")
    parser.add_argument("--out", type=Path, default=Path("bench/results/distillation.json"))
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = {"samples": given.samples, "batch": given.batch, "peak": given.peak, "seed": given.seed}
    about |= {"start": given.start, "scales": SCALES, "scale": SCALE}
    for kind in given.kinds.split(","):
        plan = lesson(given.samples, given.batch, given.peak, given.seed)
        taught = students(kind == "guided", plan, given.start)
        done = list(rows(kind == "guided", taught, given.seed))
        result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
        result[kind] = {"settings": about, **provenance(), "rows": [row for row, _ in done]}
        given.out.write_text(json.dumps(result, indent=1) + "\n")
        if given.picture and kind == "progressive":
            picture({(row["who"], row["solver"], row["steps"]): x for row, x in done}, given.picture)


if __name__ == "__main__":
    main()
