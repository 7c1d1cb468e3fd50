"""The numbers of the demonstration, with what each should reach: metrics.json."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fokker import __version__
from fokker.demo.budget import Budget
from fokker.demo.classifying import Classified
from fokker.demo.restoring import BASELINE, Restored
from fokker.demo.sampling import GRID, SCALE, SOLVER, SOLVERS, Sampled, Solved
from fokker.demo.threads import cores
from fokker.demo.training import Training


@dataclass(frozen=True)
class Expectation:
    """A number, and the bar that was set for it before anything was measured."""

    name: str
    value: float
    relation: str
    bar: float
    about: str

    @property
    def met(self) -> bool:
        """Whether the number reaches its bar."""
        return self.value >= self.bar if self.relation == ">=" else self.value <= self.bar


def expectations(sampled: Sampled, restored: Sequence[Restored], classified: Classified) -> list[Expectation]:
    """What a good model reaches, and whether this one does."""
    v = sampled.values
    frechet, memorised = v["frechet"], v["memorised"]
    out = [
        Expectation(
            "class accuracy", v["class_accuracy"].value, ">=", 0.97, "guided samples that look like their class"
        ),
        Expectation(
            "frechet / floor",
            frechet.over_floor,
            "<=",
            1.0,
            "1: as far from the data as half of the data from the other",
        ),
        Expectation("precision", v["precision"].value, ">=", 0.7, "samples that lie among the digits"),
        Expectation("recall", v["recall"].value, ">=", 0.7, "digits that lie among the samples"),
        Expectation(
            "memorised / held-out share",
            memorised.over_floor,
            "<=",
            1.5,
            "1: as near to training digits as new digits are",
        ),
    ]
    for one in restored:
        gain = one.values["restored"].value - one.values["baseline"].value
        out.append(
            Expectation(f"{one.task.name}: dB over {BASELINE}", gain, ">=", 0.0, f"restored digits, {one.task.about}")
        )
    linear = classified.linear.value
    about = f"held-out digits; a linear classifier reaches {linear:.3f}"
    return [*out, Expectation("classified by the denoiser", classified.accuracy, ">=", linear, about)]


def metrics(
    training: Training,
    sampled: Sampled,
    solved: Solved,
    restored: Sequence[Restored],
    classified: Classified,
    seconds: Mapping[str, float],
    budget: Budget,
    seed: int,
) -> dict[str, Any]:
    """Everything measured as plain JSON: the main numbers by name at the top, with their settings under "values"."""
    v = sampled.values
    frechet, memorised = v["frechet"], v["memorised"]
    calls = budget.calls[len(budget.calls) // 2]
    return {
        "class_accuracy": v["class_accuracy"].value,
        "class_accuracy_real": v["class_accuracy"].floor,
        "frechet": frechet.value,
        "frechet_floor": frechet.floor,
        "frechet_over_floor": frechet.over_floor,
        "frechet_about": {
            "samples": "class-conditional with the labels of the data, guidance off",
            "n": frechet.n,
            "reference": "all digits, training and held-out",
            "features": frechet.features,
            "floor": "two random halves of the digits, averaged over 16 cuts",
            "floor_n": frechet.floor_n,
            "to_held_out": v["frechet_held_out"].value,
            "training_digits_to_held_out": v["frechet_train_held_out"].value,
        },
        "precision": v["precision"].value,
        "recall": v["recall"].value,
        "memorised": memorised.value,
        "memorised_held_out": memorised.floor,
        "memorised_ratio": memorised.over_floor,
        "restoration": {one.task.name: _restoration(one) for one in restored},
        "classification": {
            "accuracy": classified.accuracy,
            "error": classified.error,
            "linear_classifier": classified.linear.value,
            "n": len(classified.label),
            "at_sigma_over_alpha": {f"{ratio:g}": share for ratio, share in classified.at.items()},
        },
        "solvers": {
            "calls": calls,
            "guidance": SCALE,
            "at_equal_calls": {
                name: {
                    "error": next(rms for n, rms, _ in solved.error[name] if n == calls),
                    "median_error": next(median for n, _, median in solved.error[name] if n == calls),
                    "class_accuracy": solved.accuracy[name, calls],
                }
                for name in SOLVERS
            },
            "error": {name: [[n, rms, median] for n, rms, median in solved.error[name]] for name in SOLVERS},
        },
        "training": {
            "samples": training.recipe.samples,
            "updates": training.recipe.samples // training.recipe.batch,
            "parameters": training.model.parameters,
            "loss": training.loss[-1][1],
            "held_out_loss": training.held_out[-1][1] if training.held_out else None,
        },
        "expectations": [{**asdict(e), "met": e.met} for e in expectations(sampled, restored, classified)],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "settings": {
            "seed": seed,
            "budget": asdict(budget),
            "sampler": {"solver": SOLVER, "grid": GRID, "calls": budget.evaluations, "guidance": SCALE},
            "recipe": training.recipe.trajectory(),
        },
        "machine": machine(),
        "values": {name: value.json() for name, value in v.items()},
    }


def card(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a model carries with it, and how they were measured."""
    main = ("class_accuracy", "frechet", "frechet_floor", "precision", "recall", "memorised", "memorised_held_out")
    psnr = {f"psnr_{name}": one["psnr"] for name, one in found["restoration"].items()}
    rounded = {name: round(value, 4) for name, value in ({k: found[k] for k in main} | psnr).items()}
    rounded["classification"] = round(found["classification"]["accuracy"], 4)
    return rounded | {"by": f"fokker demo --seed {found['settings']['seed']}", "sampler": found["settings"]["sampler"]}


def _restoration(one: Restored) -> dict[str, Any]:
    v = one.values
    return {
        "about": one.task.about,
        "noise_std": one.task.noise_std,
        "baseline": BASELINE,
        "n": v["restored"].n,
        "draws": one.samples.shape[1],
        "psnr": v["restored"].value,
        "psnr_one_sample": v["one_sample"].value,
        "psnr_baseline": v["baseline"].value,
        "psnr_measured": v["measured"].value,
        "values": {name: value.json() for name, value in v.items()},
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "fokker": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
